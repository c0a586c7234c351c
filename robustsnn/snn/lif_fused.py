"""The LIF sequence as two compiled loops: forward and backward in one pass over time each.

A block of neurons goes through all time steps while its state stays in the first-level cache.
Only the input current is kept for backward, which walks through the dynamics again: the same
operations in the same order as `lif_reference`, so the same spikes bit for bit. Nothing is
contracted or replaced by a reciprocal; no fast-math flag is set.

Compiled by numba at first use and cached on disk; needs no compiler on the machine.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

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

Array = NDArray[Any]

TRIANGLE, RECTANGLE, SIGMOID, ARCTAN, FAST_SIGMOID, GAUSSIAN, STRAIGHT_THROUGH = range(7)
CODES: dict[type[Surrogate], int] = {
    Triangle: TRIANGLE,
    Rectangle: RECTANGLE,
    Sigmoid: SIGMOID,
    Arctan: ARCTAN,
    FastSigmoid: FAST_SIGMOID,
    Gaussian: GAUSSIAN,
    StraightThrough: STRAIGHT_THROUGH,
}
DTYPES = (torch.float32, torch.float64)

# A block's membranes over all steps should stay in a first-level cache of 32 KiB.
BLOCK_BYTES = 16_384
LEAST_BLOCK, LARGEST_BLOCK = 64, 512
# Below so many neuron-steps a second thread costs more than it brings.
WORTH_A_THREAD = 65_536


def _forward_run(
    current: Array,
    initial: Array,
    spikes: Array,
    final: Array,
    post: Array,
    threshold: Any,
    leak: Any,
    hard: bool,
    at: int,
    to: int,
    n: int,
) -> None:
    """`n` neurons from `at` through all steps; their spikes go to `spikes[:, to:]`."""
    steps = spikes.shape[0]
    static = current.shape[0] == 1
    started = initial.shape[0] > 0
    one = threshold / threshold
    zero = threshold - threshold
    if started:
        before = initial[at : at + n]
        for i in range(n):
            post[i] = before[i]
    else:
        for i in range(n):
            post[i] = zero
    for t in range(steps):
        now = current[0, at : at + n] if static else current[t, at : at + n]
        out = spikes[t, to : to + n]
        if hard:
            for i in range(n):
                u = post[i] * leak + now[i]
                fired = one if u / threshold > one else zero
                out[i] = fired
                post[i] = u * (one - fired)
        else:
            for i in range(n):
                u = post[i] * leak + now[i]
                fired = one if u / threshold > one else zero
                out[i] = fired
                post[i] = u - threshold * fired
    last = final[at : at + n]
    for i in range(n):
        last[i] = post[i]


def _backward_run(
    current: Array,
    initial: Array,
    grad_spikes: Array,
    grad_final: Array,
    grad_current: Array,
    grad_initial: Array,
    sums: Array,
    scratch: Array,
    ratio: Array,
    rested: Array,
    totals: Array,
    threshold: Any,
    leak: Any,
    code: int,
    width: Any,
    peak: Any,
    slope: Any,
    hard: bool,
    attached: bool,
    parameters: bool,
    at: int,
    given_at: int,
    n: int,
    row: int,
) -> None:
    """Gradients of `n` neurons from `at`, given those of their spikes in `grad_spikes[given_at:]`.

    An absent array has no rows. `peak` and `slope` are those of `g(z) / V`; the gradients of
    threshold and leak are added to `sums[row]`.
    """
    steps = ratio.shape[0]
    static = current.shape[0] == 1
    started = initial.shape[0] > 0
    one = threshold / threshold
    zero = threshold - threshold
    half = one / (one + one)
    four = (one + one) * (one + one)
    post, d, through = scratch[0], scratch[1], scratch[2]
    if started:
        before = initial[at : at + n]
        for i in range(n):
            post[i] = before[i]
    else:
        for i in range(n):
            post[i] = zero
    for t in range(steps):
        now = current[0, at : at + n] if static else current[t, at : at + n]
        q = ratio[t]
        if hard:
            for i in range(n):
                u = post[i] * leak + now[i]
                r = u / threshold
                q[i] = r
                post[i] = u * (one - (one if r > one else zero))
        else:
            for i in range(n):
                u = post[i] * leak + now[i]
                r = u / threshold
                q[i] = r
                post[i] = u - threshold * (one if r > one else zero)
        if parameters:
            rest = rested[t]
            for i in range(n):
                rest[i] = post[i]
    # From here on `post` is the gradient of the membrane after reset.
    if grad_final.shape[0] > 0:
        given = grad_final[at : at + n]
        for i in range(n):
            post[i] = given[i]
    else:
        for i in range(n):
            post[i] = zero
    wanted = grad_current.shape[0] > 0
    if static and wanted:
        total = grad_current[0, at : at + n]
        for i in range(n):
            total[i] = zero
    by_threshold, by_leak = totals[0], totals[1]
    if parameters:
        for i in range(n):
            by_threshold[i] = 0.0
            by_leak[i] = 0.0
    for step in range(steps):
        t = steps - 1 - step
        q = ratio[t]
        if grad_spikes.shape[0] > 0:
            given = grad_spikes[t, given_at : given_at + n]
        else:
            given = through
            for i in range(n):
                through[i] = zero
        if attached and hard:
            for i in range(n):
                through[i] = given[i] - post[i] * (q[i] * threshold)
            given = through
        elif attached:
            for i in range(n):
                through[i] = given[i] - post[i] * threshold
            given = through
        if code == TRIANGLE:
            for i in range(n):
                g = max(peak - slope * abs(q[i] - one), zero)
                d[i] = g * given[i]
        elif code == RECTANGLE:
            for i in range(n):
                d[i] = (peak if abs(q[i] - one) < width else zero) * given[i]
        elif code == SIGMOID:
            for i in range(n):
                s = one / (one + math.exp((one - q[i]) / width))
                d[i] = four * peak * s * (one - s) * given[i]
        elif code == ARCTAN:
            for i in range(n):
                z = (q[i] - one) / width
                d[i] = peak / (one + z * z) * given[i]
        elif code == FAST_SIGMOID:
            for i in range(n):
                z = one + abs(q[i] - one) / width
                d[i] = peak / (z * z) * given[i]
        elif code == GAUSSIAN:
            for i in range(n):
                z = (q[i] - one) / width
                d[i] = peak * math.exp(-half * (z * z)) * given[i]
        else:
            for i in range(n):
                d[i] = peak * given[i]
        if parameters:
            if hard:
                for i in range(n):
                    by_threshold[i] -= np.float64(d[i]) * q[i]
            else:
                for i in range(n):
                    spike = one if q[i] > one else zero
                    by_threshold[i] -= np.float64(d[i]) * q[i] + np.float64(post[i]) * spike
        if hard:
            for i in range(n):
                post[i] = post[i] * (one - (one if q[i] > one else zero))
        if not wanted:
            total = through
        elif static:
            total = grad_current[0, at : at + n]
        else:
            total = grad_current[t, at : at + n]
        if static:
            for i in range(n):
                each = d[i] + post[i]
                d[i] = each
                total[i] += each
                post[i] = each * leak
        else:
            for i in range(n):
                each = d[i] + post[i]
                d[i] = each
                total[i] = each
                post[i] = each * leak
        if parameters and (t > 0 or started):
            before = rested[t - 1] if t > 0 else initial[at : at + n]
            for i in range(n):
                by_leak[i] += np.float64(d[i]) * before[i]
    if grad_initial.shape[0] > 0:
        total = grad_initial[at : at + n]
        for i in range(n):
            total[i] = post[i]
    if parameters:
        # In this order whatever the number of threads.
        for i in range(n):
            sums[row, 0] += by_threshold[i]
            sums[row, 1] += by_leak[i]


def _compile(function: Callable[..., None]) -> Callable[..., None]:
    """Machine code that runs without the interpreter lock; cached on disk where that works."""
    settings: dict[str, Any] = {"nopython": True, "nogil": True, "error_model": "numpy"}
    try:
        compiled = numba.jit(**settings, cache=True)(function)
    except RuntimeError:
        # No folder for the cache can be written.
        compiled = numba.jit(**settings)(function)
    result: Callable[..., None] = compiled
    return result


forward_run = _compile(_forward_run)
backward_run = _compile(_backward_run)


def _forward(
    current: Array,
    initial: Array,
    spikes: Array,
    final: Array,
    threshold: Any,
    leak: Any,
    hard: bool,
    block: int,
    first: int,
    last: int,
) -> None:
    """Blocks `first` to `last` of neurons; arrays are `[step, neuron]` and `[neuron]`."""
    neurons = current.shape[1]
    post = np.empty(block, current.dtype)
    for index in range(first, last):
        at = index * block
        n = min(block, neurons - at)
        forward_run(current, initial, spikes, final, post, threshold, leak, hard, at, at, n)


def _backward(
    current: Array,
    initial: Array,
    grad_spikes: Array,
    grad_final: Array,
    grad_current: Array,
    grad_initial: Array,
    sums: Array,
    threshold: Any,
    leak: Any,
    code: int,
    width: Any,
    peak: Any,
    slope: Any,
    hard: bool,
    attached: bool,
    parameters: bool,
    steps: int,
    block: int,
    first: int,
    last: int,
) -> None:
    """Gradients of blocks `first` to `last`; `sums[block]` holds those of threshold and leak."""
    neurons = current.shape[1]
    scratch = np.empty((3, block), current.dtype)
    ratio = np.empty((steps, block), current.dtype)
    rested = np.empty((steps if parameters else 0, block), current.dtype)
    totals = np.empty((2, block), np.float64)
    for index in range(first, last):
        at = index * block
        n = min(block, neurons - at)
        backward_run(
            current, initial, grad_spikes, grad_final, grad_current, grad_initial, sums,
            scratch, ratio, rested, totals, threshold, leak, code, width, peak, slope,
            hard, attached, parameters, at, at, n, index,
        )  # fmt: skip


def _forward_pooled(
    current: Array,
    initial: Array,
    pooled: Array,
    final: Array,
    threshold: Any,
    leak: Any,
    hard: bool,
    width: int,
    channels: int,
    columns: int,
    first: int,
    last: int,
) -> None:
    """Pairs of rows `first` to `last`, of all images; `pooled[step]` are means over 2 x 2.

    Neurons lie channels last: `[image, row, column, channel]`. The spikes themselves are never
    written out: `columns`, an even number, go through all steps in a buffer.
    """
    steps = pooled.shape[0]
    quarter = threshold / threshold / np.float32(4.0)
    run = columns * channels
    post = np.empty(run, current.dtype)
    spikes = np.empty((steps, 2 * run), current.dtype)
    for pair in range(first, last):
        for column in range(0, width, columns):
            wide = min(columns, width - column)
            n = wide * channels
            for row in range(2):
                at = ((2 * pair + row) * width + column) * channels
                forward_run(
                    current, initial, spikes, final, post, threshold, leak, hard, at, row * run, n
                )
            to = (pair * (width // 2) + column // 2) * channels
            for t in range(steps):
                upper, lower = spikes[t, :run], spikes[t, run:]
                for x in range(wide // 2):
                    out = pooled[t, to + x * channels : to + (x + 1) * channels]
                    a = upper[2 * x * channels : (2 * x + 1) * channels]
                    b = upper[(2 * x + 1) * channels : (2 * x + 2) * channels]
                    c = lower[2 * x * channels : (2 * x + 1) * channels]
                    d = lower[(2 * x + 1) * channels : (2 * x + 2) * channels]
                    for i in range(channels):
                        out[i] = (a[i] + b[i] + c[i] + d[i]) * quarter


def _backward_pooled(
    current: Array,
    initial: Array,
    grad_pooled: Array,
    grad_final: Array,
    grad_current: Array,
    grad_initial: Array,
    sums: Array,
    threshold: Any,
    leak: Any,
    code: int,
    surrogate_width: Any,
    peak: Any,
    slope: Any,
    hard: bool,
    attached: bool,
    parameters: bool,
    steps: int,
    width: int,
    channels: int,
    columns: int,
    first: int,
    last: int,
) -> None:
    """Gradients of pairs of rows `first` to `last`, given those of the means over 2 x 2."""
    quarter = threshold / threshold / np.float32(4.0)
    run = columns * channels
    scratch = np.empty((3, run), current.dtype)
    ratio = np.empty((steps, run), current.dtype)
    rested = np.empty((steps if parameters else 0, run), current.dtype)
    totals = np.empty((2, run), np.float64)
    given = np.empty((steps if grad_pooled.shape[0] > 0 else 0, run), current.dtype)
    for pair in range(first, last):
        for column in range(0, width, columns):
            wide = min(columns, width - column)
            n = wide * channels
            origin = (pair * (width // 2) + column // 2) * channels
            for t in range(given.shape[0]):
                for x in range(wide // 2):
                    each = grad_pooled[t, origin + x * channels : origin + (x + 1) * channels]
                    left = given[t, 2 * x * channels : (2 * x + 1) * channels]
                    right = given[t, (2 * x + 1) * channels : (2 * x + 2) * channels]
                    for i in range(channels):
                        value = each[i] * quarter
                        left[i] = value
                        right[i] = value
            for row in range(2):
                at = ((2 * pair + row) * width + column) * channels
                backward_run(
                    current, initial, given, grad_final, grad_current, grad_initial, sums,
                    scratch, ratio, rested, totals, threshold, leak, code, surrogate_width, peak,
                    slope, hard, attached, parameters, at, 0, n, pair,
                )  # fmt: skip


forward = _compile(_forward)
backward = _compile(_backward)
forward_pooled = _compile(_forward_pooled)
backward_pooled = _compile(_backward_pooled)


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="lif")


# A forked child has none of its parent's threads, and would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _spread(run: Callable[[int, int], None], units: int, work: int) -> None:
    """Run over all units of equal size, split among as many threads as torch uses."""
    parts = max(1, min(torch.get_num_threads(), work // WORTH_A_THREAD, units))
    edges = [units * i // parts for i in range(parts + 1)]
    others = [_pool(parts - 1).submit(run, edges[i], edges[i + 1]) for i in range(1, parts)]
    run(edges[0], edges[1])
    for other in others:
        other.result()


@dataclass(frozen=True)
class _Plan:
    """How the neurons of a layer are cut into units that stay in cache.

    `shape` goes to the kernel between its other arguments and the range of units.
    """

    units: int
    shape: tuple[int, ...]
    pooled: bool


def _plan(one: Tensor, steps: int, pool: bool) -> _Plan:
    """For a layer `[batch, ...]` whose buffers hold that many steps."""
    lanes = BLOCK_BYTES // (steps * one.element_size())
    lanes = max(LEAST_BLOCK, min(LARGEST_BLOCK, lanes))
    if not pool:
        return _Plan(-(-one.numel() // lanes), (lanes,), False)
    images, channels, height, width = one.shape
    columns = max(2, min(width, lanes // channels // 2 * 2))
    return _Plan(images * (height // 2), (width, channels, columns), True)


def can_pool(current: Tensor) -> bool:
    """Whether a layer's current lies such that its spikes can be averaged as they are made."""
    one = current[0]
    return (
        one.dim() == 4
        and one.is_contiguous(memory_format=torch.channels_last)
        and one.shape[2] % 2 == 0
        and one.shape[3] % 2 == 0
    )


