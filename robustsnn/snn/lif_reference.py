"""The LIF sequence in plain torch: the specification of the fused kernel, and its fallback.

Dynamics at step t, for an input current `I[t]` (HIRE-SNN, ICCV 2021; DIET-SNN, 2020):

    U[t]     = leak * Upost[t-1] + I[t]
    z[t]     = U[t] / V - 1
    o[t]     = 1 if z[t] > 0 else 0
    Upost[t] = U[t] - V * o[t]      soft reset
             = U[t] * (1 - o[t])    hard reset, to zero

Backward, with `do/dU := g(z) / V`, `p[t] = dL/dUpost[t]` and `p[T]` given from outside:

    e[t]     = dL/do[t] + a * p[t]  where a = 0 detached, -V attached soft, -U[t] attached hard
    s[t]     = e[t] * g(z[t]) / V
    d[t]     = s[t] + p[t]                soft
             = s[t] + p[t] * (1 - o[t])   hard
    p[t-1]   = leak * d[t]
    dL/dI[t] = d[t]
    dL/dleak = sum_t d[t] * Upost[t-1]
    dL/dV    = sum_t ( -s[t] * U[t] / V  -  o[t] * p[t] )    the last term with soft reset only

A detached reset holds o fixed for U, while V in `V * o` is differentiated, as in the published
code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustsnn.snn.surrogate import Surrogate


class ReferenceLIF(torch.autograd.Function):
    """A loop over time that saves the membrane before reset; the module states the equations."""

    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        threshold: Tensor,
        leak: Tensor,
        initial: Tensor | None,
        steps: int,
        surrogate: Surrogate,
        hard: bool,
        attached: bool,
    ) -> tuple[Tensor, Tensor]:
        """Spikes `[steps, batch, ...]` and final membrane `[batch, ...]`."""
        ctx.set_materialize_grads(False)
        static = current.shape[0] == 1
        spikes, membranes, post = run(current, threshold, leak, initial, steps, hard)
        # The spikes are an output: saved in this way, autograd holds them without a cycle.
        ctx.save_for_backward(threshold, leak, initial, spikes, *membranes)
        ctx.static, ctx.surrogate, ctx.hard, ctx.attached = static, surrogate, hard, attached
        return spikes, post

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of current, threshold, leak and initial membrane."""
        grad_spikes, post_grad = grads
        threshold, leak, initial, spikes, *membranes = ctx.saved_tensors
        needs_current, needs_threshold, needs_leak, needs_initial = ctx.needs_input_grad[:4]
        steps = len(membranes)
        like = membranes[0]
        grad_current = None
        if needs_current:
            grad_current = (
                torch.zeros_like(like).unsqueeze(0) if ctx.static else empty_over_time(like, steps)
            )
        grad_threshold = torch.zeros_like(threshold)
        grad_leak = torch.zeros_like(leak)
        for t in reversed(range(steps)):
            u = membranes[t]
            d = ctx.surrogate.derivative((u / threshold).sub_(1)).div_(threshold)
            through = None if grad_spikes is None else grad_spikes[t]
            if ctx.attached and post_grad is not None:
                through = (0 if through is None else through) - post_grad * (
                    u if ctx.hard else threshold
                )
            if through is None:
                d.zero_()
            else:
                d.mul_(through)
            if needs_threshold:
                grad_threshold -= (d * u).sum() / threshold
                if post_grad is not None and not ctx.hard:
                    grad_threshold -= (post_grad * spikes[t]).sum()
            if post_grad is not None:
                d.add_(post_grad * (1 - spikes[t]) if ctx.hard else post_grad)
            if needs_leak and (t > 0 or initial is not None):
                before = initial
                if t > 0:
                    before = _reset(membranes[t - 1], spikes[t - 1], threshold, ctx.hard)
                grad_leak += (d * before).sum()
            if grad_current is not None:
                if ctx.static:
                    grad_current[0].add_(d)
                else:
                    grad_current[t].copy_(d)
            post_grad = d.mul_(leak)
        return (
            grad_current,
            grad_threshold if needs_threshold else None,
            grad_leak if needs_leak else None,
            post_grad if needs_initial else None,
            *(None,) * 4,
        )


def run(
    current: Tensor,
    threshold: Tensor,
    leak: Tensor,
    initial: Tensor | None,
    steps: int,
    hard: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """The dynamics alone, without gradients.

    Args:
        current: The input current, `[time, batch, ...]`, or `[1, batch, ...]` for every step.
        threshold: The threshold V, a scalar.
        leak: The leak, a scalar.
        initial: The membrane before the first step, `[batch, ...]`; zero if absent.
        steps: The number of time steps, >= 1.
        hard: Whether a spike sets the membrane to zero instead of subtracting the threshold.

    Returns:
        The spikes `[steps, batch, ...]`, the membrane before reset `[batch, ...]` of each step,
        and the final membrane after reset.
    """
    static = current.shape[0] == 1
    membranes = [torch.empty_like(current[0]) for _ in range(steps)]
    spikes = empty_over_time(current[0], steps)
    post = initial
    for t in range(steps):
        now = current[0 if static else t]
        u = membranes[t]
        if post is None:
            u.copy_(now)
        else:
            torch.mul(post, leak, out=u)
            u.add_(now)
        out = torch.div(u, threshold, out=spikes[t])
        out.sub_(1).gt_(0)
        post = _reset(u, out, threshold, hard)
    assert post is not None
    return spikes, membranes, post


def _reset(u: Tensor, out: Tensor, threshold: Tensor, hard: bool) -> Tensor:
    return u * (1 - out) if hard else u - threshold * out


def empty_over_time(one: Tensor, steps: int) -> Tensor:
    """An uninitialised tensor `[steps, *one.shape]`, each step with the memory layout of `one`."""
    size = (steps, *one.shape)
    if one.dim() == 4 and one.is_contiguous(memory_format=torch.channels_last):
        flat = torch.empty(
            (steps * one.shape[0], *one.shape[1:]),
            dtype=one.dtype,
            device=one.device,
            memory_format=torch.channels_last,
        )
        return flat.view(size)
    return torch.empty(size, dtype=one.dtype, device=one.device)
