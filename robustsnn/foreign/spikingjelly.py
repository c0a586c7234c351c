"""SpikingJelly, 2.x and 0.0.0.0.14: `activation_based.neuron`.

The state of a layer is its attribute `v`, a number until the first step. Layers run one step a
call (`step_mode` "s") or take the whole sequence, `[time, batch, ...]` ("m"). Before 2.0, LIF and
IF have no gradient in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustsnn.common.users_code import handed_over
from robustsnn.foreign.library import Dynamics, Library, Role, Unknown, number
from robustsnn.foreign.surrogate import OwnSurrogate, slope_of


class SpikingJelly(Library):
    """`H = V + (X - (V - Vr)) / tau`, or with `decay_input` off `H = V - (V - Vr) / tau + X`."""

    package = "spikingjelly"
    title = "SpikingJelly"
    bases = ("BaseNode", "SimpleBaseNode")
    kinds = ("IFNode", "LIFNode", "ParametricLIFNode", "SimpleIFNode", "SimpleLIFNode")
    inputs = ("x", "x_seq")
    works = ("single_step_forward", "multi_step_forward", "neuronal_charge", "neuronal_fire")
    limit = "v_threshold"

    def kind(self, module: nn.Module) -> str | None:
        """Any class of the library's rooms of neurons: not all derive of the bases."""
        found = super().kind(module)
        if found is not None or self.never_spikes(module):
            return found
        for one in type(module).__mro__:
            rooms = one.__module__.split(".")
            if rooms[0] == self.package and "neuron" in rooms:
                # These give the membrane alone, with its exact gradient.
                return None if "NonSpiking" in one.__name__ else one.__name__
        return None

    def dynamics(self, module: Any, like: Tensor) -> Dynamics:
        """The dynamics; potentials are measured from `v_reset`, where a membrane begins."""
        if self.kind(module) not in self.kinds:
            raise Unknown(f"the dynamics of {self.kind(module)} are not known")
        if "IF" in str(self.kind(module)) and "LIF" not in str(self.kind(module)):
            inverse = number(0.0, like)
        elif hasattr(module, "w"):
            inverse = module.w.detach().to(like.device, like.dtype).sigmoid()
        else:
            inverse = 1 / number(module.tau, like)
        leaky = bool(inverse.any())
        decays = leaky and bool(module.decay_input)
        rest = 0.0 if module.v_reset is None else float(module.v_reset)
        return Dynamics(
            threshold=number(module.v_threshold, like) - rest,
            leak=1 - inverse,
            gain=inverse if decays else number(1.0, like),
            reset="soft" if module.v_reset is None else "hard",
            attached=not module.detach_reset,
            rest=rest,
        )

    def surrogate(self, module: Any, dynamics: Dynamics) -> OwnSurrogate:
        """The module `surrogate_function`, which is replaced and never edited."""
        return OwnSurrogate(
            slope_of(lambda x: handed_over(module.surrogate_function, x)), dynamics.threshold
        )

    def split(self, module: Any, value: Tensor) -> Tensor:
        """A single step gets a time of 1."""
        return value if module.step_mode == "m" else value[None]

    def join(self, module: Any, value: Tensor) -> Tensor:
        """A single step loses its time again."""
        return value if module.step_mode == "m" else value[0]

    def state(self, module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """The attribute `v`, unless it is a number still."""
        return module.v if isinstance(module.v, Tensor) else None

    def rests(self, module: Any, state: Tensor) -> bool:
        """Whether every membrane is at `v_reset`."""
        return bool((state == (module.v_reset or 0.0)).all())

    def leave(
        self,
        module: Any,
        output: Any,
        spikes: Tensor,
        change: Callable[[Tensor, Role, bool], Tensor],
    ) -> tuple[Any, Tensor | None]:
        """The spikes; users read `v`, and `v_seq` where it is kept."""
        module.v = change(module.v, "after reset", False)
        sequence = getattr(module, "v_seq", None)
        if isinstance(sequence, Tensor) and module.step_mode == "m":
            module.v_seq = change(sequence, "after reset", True)
        return spikes, module.v

    def resets(self, module: nn.Module) -> bool:
        """Everything that has memories: neurons, dropout over time, and more."""
        return "MemoryModule" in self.lineage(module)

    def reset(self, module: Any) -> None:
        """By the module's own `reset`, in place of `functional.reset_net`."""
        # A state that belongs to a graph cannot be reset in place.
        for name, value in module._memories.items():
            if isinstance(value, Tensor) and (value.requires_grad or value.is_inference()):
                module._memories[name] = value.detach().clone()
        with torch.no_grad():
            handed_over(module.reset)
