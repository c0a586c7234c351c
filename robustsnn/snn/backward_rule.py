"""A spiking layer whose backward pass is a rule: any gradient estimator on the true dynamics.

The forward pass is that of the neuron, spike for spike. The gradient of the spikes then goes
through a rule, a plain function of that gradient and of the trace that the forward pass left. So
an estimator never holds dynamics of its own, and it works on any layer that can give a trace.

**A layer of another kind** joins in by two means, which are all that estimators need of it.
Estimators find it by a method `spiking_layers()` of the network, which returns objects by name,
in the order in which they run. Each object has

- `surrogate`, which can be set: the surrogate of the layer's own backward pass;
- `rule`, None or a `BackwardRule`, which can be set: while it is set, the gradient of the spikes
  goes through it. `ruled(run, current, rule)` does that inside a `forward` of one's own, where
  `run(current)` returns the `Trace` of the dynamics; `robustsnn.foreign` does it for layers whose
  `forward` belongs to another library;
- `threshold`, a tensor above 0, a scalar or one that broadcasts to `[batch, ...]`; where it adapts,
  the one that it begins with, and the `live` of a trace holds that of each step;
- `forward`, which the estimator `twin` replaces on the object, and removes again, by a function of
  `(current, steps, initial=None, pool=False)` that returns the pair `(activation [1, batch, ...],
  membrane [batch, ...])` for the current `[time, batch, ...]`;
- `register_forward_hook(hook)`, which calls `hook(layer, inputs, outputs)` after each pass, where
  the outputs are the spikes or a tuple that begins with them, and returns a handle with `remove()`;
- optionally `detach_reset`, which can be set: whether the reset is held fixed in the layer's own
  backward pass. Where it is missing, a rule makes that choice;
- optionally `graded`: whether a neuron may spike more than once in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustsnn.errors import InputError
from robustsnn.snn.surrogate import Surrogate


@dataclass(frozen=True, eq=False)
class Trace:
    """What a layer of neurons did over a sequence.

    The dynamics at step t, for the potential U before reset, the number of spikes o, the input
    current I, the leak and the reset amount A (the threshold V, unless another is given):

        U[t]     = leak * Upost[t-1] + gain * I[t]
        Upost[t] = max(U[t] - A * o[t], floor)                     soft reset
                 = U[t] where o[t] = 0, and `reset_to` elsewhere   hard reset

    With `late`, the amount is taken off after the leak: `U[t] = leak * U[t-1] - A * o[t-1] +
    gain * I[t]`. Potentials are measured from the value to which a membrane at rest leaks, so that
    a resting potential other than 0 moves threshold and reset and nothing else.

    A threshold that adapts has a value `V[t]` for each step, in `live`. If it follows the membrane,
    `V[t] = V[t-1] + follows * (U[t] - ...)`, a membrane also acts through the thresholds of its own
    and all later steps.

    Args:
        current: The input current, `[time, batch, ...]`, or `[1, batch, ...]` for every step.
        spikes: The number of spikes, `[time, batch, ...]`: 0 or 1, or more if `graded`.
        replay: A function that returns the membrane potentials before reset, one `[batch, ...]`
            for each step; only rules that need them call it.
        final: The membrane after the last reset, `[batch, ...]`.
        threshold: The threshold V above 0, a scalar or a tensor that broadcasts to `[batch, ...]`.
        leak: The factor of the membrane in the next step, of the same form.
        hard: Whether a spike sets the membrane to `reset_to` instead of subtracting an amount.
        attached: Whether the model's own backward pass differentiates the spike of the reset.
        surrogate: The surrogate that the model itself uses.
        gain: The factor of the current, `U[t] = ... + gain * I[t]`; below 1 where a leak takes
            part of the input too.
        plain: Whether the dynamics are those of `lif_reference` from a membrane of zero, so that
            compiled code may compute them again.
        amount: What a soft reset takes off for each spike; None for the threshold.
        reset_to: The potential that a hard reset sets.
        late: Whether a soft reset takes its amount off after the leak.
        floor: The least potential after a reset; None if there is none.
        graded: Whether a neuron may spike more than once in a step.
        live: The threshold of each step, `[time, ...]` where the rest broadcasts to `[batch,
            ...]`; None for one that is the same at every step. `threshold` is then the one that a
            neuron begins with, and the unit in which widths of surrogates are measured.
        follows: By how much the threshold of this and of all later steps rises with the membrane
            before reset, a scalar or of the form of `threshold`; None if it does not.
    """

    current: Tensor
    spikes: Tensor
    replay: Callable[[], Sequence[Tensor]]
    final: Tensor
    threshold: Tensor
    leak: Tensor
    hard: bool
    attached: bool
    surrogate: Surrogate
    gain: float = 1.0
    plain: bool = False
    amount: Tensor | None = None
    reset_to: Tensor | float = 0.0
    late: bool = False
    floor: Tensor | None = None
    graded: bool = False
    live: Tensor | None = None
    follows: Tensor | None = None

    @cached_property
    def membranes(self) -> Sequence[Tensor]:
        """The membrane potentials before reset, `[batch, ...]` each, computed once."""
        with torch.no_grad():
            return self.replay()

    def over(self, step: int) -> Tensor:
        """How far the membrane of a step is above the threshold of that step, `[batch, ...]`.

        In units of `threshold`, of the one that an adapting neuron begins with.
        """
        membrane = self.membranes[step]
        if self.live is None:
            return (membrane / self.threshold).sub_(1)
        return (membrane - self.live[step]).div_(self.threshold)

    def threshold_at(self, step: int) -> Tensor:
        """The threshold at a step, a scalar or a tensor that broadcasts to `[batch, ...]`."""
        return self.threshold if self.live is None else self.live[step]

    def removed_at(self, step: int) -> Tensor:
        """What a soft reset takes off for each spike of a step, in the form of `threshold`."""
        return self.threshold_at(step) if self.amount is None else self.amount

    def above_floor(self, step: int) -> Tensor | None:
        """Whether the membrane stayed above its floor at a reset, bool `[batch, ...]`.

        A gradient passes the floor only there. None if there is no floor.
        """
        if self.floor is None:
            return None
        membrane, spikes = self.membranes[step], self.spikes[step]
        if self.hard:
            after = torch.where(spikes == 0, membrane, membrane.new_tensor(0) + self.reset_to)
        else:
            after = membrane - self.removed_at(step) * spikes
        return after > self.floor


BackwardRule = Callable[[Tensor, Trace], Tensor]
"""A function of the gradient of the spikes `[time, batch, ...]` and of the trace.

