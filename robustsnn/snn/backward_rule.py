"""A spiking layer whose backward is a rule: any gradient estimator on the true dynamics.

The forward pass is that of the neuron, spike for spike. What comes back from the spikes goes
through a rule, a plain function of that gradient and of the trace that the forward left. So an
estimator never holds dynamics of its own, and works on any layer that can hand out a trace.

**A foreign layer** joins in by calling `ruled(run, current, rule)` in its own `forward` when its
attribute `rule` is set, where `run(current)` returns the `Trace` of its dynamics. Estimators
find such layers by a method `spiking_layers()` of the network, name to module; each has the
attributes `threshold` (a scalar tensor), `surrogate` and `rule`, both settable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustsnn.snn.surrogate import Surrogate


@dataclass(frozen=True, eq=False)
class Trace:
    """What a layer of neurons did over a sequence.

    Args:
        current: Input current, `[time, batch, ...]`, or `[1, batch, ...]` for every step.
        spikes: `[time, batch, ...]` in {0, 1}.
        replay: Gives the membrane potential before reset, `[batch, ...]`, one a step; asked only
            by rules that need it.
        final: Membrane after the last reset, `[batch, ...]`.
        threshold: Scalar V.
        leak: Scalar: how the membrane enters the next step, `U[t] = leak * Upost[t-1] + ...`.
        hard: Whether a spike sets the membrane to zero instead of subtracting the threshold.
        attached: Whether the model's own backward differentiates the reset's spike.
        surrogate: The model's own.
        gain: How the current enters, `U[t] = ... + gain * I[t]`; below 1 where a leak takes
            part of the input too.
        plain: Whether the dynamics are those of `lif_reference` from a membrane of zero, so that
            compiled code may walk through them again.
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
        """What `replay` gives."""
        with torch.no_grad():
            return self.replay()


BackwardRule = Callable[[Tensor, Trace], Tensor]
"""Gradient of the spikes `[time, batch, ...]` and the trace, to that of the current, as large."""


class _Ruled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, current: Tensor, run: Callable[[Tensor], Trace], rule: BackwardRule
    ) -> tuple[Tensor, Tensor]:
        trace = run(current)
        # Everything but the output itself, which would hold the graph in a cycle.
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
        if len(trace.current) == 1 and len(found) > 1:
            found = found.sum(0, keepdim=True)
        return found, None, None


def _without_spikes(trace: Trace) -> dict[str, Any]:
    """What is not an output of the layer."""
    outputs = ("spikes", "final")
    return {f.name: getattr(trace, f.name) for f in fields(trace) if f.name not in outputs}


def ruled(
    run: Callable[[Tensor], Trace], current: Tensor, rule: BackwardRule
) -> tuple[Tensor, Tensor]:
    """Spikes and final membrane of `run`, differentiated by `rule`.

    Nothing flows back from the final membrane, nor into threshold, leak or the initial membrane:
    a rule is for gradients with respect to the input.

    Args:
        run: Current to trace, without gradient.
        current: `[time, batch, ...]` or `[1, batch, ...]`.
        rule: See `BackwardRule`.
    """
    spikes, final = _Ruled.apply(current, run, rule)
    return spikes, final


def spiking_layers(network: nn.Module) -> dict[str, Any]:
    """The layers that an estimator can reach; none in a module that does not name them."""
    layers = getattr(network, "spiking_layers", None)
    return dict(layers()) if callable(layers) else {}
