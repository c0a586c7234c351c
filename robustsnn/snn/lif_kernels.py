"""The compiled loops of LIF layers, forward and backward: plain Python that numba compiles.

A block of neurons goes through all time steps while its state stays in the first-level cache.
The operations and their order are those of `lif_reference`, so the spikes are the same bit for
bit. Nothing is contracted or replaced by a reciprocal; no fast-math flag is set.

Arrays are `[step, neuron]` and `[neuron]`, as `kernel_arrays` makes them; an absent one has no
rows. The code is compiled at first use and cached on disk; the machine needs no compiler.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from robustsnn.snn.kernel_arrays import Array

# numba keeps compiled code as pickles, and reads where, and by which class, from a file in the
# working folder, which may be a stranger's. Only the user's environment may say so.
for _name in ("CACHE_DIR", "CACHE_LOCATOR_CLASSES"):
    setattr(numba.config, _name, os.environ.get(f"NUMBA_{_name}", ""))

TRIANGLE, RECTANGLE, SIGMOID, ARCTAN, FAST_SIGMOID, GAUSSIAN, STRAIGHT_THROUGH = range(7)


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
    """Take `n` neurons from `at` on through all steps; their spikes go to `spikes[:, to:]`."""
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
    """Gradients of `n` neurons from `at` on; those of their spikes are `grad_spikes[given_at:]`.

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
        # The order of this sum is the same for any number of threads.
        for i in range(n):
            sums[row, 0] += by_threshold[i]
            sums[row, 1] += by_leak[i]


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """A function as machine code that runs without the interpreter lock.

    The code is cached on disk where a folder for the cache can be written.
    """
    settings: dict[str, Any] = {"nopython": True, "nogil": True, "error_model": "numpy"}
    try:
        found = numba.jit(**settings, cache=True)(function)
    except RuntimeError:
        # There is no folder for the cache that can be written.
        found = numba.jit(**settings)(function)
    result: Callable[..., None] = found
    return result


forward_run = compiled(_forward_run)
backward_run = compiled(_backward_run)


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
    """Spikes of the blocks `first` to `last` of neurons."""
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
    """Gradients of the blocks `first` to `last`; `sums[block]` is for threshold and leak."""
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
    """Means of spikes over 2 x 2 pixels, for the pairs of rows `first` to `last` of all images.

    Neurons lie with channels last: `[image, row, column, channel]`. The spikes themselves are
    never written out: `columns`, an even number, go through all steps in a buffer.
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
    """Gradients of the pairs of rows `first` to `last`, from those of the means over 2 x 2."""
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


forward = compiled(_forward)
backward = compiled(_backward)
forward_pooled = compiled(_forward_pooled)
backward_pooled = compiled(_backward_pooled)
