"""The leaky integrate-and-fire neuron with soft reset, over a whole sequence at once.

Dynamics at step t, for an input current `I[t]` (HIRE-SNN, ICCV 2021; DIET-SNN, 2020):

    U[t]     = leak * Upost[t-1] + I[t]
    z[t]     = U[t] / V - 1
    o[t]     = 1 if z[t] > 0 else 0
    Upost[t] = U[t] - V * o[t]

Backward, with `do/dU := g(z) / V` and the reset held fixed for U but not for V:

    d[t]     = dL/do[t] * g(z[t]) / V + leak * d[t+1]
    dL/dleak = sum_t d[t] * Upost[t-1]
    dL/dV    = sum_t ( -dL/do[t] * g(z[t]) * U[t] / V^2  -  o[t] * leak * d[t+1] )
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustsnn.snn.surrogate import Surrogate, Triangle, describe

LEAST_THRESHOLD = 1e-3


class LIFOutput(NamedTuple):
    """Spikes `[time, batch, ...]` in {0, 1}, and the final membrane `[batch, ...]` after reset."""

    spikes: Tensor
    membrane: Tensor


class _LIFSequence(torch.autograd.Function):
    """One pass over time, saving only the membrane before reset."""

    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        threshold: Tensor,
        leak: Tensor,
        initial: Tensor | None,
        steps: int,
        surrogate: Surrogate,
    ) -> tuple[Tensor, Tensor]:
        static = current.shape[0] == 1
        membranes = [torch.empty_like(current[0]) for _ in range(steps)]
        spikes = _empty_over_time(current, steps)
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
            post = u - threshold * out
        # The spikes are an output: saved this way autograd holds them without a cycle.
        ctx.save_for_backward(threshold, leak, initial, spikes, *membranes)
        ctx.static = static
        ctx.surrogate = surrogate
        assert post is not None
        return spikes, post

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_spikes, grad_final = grads
        threshold, leak, initial, spikes, *membranes = ctx.saved_tensors
        needs_current, needs_threshold, needs_leak, needs_initial = ctx.needs_input_grad[:4]
        surrogate: Surrogate = ctx.surrogate
        steps = len(membranes)
        like = membranes[0]
        grad_current = None
        if needs_current:
            grad_current = (
                torch.zeros_like(like).unsqueeze(0)
                if ctx.static
                else _empty_over_time(like.unsqueeze(0), steps)
            )
        grad_threshold = torch.zeros_like(threshold)
        grad_leak = torch.zeros_like(leak)
        post_grad = grad_final
        for t in reversed(range(steps)):
            u = membranes[t]
            z = (u / threshold).sub_(1)
            if needs_threshold and post_grad is not None:
                grad_threshold -= (post_grad * spikes[t]).sum()
            d = surrogate.derivative(z).div_(threshold)
            if grad_spikes is None:
                d.zero_()
            else:
                d.mul_(grad_spikes[t])
            if needs_threshold:
                grad_threshold -= (d * u).sum() / threshold
            if post_grad is not None:
                d.add_(post_grad)
            if needs_leak and (t > 0 or initial is not None):
                before = initial
                if t > 0:
                    before = membranes[t - 1] - threshold * spikes[t - 1]
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
            None,
            None,
        )


def _empty_over_time(like: Tensor, steps: int) -> Tensor:
    """`[steps, ...]` with the memory layout of `like[0]` at every step."""
    one = like[0]
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


def lif_sequence(
    current: Tensor,
    threshold: Tensor,
    leak: Tensor,
    *,
    steps: int,
    surrogate: Surrogate,
    initial: Tensor | None = None,
) -> LIFOutput:
    """Run a layer of LIF neurons over all its time steps.

    Args:
        current: Input current, `[time, batch, ...]`; `[1, batch, ...]` is a static input that
            every one of the `steps` receives.
        threshold: Scalar firing threshold `V > 0`.
        leak: Scalar leak in [0, 1]; 1 is integrate-and-fire.
        steps: Number of time steps; equal to the first dimension unless that is 1.
        surrogate: What backward uses for the derivative of the spike.
        initial: Membrane potential before the first step, `[batch, ...]`; zero if absent.

    Raises:
        ValueError: `current` has neither one nor `steps` entries in time.

    Source: Kundu et al., HIRE-SNN, ICCV 2021, section 3; Rathi and Roy, DIET-SNN, 2020.
    """
    if current.shape[0] not in (1, steps):
        raise ValueError(f"current has {current.shape[0]} time steps, expected 1 or {steps}")
    spikes, membrane = _LIFSequence.apply(current, threshold, leak, initial, steps, surrogate)
    return LIFOutput(spikes, membrane)


class LIF(nn.Module):
    """A layer of LIF neurons with one learnable threshold and one learnable leak.

    It holds no state: the membrane goes in and comes out.
    """

    def __init__(
        self, threshold: float = 1.0, leak: float = 1.0, surrogate: Surrogate | None = None
    ) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))
        self.leak = nn.Parameter(torch.tensor(float(leak)))
        self.surrogate: Surrogate = surrogate if surrogate is not None else Triangle()

    def forward(self, current: Tensor, steps: int, initial: Tensor | None = None) -> LIFOutput:
        """Spikes `[steps, batch, ...]` and final membrane `[batch, ...]`; see `lif_sequence`."""
        return lif_sequence(
            current,
            self.threshold,
            self.leak,
            steps=steps,
            surrogate=self.surrogate,
            initial=initial,
        )

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep `V >= 1e-3` and the leak in [0, 1]; called after every optimizer step."""
        self.threshold.clamp_(min=LEAST_THRESHOLD)
        self.leak.clamp_(0, 1)

    def extra_repr(self) -> str:
        """Threshold, leak and surrogate, for printing."""
        return (
            f"threshold={self.threshold.item():g}, leak={self.leak.item():g}, "
            f"surrogate={describe(self.surrogate)}"
        )


class FixedDropout(nn.Module):
    """Dropout whose mask is drawn once a forward and holds at every time step.

    Input and output `[time, batch, ...]`; the mask carries the factor `1 / (1 - p)`.
    Source: HIRE-SNN and DIET-SNN, `neuron_init`.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Apply one mask `[1, batch, ...]` to all time steps; identity in evaluation."""
        if not self.training or self.p == 0:
            return x
        return x * nn.functional.dropout(torch.ones_like(x[:1]), self.p, training=True)

    def extra_repr(self) -> str:
        """The rate, for printing."""
        return f"p={self.p:g}"
