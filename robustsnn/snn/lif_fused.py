"""The LIF sequence as two compiled loops: forward and backward in one pass over time each.

A block of neurons goes through all time steps while its state stays in the first-level cache.
Only the input current is kept for backward, which walks through the dynamics again: the same
operations in the same order as `lif_reference`, so the same spikes bit for bit. Nothing is
contracted or replaced by a reciprocal; no fast-math flag is set.

Compiled by numba at first use and cached on disk; needs no compiler on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


def _walk(
    current: Array,
    initial: Array,
    spikes: Array,
    final: Array,
    threshold: Any,
    leak: Any,
    hard: bool,
    first: int,
    last: int,
    block: int,
) -> None:
    """Neurons `first` to `last` through all steps; arrays are `[step, neuron]` and `[neuron]`."""
    steps = spikes.shape[0]
    static = current.shape[0] == 1
    one = threshold / threshold
    zero = threshold - threshold
    post = np.empty(block, spikes.dtype)
    for begin in range(first, last, block):
        end = min(begin + block, last)
        n = end - begin
        before = initial[begin:end] if initial.shape[0] > 0 else final[begin:end]
        for t in range(steps):
            now = current[0, begin:end] if static else current[t, begin:end]
            out = spikes[t, begin:end]
            if t == 0 and initial.shape[0] == 0:
                for i in range(n):
                    post[i] = now[i]
            elif t == 0:
                for i in range(n):
                    post[i] = before[i] * leak + now[i]
            else:
                for i in range(n):
                    post[i] = post[i] * leak + now[i]
            if hard:
                for i in range(n):
                    fired = one if post[i] / threshold > one else zero
                    out[i] = fired
                    post[i] = post[i] * (one - fired)
            else:
                for i in range(n):
                    fired = one if post[i] / threshold > one else zero
                    out[i] = fired
                    post[i] = post[i] - threshold * fired
        for i in range(n):
            final[begin + i] = post[i]


def _walk_back(
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
    first: int,
    last: int,
    block: int,
) -> None:
    """Gradients of neurons `first` to `last`; `sums[block]` holds those of threshold and leak.

    An absent array has no rows; `first` is a multiple of `block`; `peak` and `slope` are those
    of `g(z) / V`.
    """
    static = current.shape[0] == 1
    started = initial.shape[0] > 0
    one = threshold / threshold
    zero = threshold - threshold
    half = one / (one + one)
    four = (one + one) * (one + one)
    ratio = np.empty((steps, block), current.dtype)
    rested = np.empty((steps, block), current.dtype)
    post = np.empty(block, current.dtype)
    d = np.empty(block, current.dtype)
    through = np.empty(block, current.dtype)
    by_threshold = np.empty(block, np.float64)
    by_leak = np.empty(block, np.float64)
    for begin in range(first, last, block):
        end = min(begin + block, last)
        n = end - begin
        for t in range(steps):
            now = current[0, begin:end] if static else current[t, begin:end]
            q = ratio[t]
            if t == 0 and not started:
                for i in range(n):
                    post[i] = now[i]
            elif t == 0:
                before = initial[begin:end]
                for i in range(n):
                    post[i] = before[i] * leak + now[i]
            else:
                for i in range(n):
                    post[i] = post[i] * leak + now[i]
            if hard:
                for i in range(n):
                    u = post[i]
                    q[i] = u / threshold
                    post[i] = u * (one - (one if q[i] > one else zero))
            else:
                for i in range(n):
                    u = post[i]
                    q[i] = u / threshold
                    post[i] = u - threshold * (one if q[i] > one else zero)
            if parameters:
                rest = rested[t]
                for i in range(n):
                    rest[i] = post[i]
        # From here on `post` is the gradient of the membrane after reset.
        for i in range(n):
            by_threshold[i] = 0.0
            by_leak[i] = 0.0
        if grad_final.shape[0] > 0:
            given = grad_final[begin:end]
            for i in range(n):
                post[i] = given[i]
        else:
            for i in range(n):
                post[i] = zero
        if static and grad_current.shape[0] > 0:
            total = grad_current[0, begin:end]
            for i in range(n):
                total[i] = zero
        for step in range(steps):
            t = steps - 1 - step
            q = ratio[t]
            if grad_spikes.shape[0] > 0:
                given = grad_spikes[t, begin:end]
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
                    d[i] = d[i] + post[i] * (one - (one if q[i] > one else zero))
            else:
                for i in range(n):
                    d[i] = d[i] + post[i]
            if parameters and (t > 0 or started):
                before = rested[t - 1] if t > 0 else initial[begin:end]
                for i in range(n):
                    by_leak[i] += np.float64(d[i]) * before[i]
            if grad_current.shape[0] > 0:
                if static:
                    total = grad_current[0, begin:end]
                    for i in range(n):
                        total[i] += d[i]
                else:
                    total = grad_current[t, begin:end]
                    for i in range(n):
                        total[i] = d[i]
            for i in range(n):
                post[i] = d[i] * leak
        if grad_initial.shape[0] > 0:
            for i in range(n):
                grad_initial[begin + i] = post[i]
        if parameters:
            here = begin // block
            for i in range(n):
                sums[here, 0] += by_threshold[i]
                sums[here, 1] += by_leak[i]


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


walk = _compile(_walk)
walk_back = _compile(_walk_back)


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="lif")


def _spread(run: Callable[[int, int], None], neurons: int, steps: int, block: int) -> None:
    """Run over all neurons, in as many ranges of whole blocks as torch uses threads."""
    parts = min(torch.get_num_threads(), max(1, neurons * steps // WORTH_A_THREAD))
    blocks = -(-neurons // block)
    edges = [min(blocks * i // parts * block, neurons) for i in range(parts + 1)]
    edges[-1] = neurons
    if parts == 1:
        run(0, neurons)
        return
    others = [_pool(parts - 1).submit(run, edges[i], edges[i + 1]) for i in range(1, parts)]
    run(edges[0], edges[1])
    for other in others:
        other.result()


def _block(steps: int, itemsize: int) -> int:
    return max(LEAST_BLOCK, min(LARGEST_BLOCK, BLOCK_BYTES // (steps * itemsize)))


class FusedLIF(torch.autograd.Function):
    """The dynamics of `lif_reference`, keeping only the input current for backward."""

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
        current = _dense(current)
        like = current[0]
        spikes = empty_over_time(like, steps)
        final = torch.empty_like(like)
        flat = _flat(current)
        start = _one(initial, like)
        outs, last = _flat(spikes), _flat(final.unsqueeze(0))[0]
        scalars = _scalars(flat.dtype, threshold.item(), leak.item())
        block = _block(1, flat.itemsize)

        def run(begin: int, end: int) -> None:
            walk(flat, start, outs, last, *scalars, hard, begin, end, block)

        _spread(run, flat.shape[1], steps, block)
        ctx.save_for_backward(current, threshold, leak, initial)
        ctx.steps, ctx.surrogate, ctx.hard, ctx.attached = steps, surrogate, hard, attached
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
        like = current[0]
        flat = _flat(current)
        neurons = flat.shape[1]
        block = _block(steps, flat.itemsize)
        grad_current = empty_over_time(like, len(current)) if needs_current else None
        grad_initial = torch.empty_like(like) if needs_initial else None
        sums = np.zeros((-(-neurons // block), 2))
        arrays = (
            flat,
            _one(initial, like),
            _over_time(grad_spikes, like, steps),
            _one(grad_final, like),
            np.empty((0, 0), flat.dtype) if grad_current is None else _flat(grad_current),
            _one(grad_initial, like),
            sums,
        )
        peak = surrogate.amplitude / threshold.item()
        scalars = (
            *_scalars(flat.dtype, threshold.item(), leak.item()),
            CODES[type(surrogate)],
            *_scalars(flat.dtype, surrogate.width, peak, peak / surrogate.width),
        )
        options = (ctx.hard, ctx.attached, needs_threshold or needs_leak, steps)

        def run(begin: int, end: int) -> None:
            walk_back(*arrays, *scalars, *options, begin, end, block)

        _spread(run, neurons, steps, block)
        by_threshold, by_leak = sums.sum(0)
        return (
            grad_current,
            threshold.new_tensor(by_threshold) if needs_threshold else None,
            leak.new_tensor(by_leak) if needs_leak else None,
            grad_initial,
            *(None,) * 4,
        )


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
