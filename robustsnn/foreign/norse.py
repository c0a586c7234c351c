"""Norse: `norse.torch.LIFCell`, `LIF`, `LIFBoxCell`, `IAFCell` and `IAF`.

The state is passed in and out as a named tuple, so nothing is reset. A cell runs one step a call,
a layer the whole sequence, `[time, batch, ...]`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from robustsnn.common.users_code import handed_over
from robustsnn.foreign.library import Dynamics, Library, Role, Unknown, number
from robustsnn.foreign.surrogate import OwnSurrogate, slope_of


class Norse(Library):
    """`i' = i + x; v' = v + dt tau_mem_inv ((v_leak - v) + i'); i = i' (1 - dt tau_syn_inv)`."""

    package = "norse"
    title = "Norse"
    bases = (
        "SNNCell", "SNN", "SNNRecurrentCell", "SNNRecurrent",
        "CobaLIFCell", "LIFCorrelation", "ConstantCurrentLIFEncoder", "SpikeLatencyLIFEncoder",
    )  # fmt: skip
    silent = ("LICell", "LI", "LIBoxCell")
    kinds = ("LIFCell", "LIF", "LIFBoxCell", "IAFCell", "IAF")
    inputs = ("input_tensor",)
    works = ("activation",)
    limit = "p.v_th"
    #: The functions that compute a step of the kinds that are known.
    steps = ("lif_feed_forward_step", "lif_box_feed_forward_step", "iaf_feed_forward_step")

    def dynamics(self, module: Any, like: Tensor) -> Dynamics:
        """The dynamics; potentials are measured from `v_leak`, or from `v_reset` without a leak."""
        kind = self.kind(module)
        if kind not in self.kinds:
            raise Unknown(f"the dynamics of {kind} are not known")
        step = getattr(module.activation, "__name__", "")
        if step not in self.steps:
            raise Unknown(f"{kind} with the function {step or 'of another name'} is not known")
        p = module.p
        threshold, reset = number(p.v_th, like), number(p.v_reset, like)
        if "IAF" in str(kind):
            one = number(1.0, like)
            return Dynamics(threshold - reset, one, one, "hard", attached=True, rest=reset)
        gain = number(module.dt, like) * number(p.tau_mem_inv, like)
        rest = number(p.v_leak, like)
        hard, held = True, None
        if kind == "LIFBoxCell":
            method = getattr(p.reset_method, "__name__", "")
            if method not in ("reset_value", "reset_subtract"):
                raise Unknown(f"{kind} with another reset method is not known")
            hard = method == "reset_value"
            held = None if hard else threshold
        else:
            decay = 1 - number(module.dt, like) * number(p.tau_syn_inv, like)
        return Dynamics(
            threshold=threshold - rest,
            leak=1 - gain,
            gain=gain,
            reset="hard" if hard else "soft",
            attached=True,
            rest=rest,
            amount=held,
            reset_to=reset - rest,
            filter=None if kind == "LIFBoxCell" else decay,
        )

    def surrogate(self, module: Any, dynamics: Dynamics) -> OwnSurrogate:
        """The library's function of the parameter `method`; some methods ignore `alpha`."""
        threshold = sys.modules["norse.torch.functional.threshold"].threshold

        def spike(x: Tensor) -> Tensor:
            found: Tensor = handed_over(threshold, x, module.p.method, module.p.alpha)
            return found

        return OwnSurrogate(slope_of(spike), dynamics.threshold)

    def split(self, module: Any, value: Tensor) -> Tensor:
        """A cell runs one step, a layer all of them."""
        return value if "SNN" in self.lineage(module) else value[None]

    def join(self, module: Any, value: Tensor) -> Tensor:
        """A cell runs one step, a layer all of them."""
        return value if "SNN" in self.lineage(module) else value[0]

    def state(self, module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """The membrane of the state that is passed in."""
        given = args[1] if len(args) > 1 else kwargs.get("state")
        return None if given is None else given.v

    def rests(self, module: Any, state: Tensor) -> bool:
        """Whether every membrane is where the library lets it begin."""
        start = module.p.v_reset if "IAF" in str(self.kind(module)) else module.p.v_leak
        return bool((state == start).all())

    def leave(
        self,
        module: Any,
        output: Any,
        spikes: Tensor,
        change: Callable[[Tensor, Role, bool], Tensor],
    ) -> tuple[Any, Tensor | None]:
        """The spikes and the state after the reset."""
        _, state = output
        every = bool(getattr(module, "record_states", False))
        changed = {
            name: change(value, "after reset" if name == "v" else "other", every)
            for name, value in state._asdict().items()
        }
        state = state._replace(**changed)
        return (spikes, state), state.v

    def resets(self, module: nn.Module) -> bool:
        """The state is passed in and out."""
        return False

    def reset(self, module: Any) -> None:
        """Nothing is kept."""