It returns the gradient of the current, with as many time steps.
"""


class _Ruled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, current: Tensor, run: Callable[[Tensor], Trace], rule: BackwardRule
    ) -> tuple[Tensor, Tensor]:
        trace = run(current)
        # The outputs themselves are not kept here: they would hold the graph in a cycle.
        ctx.save_for_backward(trace.spikes)
        ctx.trace, ctx.rule = _without_spikes(trace), rule
        ctx.set_materialize_grads(False)
        return trace.spikes, trace.final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        spikes_grad = grads[0]
        if spikes_grad is None:
            return None, None, None
        (spikes,) = ctx.saved_tensors
        held = ctx.trace
        trace = Trace(**held, spikes=spikes, final=spikes[-1])
        found = ctx.rule(spikes_grad, trace)
        return of_current(found, spikes_grad, trace), None, None


def of_current(found: object, grad: Tensor, trace: Trace) -> Tensor:
    """What a rule returned, as the gradient of the current with as many steps as the current has.

    Raises:
        InputError: It is not a gradient of the current.
    """
    # The gradient of a static current may have been summed over time already.
    steps = (len(grad), len(trace.current))
    if (
        not isinstance(found, Tensor)
        or found.shape[1:] != grad.shape[1:]
        or len(found) not in steps
    ):
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"a backward rule returns {shape} for gradients {list(grad.shape)}: it must return a "
            "gradient of the current for each entry."
        )
    if len(trace.current) == 1 and len(found) > 1:
        return found.sum(0, keepdim=True)
    return found


def _without_spikes(trace: Trace) -> dict[str, Any]:
    """The fields of a trace that are not outputs of the layer."""
    outputs = ("spikes", "final")
    return {f.name: getattr(trace, f.name) for f in fields(trace) if f.name not in outputs}


def ruled(
    run: Callable[[Tensor], Trace], current: Tensor, rule: BackwardRule
) -> tuple[Tensor, Tensor]:
    """The spikes and the final membrane of a layer whose backward pass is `rule`.

    No gradient flows back from the final membrane, nor into threshold, leak or the initial
    membrane: a rule is for gradients with respect to the input.

    Args:
        run: A function from the current to the trace, without gradient.
        current: The input current, `[time, batch, ...]` or `[1, batch, ...]`.
        rule: The rule of the backward pass; see `BackwardRule`.
    """
    spikes, final = _Ruled.apply(current, run, rule)
    return spikes, final


def through_time(
    grad: Tensor,
    trace: Trace,
    derivative: Sequence[Tensor],
    attached: bool | None = None,
    cut: int | None = None,
    membrane_grad: Sequence[Tensor | None] | None = None,
    reset_grad: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Backpropagation through time with given derivatives of the spikes.

    Args:
        grad: The gradient of the spikes, `[time, batch, ...]`.
        trace: The trace of the layer.
        derivative: The derivative `do/dU` of each step, `[batch, ...]`.
        attached: Whether the spike in the reset is differentiated too; None keeps the model's
            choice.
        cut: The number of steps after which the gradient of the membrane is dropped; 1 leaves no
            path through time, None keeps all paths.
        membrane_grad: The gradient of what reads the membrane before reset, `[batch, ...]` or None
            for each step.
        reset_grad: The gradient of what reads the membrane after reset, of the same form.

    Returns:
        The gradient of the current, `[time, batch, ...]`.

    Source: the recursion of `robustsnn.snn.lif_reference`; cut: Williams and Peng, 1990.
    """
    attached = trace.attached if attached is None else attached
    found = torch.empty_like(grad)
    # The gradient of the membrane in the next step by way of the leak, and without the leak.
    after: Tensor | None = None
    later: Tensor | None = None
    # The gradient of the thresholds that the membrane moves.
    raised: Tensor | None = None
    for t in reversed(range(len(grad))):
        through = grad[t]
        if later is not None and trace.late and attached:
            through = through - later * trace.removed_at(t)
        if (read := _at(reset_grad, t)) is not None:
            after = read if after is None else after + read
        if after is not None and not trace.late:
            if (passes := trace.above_floor(t)) is not None:
                after = after * passes
            if attached:
                through = through - after * _by_reset(trace, t)
        d = through * derivative[t]
        if trace.follows is not None:
            raised = d if raised is None else raised + d
            d = d - trace.follows * raised
        if after is not None:
            d += after * _kept(trace, t) if trace.hard else after
        if (read := _at(membrane_grad, t)) is not None:
            d = d + read
        found[t] = d
        ends = cut is not None and t % cut == 0
        after, later = (None, None) if ends else (d * trace.leak, d)
        raised = None if ends else raised
    return found if trace.gain == 1 else found * trace.gain


