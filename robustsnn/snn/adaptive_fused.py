"""The ASSG rule in one compiled pass; `robustsnn.estimators.assg.Adaptive` says what it computes.

Membranes are walked through again from the input current, as in `lif_fused`, so none is stored.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from robustsnn.snn.lif_fused import (
    Array,
    _compile,
    _dense,
    _flat,
    _over_time,
    _scalars,
    _spread,
)
from robustsnn.snn.lif_reference import empty_over_time

#: Neurons that go through all steps before the next ones.
BLOCK = 256


def _run(
    current: Array,
    grad: Array,
    found: Array,
    means: Array,
    deviations: Array,
    images: Array,
    rows: Array,
    remember: bool,
    threshold: Any,
    leak: Any,
    omega: Any,
    gamma: Any,
    first_rate: Any,
    second_rate: Any,
    small: Any,
    quarter_turn: Any,
    hard: bool,
    attached: bool,
    block: int,
    first: int,
    last: int,
) -> None:
    """Units `first` to `last`, of a block of neurons of an image each.

    `current` and `found` are `[1 or step, neuron]`, `grad` `[step, neuron]`, the memory
    `[step, row, neuron of an image]`.
    """
    steps = grad.shape[0]
    features = means.shape[2]
    static = current.shape[0] == 1
    one = threshold / threshold
    zero = threshold - threshold
    two = one + one
    blocks = (features + block - 1) // block
    ratio = np.empty((steps, block), current.dtype)
    slope = np.empty((steps, block), current.dtype)
    post = np.empty(block, current.dtype)
    for unit in range(first, last):
        image = images[unit // blocks]
        row = rows[unit // blocks]
        start = (unit % blocks) * block
        n = min(block, features - start)
        at = image * features + start
        for i in range(n):
            post[i] = zero
        for t in range(steps):
            now = current[0, at : at + n] if static else current[t, at : at + n]
            q = ratio[t]
            d = slope[t]
            mean = means[t, row, start : start + n]
            deviation = deviations[t, row, start : start + n]
            if hard:
                for i in range(n):
                    u = post[i] * leak + now[i]
                    q[i] = u / threshold
                    post[i] = u * (one - (one if q[i] > one else zero))
            else:
                for i in range(n):
                    u = post[i] * leak + now[i]
                    q[i] = u / threshold
                    post[i] = u - threshold * (one if q[i] > one else zero)
            if remember:
                for i in range(n):
                    distance = abs(q[i] - one)
                    m = mean[i] * first_rate + distance * (one - first_rate)
                    mean[i] = m
                    deviation[i] = deviation[i] * second_rate + abs(distance - m) * (
                        one - second_rate
                    )
            for i in range(n):
                alpha = omega / (mean[i] + gamma * deviation[i] + small)
                z = (q[i] - one) * alpha * quarter_turn
                d[i] = alpha / ((one + z * z) * (two * threshold))
        for i in range(n):
            post[i] = zero
        if static:
            out = found[0, at : at + n]
            for i in range(n):
                out[i] = zero
        for step in range(steps):
            t = steps - 1 - step
            q = ratio[t]
            d = slope[t]
            given = grad[t, at : at + n]
            out = found[0, at : at + n] if static else found[t, at : at + n]
            for i in range(n):
                through = given[i]
                passed = post[i]
                if attached:
                    through -= post[i] * (q[i] * threshold if hard else threshold)
                if hard:
                    passed = post[i] * (one - (one if q[i] > one else zero))
                each = through * d[i] + passed
                if static:
                    out[i] += each
                else:
                    out[i] = each
                post[i] = each * leak


kernel = _compile(_run)


def adaptive(
    current: Tensor,
    grad: Tensor,
    means: Tensor,
    deviations: Tensor,
    images: Tensor,
    rows: Tensor,
    later: Tensor,
    rows_later: Tensor,
    *,
    threshold: float,
    leak: float,
    hard: bool,
    attached: bool,
    omega: float,
    gamma: float,
    first: float,
    second: float,
) -> Tensor:
    """Gradient of the current, as large as it; the memory is brought up to date.

    Args:
        current: `[1 or time, batch, ...]`.
        grad: Of the spikes, `[time, batch, ...]`.
        means: `[time, row, neuron]`, neurons in the storage order of an image; changed.
        deviations: As `means`.
        images: Positions in the batch that are remembered, int64.
        rows: Their rows.
        later: Positions that only look at what is remembered.
        rows_later: Their rows.
        threshold: V.
        leak: Of the membrane.
        hard: Reset to zero.
        attached: Whether the reset's spike is differentiated.
        omega: See `Adaptive`, as are the rest.
        gamma: As said.
        first: As said.
        second: As said.
    """
    current = _dense(current.detach())
    one = current[0]
    steps = len(grad)
    flat = _flat(current)
    found = empty_over_time(one, len(current))
    features = means.shape[2]
    blocks = -(-features // BLOCK)
    for some, which, remember in ((images, rows, True), (later, rows_later, False)):
        if len(some) == 0:
            continue
        arguments = (
            flat,
            _over_time(grad, one, steps),
            _flat(found),
            means.numpy(),
            deviations.numpy(),
            some.numpy(),
            which.numpy(),
            remember,
            *_scalars(flat.dtype, threshold, leak, omega, gamma, first, second, 1e-4, math.pi / 2),
            hard,
            attached,
            BLOCK,
        )
        units = blocks * len(some)
        work = steps * features * len(some)
        _spread(lambda a, b, arguments=arguments: kernel(*arguments, a, b), units, work)  # type: ignore[misc]
    return found
