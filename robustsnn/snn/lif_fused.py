"""LIF layers on compiled loops: forward and backward each go through all time steps at once.

Only the input current is kept for backward, which walks through the dynamics again: the same
operations in the same order as `lif_reference`, so the same spikes bit for bit. The loops are in
`lif_kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustsnn.snn.kernel_arrays import dense, flat_array, one_array, over_time, scalars, spread
from robustsnn.snn.lif_kernels import (
    ARCTAN,
    FAST_SIGMOID,
    GAUSSIAN,
    RECTANGLE,
    SIGMOID,
    STRAIGHT_THROUGH,
    TRIANGLE,
    backward,
    backward_pooled,
    forward,
    forward_pooled,
)
from robustsnn.snn.lif_reference import empty_over_time
from robustsnn.snn.surrogate import (
    Arctan,
    FastSigmoid,
    Gaussian,
    Rectangle,
    Sigmoid,
    StraightThrough,
    Surrogate,
    Triangle,
)

CODES: dict[type[Surrogate], int] = {
    Triangle: TRIANGLE,
    Rectangle: RECTANGLE,
    Sigmoid: SIGMOID,
    Arctan: ARCTAN,
    FastSigmoid: FAST_SIGMOID,
    Gaussian: GAUSSIAN,
    StraightThrough: STRAIGHT_THROUGH,
}
SURROGATES = tuple(CODES)
DTYPES = (torch.float32, torch.float64)

# The membranes of a block over all steps should stay in a first-level cache of 32 KiB.
BLOCK_BYTES = 16_384
LEAST_BLOCK, LARGEST_BLOCK = 64, 512


@dataclass(frozen=True)
class _Plan:
    """How the neurons of a layer are cut into units that stay in cache.

    The kernel takes `shape` between its other arguments and the range of units.
    """

    units: int
    shape: tuple[int, ...]
    pooled: bool


def _plan(one: Tensor, steps: int, pool: bool) -> _Plan:
    """The plan for a layer `[batch, ...]` whose buffers hold that many steps."""
    lanes = BLOCK_BYTES // (steps * one.element_size())
    lanes = max(LEAST_BLOCK, min(LARGEST_BLOCK, lanes))
    if not pool:
        return _Plan(-(-one.numel() // lanes), (lanes,), False)
    images, channels, height, width = one.shape
    columns = max(2, min(width, lanes // channels // 2 * 2))
    return _Plan(images * (height // 2), (width, channels, columns), True)


def can_pool(current: Tensor) -> bool:
    """Whether the memory of a layer's current allows averaging its spikes as they are made."""
    one = current[0]
    return (
        one.dim() == 4
        and one.is_contiguous(memory_format=torch.channels_last)
        and one.shape[2] % 2 == 0
        and one.shape[3] % 2 == 0
    )


class FusedLIF(torch.autograd.Function):
    """The dynamics of `lif_reference`; only the input current is kept for backward.

    With `pool`, the spikes come out averaged over windows of 2 x 2 pixels.
    """

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
        pool: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Spikes `[steps, batch, ...]` and final membrane `[batch, ...]`."""
        # Attacks never use the final membrane; zeros as its gradient would be read for nothing.
        ctx.set_materialize_grads(False)
        current = dense(current)
        one = current[0]
        spikes = empty_over_time(_halved(one) if pool else one, steps)
        final = torch.empty_like(one)
        plan = _plan(one, steps if pool else 1, pool)
        flat = flat_array(current)
        kernel = forward_pooled if pool else forward
        arguments = (
            flat,
            one_array(initial, one),
            flat_array(spikes),
            flat_array(final.unsqueeze(0))[0],
            *scalars(flat.dtype, threshold.item(), leak.item()),
            hard,
            *plan.shape,
        )
        work = steps * flat.shape[1]
        spread(lambda first, last: kernel(*arguments, first, last), plan.units, work)
        ctx.save_for_backward(current, threshold, leak, initial)
        ctx.steps, ctx.surrogate, ctx.hard, ctx.attached = steps, surrogate, hard, attached
        ctx.pool = pool
        return spikes, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of current, threshold, leak and initial membrane."""
        grad_spikes, grad_final = grads
        current, threshold, leak, initial = ctx.saved_tensors
        needs_current, needs_threshold, needs_leak, needs_initial = ctx.needs_input_grad[:4]
        steps: int = ctx.steps
        surrogate: Surrogate = ctx.surrogate
        one = current[0]
        flat = flat_array(current)
        plan = _plan(one, steps, ctx.pool)
        grad_current = empty_over_time(one, len(current)) if needs_current else None
        grad_initial = torch.empty_like(one) if needs_initial else None
        sums = np.zeros((plan.units, 2))
        peak = surrogate.amplitude / threshold.item()
        kernel = backward_pooled if plan.pooled else backward
        arguments = (
            flat,
            one_array(initial, one),
            over_time(grad_spikes, _halved(one) if plan.pooled else one, steps),
            one_array(grad_final, one),
            np.empty((0, 0), flat.dtype) if grad_current is None else flat_array(grad_current),
            one_array(grad_initial, one),
            sums,
            *scalars(flat.dtype, threshold.item(), leak.item()),
            CODES[type(surrogate)],
            *scalars(flat.dtype, surrogate.width, peak, peak / surrogate.width),
            ctx.hard,
            ctx.attached,
            needs_threshold or needs_leak,
            steps,
            *plan.shape,
        )
        work = steps * flat.shape[1]
        spread(lambda first, last: kernel(*arguments, first, last), plan.units, work)
        by_threshold, by_leak = sums.sum(0)
        return (
            grad_current,
            threshold.new_tensor(by_threshold).reshape(threshold.shape)
            if needs_threshold
            else None,
            leak.new_tensor(by_leak).reshape(leak.shape) if needs_leak else None,
            grad_initial,
            *(None,) * 5,
        )


def _halved(one: Tensor) -> Tensor:
    """An empty tensor with the shape, type and layout of one step of means over 2 x 2."""
    images, channels, height, width = one.shape
    shape = (images, channels, height // 2, width // 2)
    return torch.empty(shape, dtype=one.dtype, memory_format=torch.channels_last)
