"""snnTorch: `snntorch.Leaky`, `Synaptic` and `Lapicque`, one step a call.

The membrane is passed in and out, or kept in the buffer `mem` (`init_hidden`). A reset follows the
spike of the step before: with subtraction, after the leak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robustsnn.common.users_code import handed_over
from robustsnn.foreign.library import Dynamics, Library, Role, Unknown, number
from robustsnn.foreign.surrogate import OwnSurrogate, slope_of

#: The names of states, in the order in which neurons take and return them.
STATES: dict[str, tuple[str, ...]] = {"Synaptic": ("syn", "mem")}


class SnnTorch(Library):
    """`U[t] = beta U[t-1] + I[t] - S[t-1] V`, S the spike of the step before."""

    package = "snntorch"
    title = "snnTorch"
    bases = ("SpikingNeuron", "LeakyParallel", "LeakyKernel")
    kinds = ("Leaky", "Synaptic", "Lapicque")
    inputs = ("input_", "x")
    works = ("fire", "fire_inhibition", "mem_reset", "spike_grad")
    limit = "threshold"

    def dynamics(self, module: Any, like: Tensor) -> Dynamics:
        """The dynamics; `reset_delay` off resets in the same step, before the leak."""
        kind = self.kind(module)
        if kind not in self.kinds:
            raise Unknown(f"the dynamics of {kind} are not known")
        for setting in ("inhibition", "state_quant"):
            if getattr(module, setting, False):
                raise Unknown(f"{kind} with {setting} is not known")
        mechanism = str(module.reset_mechanism)
        self._consistent(module, mechanism)
        delayed = bool(getattr(module, "reset_delay", True)) or kind == "Lapicque"
        if kind in ("Synaptic", "Lapicque") and mechanism == "zero":
            # These two drop the input of the next step, or a part of it, with the membrane.
            raise Unknown(f"{kind} with a reset to zero is not known")
        gain = number(1.0, like)
        leak = number(module.beta, like).clamp(0, 1)
        if kind == "Lapicque":
            step, capacity = number(module.time_step, like), number(module.C, like)
            gain, leak = step / capacity, 1 - step / (number(module.R, like) * capacity)
        threshold = number(module.threshold, like)
        return Dynamics(
            threshold=threshold,
            leak=leak,
            gain=gain,
            reset={"subtract": "soft", "zero": "hard"}.get(mechanism, "none"),  # type: ignore[arg-type]
            attached=not delayed,
            late=delayed and mechanism == "subtract",
            again=not delayed and mechanism == "subtract",
            height=number(getattr(module, "graded_spikes_factor", 1.0), like),
            filter=number(module.alpha, like).clamp(0, 1) if kind == "Synaptic" else None,
        )

    def _consistent(self, module: Any, mechanism: str) -> None:
        """Refuse a reset that is set in one place only; the library looks at several."""
        bound = getattr(getattr(module, "state_function", None), "__name__", "")
        meant = {"subtract": "_base_sub", "zero": "_base_zero", "none": "_base_int"}
        value = {"subtract": 0, "zero": 1, "none": 2}.get(mechanism)
        if bound != meant.get(mechanism) or int(module.reset_mechanism_val) != value:
            raise Unknown("its reset mechanism was changed after it was made")

    def surrogate(self, module: Any, dynamics: Dynamics) -> OwnSurrogate:
        """The function `spike_grad`."""
        return OwnSurrogate(
            slope_of(lambda x: handed_over(module.spike_grad, x)), dynamics.threshold
        )

    def split(self, module: Any, value: Tensor) -> Tensor:
        """One step."""
        return value[None]

    def join(self, module: Any, value: Tensor) -> Tensor:
        """One step."""
        return value[0]

    def names(self, module: Any) -> tuple[str, ...]:
        """The states of a neuron, in the order in which it takes and returns them."""
        return STATES.get(str(self.kind(module)), ("mem",))

    def state(self, module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """The membrane that is passed in, or the buffer `mem`."""
        names = self.names(module)
        place = 1 + names.index("mem")
        given = args[place] if len(args) > place else kwargs.get("mem")
        found = module.mem if given is None else given
        current = self.current(args, kwargs)
        # The library begins anew, without a word, where the shape is another one.
        if not isinstance(found, Tensor) or found.shape != current.shape:
            return None
        return found

    def leave(
        self,
        module: Any,
        output: Any,
        spikes: Tensor,
        change: Callable[[Tensor, Role, bool], Tensor],
    ) -> tuple[Any, Tensor | None]:
        """The spikes, and the states where the neuron returns them."""
        delayed = bool(getattr(module, "reset_delay", True)) or self.kind(module) == "Lapicque"
        role: Role = "before reset" if delayed else "after reset"
        for name in self.names(module):
            part = role if name == "mem" else "other"
            setattr(module, name, change(getattr(module, name), part, False))
        if not isinstance(output, tuple):
            return spikes, module.mem
        return (spikes, *(getattr(module, name) for name in self.names(module))), module.mem

    def reset(self, module: Any) -> None:
        """Empty buffers, as at first: `utils.reset` finds what was registered, and no copies."""
        for name in ("syn_exc", "syn_inh", "syn", "mem", "spk"):
            value = getattr(module, name, None)
            if isinstance(value, Tensor) and name in module._buffers:
                setattr(module, name, torch.zeros(0, dtype=value.dtype, device=value.device))