class FusedLIF(torch.autograd.Function):
    """The dynamics of `lif_reference`, keeping only the input current for backward.

    With `pool`, the spikes come out averaged over 2 x 2 pixels.
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
        # Attacks never use the final membrane: zeros made for its gradient would be read again.
        ctx.set_materialize_grads(False)
        current = _dense(current)
        one = current[0]
        spikes = empty_over_time(_halved(one) if pool else one, steps)
        final = torch.empty_like(one)
        plan = _plan(one, steps if pool else 1, pool)
        flat = _flat(current)
        kernel = forward_pooled if pool else forward
        arguments = (
            flat,
            _one(initial, one),
            _flat(spikes),
            _flat(final.unsqueeze(0))[0],
            *_scalars(flat.dtype, threshold.item(), leak.item()),
            hard,
            *plan.shape,
        )
        work = steps * flat.shape[1]
        _spread(lambda first, last: kernel(*arguments, first, last), plan.units, work)
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
        flat = _flat(current)
        plan = _plan(one, steps, ctx.pool)
        grad_current = empty_over_time(one, len(current)) if needs_current else None
        grad_initial = torch.empty_like(one) if needs_initial else None
        sums = np.zeros((plan.units, 2))
        peak = surrogate.amplitude / threshold.item()
        kernel = backward_pooled if plan.pooled else backward
        arguments = (
            flat,
            _one(initial, one),
            _over_time(grad_spikes, _halved(one) if plan.pooled else one, steps),
            _one(grad_final, one),
            np.empty((0, 0), flat.dtype) if grad_current is None else _flat(grad_current),
            _one(grad_initial, one),
            sums,
            *_scalars(flat.dtype, threshold.item(), leak.item()),
            CODES[type(surrogate)],
            *_scalars(flat.dtype, surrogate.width, peak, peak / surrogate.width),
            ctx.hard,
            ctx.attached,
            needs_threshold or needs_leak,
            steps,
            *plan.shape,
        )
        work = steps * flat.shape[1]
        _spread(lambda first, last: kernel(*arguments, first, last), plan.units, work)
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
    """Something with the shape, type and layout of one step of means over 2 x 2."""
    images, channels, height, width = one.shape
    shape = (images, channels, height // 2, width // 2)
    return torch.empty(shape, dtype=one.dtype, memory_format=torch.channels_last)


def _scalars(dtype: Any, *values: float) -> tuple[Any, ...]:
    return tuple(dtype.type(value) for value in values)


def _dense(current: Tensor) -> Tensor:
    """The same values with every step dense in memory and the steps one after the other."""
    one = current[0]
    layout = _layout(one)
    if one.is_contiguous(memory_format=layout) and (
        len(current) == 1 or current.stride(0) == one.numel()
    ):
        return current
    copy = empty_over_time(one, len(current))
    copy.copy_(current)
    return copy


def _layout(one: Tensor) -> torch.memory_format:
    if one.dim() == 4 and one.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _flat(tensor: Tensor) -> Array:
    """The memory of a dense `[step, ...]` as `[step, neuron]`, neurons in storage order."""
    steps = len(tensor)
    neurons = tensor[0].numel()
    view = tensor.detach().as_strided((steps, neurons), (neurons, 1))
    array: Array = view.numpy()
    return array


def _like(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor `[batch, ...]` in the memory layout of `like`."""
    if tensor.stride() == like.stride():
        return tensor
    copy = torch.empty_like(like)
    return copy.copy_(tensor)


def _one(tensor: Tensor | None, like: Tensor) -> Array:
    if tensor is None:
        return np.empty(0, like.detach().numpy().dtype)
    array: Array = _flat(_like(tensor.detach(), like).unsqueeze(0))[0]
    return array


def _over_time(tensor: Tensor | None, like: Tensor, steps: int) -> Array:
    if tensor is None:
        return np.empty((0, 0), like.detach().numpy().dtype)
    tensor = tensor.detach()
    if tensor[0].stride() != like.stride() or (steps > 1 and tensor.stride(0) != like.numel()):
        copy = empty_over_time(like, steps)
        tensor = copy.copy_(tensor)
    return _flat(tensor)
