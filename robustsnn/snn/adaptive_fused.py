"""The ASSG rule in one compiled pass; `robustsnn.estimators.assg.Adaptive` says what it computes.

The membranes are computed again from the input current, as in `lif_kernels`: none is stored.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from robustsnn.snn.kernel_arrays import Array, dense, flat_array, over_time, scalars, spread
from robustsnn.snn.lif_kernels import compiled
from robustsnn.snn.lif_reference import empty_over_time

#: The number of neurons that go through all steps before the next ones.
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
    """Units `first` to `last`; a unit is a block of neurons of one image.

    `current` and `found` are `[1 or step, neuron]`, `grad` is `[step, neuron]`, and the memory
    (`means` and `deviations`) is `[step, row, neuron of an image]`.
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


kernel = compiled(_run)


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
    """The gradient of the current, shaped like it; the memory is brought up to date.

    Args:
        current: The input current, `[1 or time, batch, ...]`.
        grad: The gradient of the spikes, `[time, batch, ...]`.
        means: The remembered means, `[time, row, neuron]`, with the neurons in the storage order
            of an image; changed in place.
        deviations: The remembered deviations, shaped and changed like `means`.
        images: The positions in the batch whose distances are remembered, int64.
        rows: The row of each of `images` in the memory.
        later: The positions in the batch that only use what is remembered, int64.
        rows_later: The row of each of `later` in the memory.
        threshold: The threshold V.
        leak: The leak of the membrane.
        hard: Whether a spike sets the membrane to zero instead of subtracting the threshold.
        attached: Whether the spike of the reset is differentiated.
        omega: The constant omega of `robustsnn.estimators.assg.Adaptive`.
        gamma: Its constant gamma.
        first: Its rate of the means.
        second: Its rate of the deviations.
    """
    current = dense(current.detach())
    one = current[0]
    steps = len(grad)
    flat = flat_array(current)
    found = empty_over_time(one, len(current))
    features = means.shape[2]
    blocks = -(-features // BLOCK)
    for some, which, remember in ((images, rows, True), (later, rows_later, False)):
        if len(some) == 0:
            continue
        arguments = (
            flat,
            over_time(grad, one, steps),
            flat_array(found),
            means.numpy(),
            deviations.numpy(),
            some.numpy(),
            which.numpy(),
            remember,
            *scalars(flat.dtype, threshold, leak, omega, gamma, first, second, 1e-4, math.pi / 2),
            hard,
            attached,
            BLOCK,
        )
        units = blocks * len(some)
        work = steps * features * len(some)
        spread(lambda a, b, arguments=arguments: kernel(*arguments, a, b), units, work)  # type: ignore[misc]
    return found
