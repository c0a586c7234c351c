"""A spiking layer whose backward pass is a rule: any gradient estimator on the true dynamics.

The forward pass is that of the neuron, spike for spike. The gradient of the spikes then goes
through a rule, a plain function of that gradient and of the trace that the forward pass left. So
an estimator never holds dynamics of its own, and it works on any layer that can give a trace.

**A foreign layer** joins in by calling `ruled(run, current, rule)` in its own `forward` when its
attribute `rule` is set, where `run(current)` returns the `Trace` of its dynamics. Estimators
find such layers by a method `spiking_layers()` of the network, which returns modules by name;
each has the attributes `threshold` (a scalar tensor), `surrogate` and `rule`, where the last two
can be set.
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

    Args:
        current: The input current, `[time, batch, ...]`, or `[1, batch, ...]` for every step.
        spikes: The spikes, `[time, batch, ...]` in {0, 1}.
        replay: A function that returns the membrane potentials before reset, one `[batch, ...]`
            for each step; only rules that need them call it.
        final: The membrane after the last reset, `[batch, ...]`.
        threshold: The threshold V, a scalar.
        leak: The factor of the membrane in the next step, a scalar:
            `U[t] = leak * Upost[t-1] + ...`.
        hard: Whether a spike sets the membrane to zero instead of subtracting the threshold.
        attached: Whether the model's own backward pass differentiates the spike of the reset.
        surrogate: The surrogate that the model itself uses.
        gain: The factor of the current, `U[t] = ... + gain * I[t]`; below 1 where a leak takes
            part of the input too.
        plain: Whether the dynamics are those of `lif_reference` from a membrane of zero, so that
            compiled code may compute them again.
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

    @cached_property
    def membranes(self) -> Sequence[Tensor]:
        """The membrane potentials before reset, `[batch, ...]` each, computed once."""
        with torch.no_grad():
            return self.replay()


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
        # The gradient of a static current may have been summed over time already.
        steps = (len(spikes_grad), len(trace.current))
        fits = isinstance(found, Tensor) and found.shape[1:] == spikes_grad.shape[1:]
        if not fits or len(found) not in steps:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(
                f"a backward rule returns {shape} for gradients {list(spikes_grad.shape)}: it must "
                "return a gradient of the current for each entry."
            )
        if len(trace.current) == 1 and len(found) > 1:
            found = found.sum(0, keepdim=True)
        return found, None, None


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


def spiking_layers(network: nn.Module) -> dict[str, Any]:
    """The layers that an estimator can reach, by name; none if the network does not name them.

    >>> spiking_layers(nn.Linear(2, 2))
    {}
    """
    layers = getattr(network, "spiking_layers", None)
    return dict(layers()) if callable(layers) else {}
