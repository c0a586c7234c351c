"""sinabs: `sinabs.layers.IAF` and `LIF`, over `[batch, time, ...]` or, squeezed, `[batch * time]`.

The membrane is a buffer, `v_mem`, that the state dict holds. A neuron spikes several times in a
step by default, and its membrane may have a floor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustsnn.common.users_code import handed_over
from robustsnn.foreign.library import Dynamics, Library, Role, Unknown, number
from robustsnn.foreign.surrogate import OwnSurrogate


class Sinabs(Library):
    """`v = alpha v + (1 - alpha) x`, without the factor of x where `norm_input` is off."""

    package = "sinabs"
    title = "sinabs"
    bases = ("StatefulLayer",)
    kinds = ("IAF", "IAFSqueeze", "LIF", "LIFSqueeze")
    inputs = ("input_data",)
    works = ("spike_fn",)
    limit = "spike_threshold"

    def kind(self, module: nn.Module) -> str | None:
        """A layer without a spike function only leaks."""
        return super().kind(module) if getattr(module, "spike_fn", None) is not None else None

    def dynamics(self, module: Any, like: Tensor) -> Dynamics:
        """The dynamics, with the floor `min_v_mem`."""
        kind = self.kind(module)
        if kind not in self.kinds:
            raise Unknown(f"the dynamics of {kind} are not known")
        if getattr(module, "record_states", False):
            raise Unknown(f"{kind} with record_states is not known")
        leak = number(module.alpha_mem_calculated, like)
        one = number(1.0, like)
        gain = 1 - leak if module.norm_input else one
        synapse = module.alpha_syn_calculated
        if synapse is not None:
            synapse = number(synapse, like)
            # The synapse decays in the step in which it is fed.
            gain = gain * synapse
        how = type(module.reset_fn).__name__
        amount = getattr(module.reset_fn, "subtract_value", None)
        if how == "MembraneReset" and module.reset_fn.reset_value != 0:
            # The library adds the value to every membrane, whether it spiked or not.
            raise Unknown(f"{kind} with a reset to {module.reset_fn.reset_value} is not known")
        if how not in ("MembraneReset", "MembraneSubtract"):
            raise Unknown(f"{kind} with the reset function {how} is not known")
        spikes = getattr(module.spike_fn, "__name__", type(module.spike_fn).__name__)
        if spikes not in ("SingleSpike", "MultiSpike", "MaxSpike"):
            raise Unknown(f"{kind} with the spike function {spikes} is not known")
        return Dynamics(
            threshold=number(module.spike_threshold, like),
            leak=leak,
            gain=gain,
            reset="hard" if how == "MembraneReset" else "soft",
            # `v * (spikes == 0)` has no gradient with respect to the spikes.
            attached=how == "MembraneSubtract",
            amount=None if amount is None else number(amount, like),
            floor=None if module.min_v_mem is None else number(module.min_v_mem, like),
            graded=spikes != "SingleSpike",
            filter=synapse,
        )

    def surrogate(self, module: Any, dynamics: Dynamics) -> OwnSurrogate:
        """The function `surrogate_grad_fn`, which gives the derivative itself."""
        return OwnSurrogate(
            lambda x, threshold: handed_over(module.surrogate_grad_fn, x + threshold, threshold),
            dynamics.threshold,
        )

    def split(self, module: Any, value: Tensor) -> Tensor:
        """Time comes second, or in a common dimension with the batch."""
        if "SqueezeMixin" in self.lineage(module):
            value = value.reshape(module.batch_size, module.num_timesteps, *value.shape[1:])
        return value.transpose(0, 1)

    def join(self, module: Any, value: Tensor) -> Tensor:
        """The inverse."""
        value = value.transpose(0, 1)
        return value.flatten(0, 1) if "SqueezeMixin" in self.lineage(module) else value

    def state(self, module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """The buffer `v_mem`, unless it is empty still."""
        return module.v_mem if module.v_mem.numel() else None

    def leave(
        self,
        module: Any,
        output: Any,
        spikes: Tensor,
        change: Callable[[Tensor, Role, bool], Tensor],
    ) -> tuple[Any, Tensor | None]:
        """The spikes; users may read `v_mem`."""
        module.v_mem = change(module.v_mem, "after reset", False)
        return spikes, module.v_mem

    def resets(self, module: nn.Module) -> bool:
        """Every layer with states."""
        return "StatefulLayer" in self.lineage(module)

    def reset(self, module: Any) -> None:
        """Empty buffers: with others, another batch size would draw its states at random."""
        for name, value in list(module._buffers.items()):
            if isinstance(value, Tensor):
                empty = torch.zeros(0, dtype=value.dtype, device=value.device)
                module.register_buffer(name, empty)