def _at(gradients: Sequence[Tensor | None] | None, step: int) -> Tensor | None:
    return None if gradients is None else gradients[step]


def _kept(trace: Trace, step: int) -> Tensor:
    """Whether a hard reset left the membrane as it was, `[batch, ...]`."""
    return trace.spikes[step] == 0 if trace.graded else 1 - trace.spikes[step]


def _by_reset(trace: Trace, step: int) -> Tensor:
    """By how much a spike lowers the membrane at a reset, as `[batch, ...]` or a scalar."""
    if not trace.hard:
        return trace.removed_at(step)
    membrane = trace.membranes[step]
    plain = isinstance(trace.reset_to, float) and trace.reset_to == 0
    return membrane if plain else membrane - trace.reset_to


def surrogate_derivative(trace: Trace, surrogate: Surrogate) -> list[Tensor]:
    """The derivative `g(U/V - 1) / V` of each step, `[batch, ...]`, for membrane U, threshold V."""
    return [
        surrogate.derivative(trace.over(step)).div_(trace.threshold)
        for step in range(len(trace.membranes))
    ]


def spiking_layers(network: nn.Module) -> dict[str, Any]:
    """The layers that an estimator can reach, by name; none if the network does not name them.

    >>> spiking_layers(nn.Linear(2, 2))
    {}
    """
    layers = getattr(network, "spiking_layers", None)
    return dict(layers()) if callable(layers) else {}
