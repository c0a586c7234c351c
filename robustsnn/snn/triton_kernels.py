"""The loops of LIF layers and of backward rules as Triton kernels for a GPU.

One program takes a block of neurons through all time steps; its state stays in registers, and all
loads and stores are of neurons that lie next to each other. The operations and their order are
those of `lif_reference`, so the spikes are the same bit for bit if nothing is contracted: kernels
are launched with `enable_fp_fusion=False`, by which `u = leak * u + I` is a product and a sum and
never one fused multiply-add, and the division by the threshold is `div_rn`, which rounds as IEEE
754 says, where `/` is a faster one that does not.

Arrays are `[step, neuron]` and `[neuron]`, and the threshold and the leak are arrays of one entry,
so that the host never waits for them. What is not there is left out by a constant of the kernel.
Kernels are compiled once for each set of constants (capital letters): the numbers of steps and of
neurons are none.

The functions call no function of their own, since `lif_triton` compiles or interprets each by
itself, and have no annotations but `tl.constexpr`, since Triton would look for their names.
"""

from __future__ import annotations

import importlib
from typing import Any, no_type_check

tl: Any
try:
    tl = importlib.import_module("triton.language")
except ImportError:
    # Tools that import every module find this one where Triton is absent, too.
    tl = None


@no_type_check
def lif_forward(
    current,
    initial,
    spikes,
    membranes,
    final,
    threshold,
    leak,
    neurons,
    steps,
    STATIC: tl.constexpr,
    STARTED: tl.constexpr,
    HARD: tl.constexpr,
    FIRES: tl.constexpr,
    KEEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Spikes and the final membrane (with FIRES), and the membranes before reset (with KEEPS)."""
    kind = current.dtype.element_ty
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < neurons
    v = tl.load(threshold).to(kind)
    decay = tl.load(leak).to(kind)
    post = tl.full([BLOCK], 0.0, kind)
    if STARTED:
        post = tl.load(initial + at, mask=inside, other=0.0)
    row = tl.full([], 0, tl.int64) + neurons
    here = at
    for _ in range(steps):
        if STATIC:
            now = tl.load(current + at, mask=inside, other=0.0)
        else:
            now = tl.load(current + here, mask=inside, other=0.0)
        u = post * decay + now
        fired = (tl.div_rn(u, v) > 1.0).to(kind)
        if HARD:
            post = u * (1.0 - fired)
        else:
            post = u - v * fired
        if FIRES:
            tl.store(spikes + here, fired, mask=inside)
        if KEEPS:
            tl.store(membranes + here, u, mask=inside)
        here += row
    if FIRES:
        tl.store(final + at, post, mask=inside)


@no_type_check
def lif_backward(
    membranes,
    initial,
    grad_spikes,
    grad_final,
    grad_current,
    grad_initial,
    sums,
    threshold,
    leak,
    neurons,
    steps,
    STATIC: tl.constexpr,
    STARTED: tl.constexpr,
    HARD: tl.constexpr,
    ATTACHED: tl.constexpr,
    GIVEN: tl.constexpr,
    ENDED: tl.constexpr,
    WANTED: tl.constexpr,
    START_WANTED: tl.constexpr,
    PARAMETERS: tl.constexpr,
    SURROGATE: tl.constexpr,
    WIDTH: tl.constexpr,
    AMPLITUDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of the current (WANTED), the initial membrane (START_WANTED) and the parameters.

    GIVEN and ENDED say whether spikes and final membrane have a gradient. With PARAMETERS, each
    program writes its share of the gradients of threshold and leak to `sums[program]`, in float64;
    sums that programs add up by themselves would come in another order each time.
    """
    kind = membranes.dtype.element_ty
    program = tl.program_id(0)
    at = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < neurons
    v = tl.load(threshold).to(kind)
    decay = tl.load(leak).to(kind)
    row = tl.full([], 0, tl.int64) + neurons
    here = at + row * (steps - 1)
    # The gradient of the membrane after reset.
    after = tl.full([BLOCK], 0.0, kind)
    if ENDED:
        after = tl.load(grad_final + at, mask=inside, other=0.0)
    total = tl.full([BLOCK], 0.0, kind)
    by_threshold = tl.full([BLOCK], 0.0, tl.float64)
    by_leak = tl.full([BLOCK], 0.0, tl.float64)
    for step in range(steps):
        u = tl.load(membranes + here, mask=inside, other=0.0)
        ratio = tl.div_rn(u, v)
        z = ratio - 1.0
        if SURROGATE == "triangle":
            slope = tl.maximum(
                AMPLITUDE - tl.abs(z) * (AMPLITUDE / WIDTH), 0.0, tl.PropagateNan.ALL
            )
        elif SURROGATE == "rectangle":
            slope = (tl.abs(z) < WIDTH).to(kind) * AMPLITUDE
        elif SURROGATE == "sigmoid":
            share = 1.0 / (1.0 + tl.exp(-z / WIDTH))
            slope = 4.0 * AMPLITUDE * share * (1.0 - share)
        elif SURROGATE == "arctan":
            scaled = z / WIDTH
            slope = AMPLITUDE / (1.0 + scaled * scaled)
        elif SURROGATE == "fast-sigmoid":
            scaled = 1.0 + tl.abs(z) / WIDTH
            slope = AMPLITUDE / (scaled * scaled)
        elif SURROGATE == "gaussian":
            scaled = z / WIDTH
            slope = AMPLITUDE * tl.exp(-0.5 * scaled * scaled)
        else:
            slope = tl.full([BLOCK], AMPLITUDE, kind)
        through = tl.full([BLOCK], 0.0, kind)
        if GIVEN:
            through = tl.load(grad_spikes + here, mask=inside, other=0.0)
        if ATTACHED:
            if HARD:
                through = through - after * u
            else:
                through = through - after * v
        d = slope / v * through
        fired = (ratio > 1.0).to(kind)
        if PARAMETERS:
            by_threshold -= (d * ratio).to(tl.float64)
            if not HARD:
                by_threshold -= (after * fired).to(tl.float64)
        if HARD:
            d = d + after * (1.0 - fired)
        else:
            d = d + after
        if PARAMETERS:
            # The membrane after the reset of the step before.
            earlier = inside & (step < steps - 1)
            before = tl.load(membranes + here - row, mask=earlier, other=0.0)
            flipped = (tl.div_rn(before, v) > 1.0).to(kind)
            if HARD:
                rest = before * (1.0 - flipped)
            else:
                rest = before - v * flipped
            if STARTED:
                first = inside & (step == steps - 1)
                rest += tl.load(initial + at, mask=first, other=0.0)
            by_leak += (d * rest).to(tl.float64)
        if STATIC:
            total += d
        elif WANTED:
            tl.store(grad_current + here, d, mask=inside)
        after = d * decay
        here -= row
    if STATIC:
        if WANTED:
            tl.store(grad_current + at, total, mask=inside)
    if START_WANTED:
        tl.store(grad_initial + at, after, mask=inside)
    if PARAMETERS:
        # Lanes beyond the last neuron hold a membrane and gradients of zero: they add nothing.
        tl.store(sums + 2 * program, tl.reduce(by_threshold, 0, tl.standard._sum_combine))
        tl.store(sums + 2 * program + 1, tl.reduce(by_leak, 0, tl.standard._sum_combine))


@no_type_check
def hart(
    current,
    grad,
    found,
    threshold,
    leak,
    neurons,
    steps,
    STATIC: tl.constexpr,
    HARD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The rule of `robustsnn.estimators.hart`: one gradient for every step, `found[neuron]`."""
    kind = current.dtype.element_ty
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < neurons
    v = tl.load(threshold).to(kind)
    decay = tl.load(leak).to(kind)
    post = tl.full([BLOCK], 0.0, kind)
    total = tl.full([BLOCK], 0.0, kind)
    row = tl.full([], 0, tl.int64) + neurons
    here = at
    for _ in range(steps):
        if STATIC:
            now = tl.load(current + at, mask=inside, other=0.0)
        else:
            now = tl.load(current + here, mask=inside, other=0.0)
        u = post * decay + now
        ratio = tl.div_rn(u, v)
        fired = (ratio > 1.0).to(kind)
        if HARD:
            post = u * (1.0 - fired)
        else:
            post = u - v * fired
        given = tl.load(grad + here, mask=inside, other=0.0)
        near = tl.maximum(WIDTH - tl.abs(ratio - 1.0), 0.0, tl.PropagateNan.ALL)
        total += given * near
        here += row
    tl.store(found + at, total / (WIDTH * WIDTH * v * steps), mask=inside)


@no_type_check
def bptr(
    spikes,
    grad,
    found,
    neurons,
    steps,
    LEAK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The rule of `robustsnn.estimators.bptr`: the gradient passes where a neuron fired at all."""
    kind = spikes.dtype.element_ty
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < neurons
    row = tl.full([], 0, tl.int64) + neurons
    share = tl.full([BLOCK], LEAK, kind)
    here = at
    for _ in range(steps):
        share = tl.maximum(share, tl.load(spikes + here, mask=inside, other=0.0))
        here += row
    here = at
    for _ in range(steps):
        given = tl.load(grad + here, mask=inside, other=0.0)
        tl.store(found + here, given * share, mask=inside)
        here += row


@no_type_check
def rga(
    current,
    grad,
    found,
    threshold,
    leak,
    neurons,
    steps,
    STATIC: tl.constexpr,
    GAMMA: tl.constexpr,
    BETA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The rule of `robustsnn.estimators.rga`: the slope of the rate at the mean current."""
    kind = current.dtype.element_ty
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < neurons
    v = tl.load(threshold).to(kind)
    tau = tl.load(leak).to(kind)
    row = tl.full([], 0, tl.int64) + neurons
    mean = tl.full([BLOCK], 0.0, kind)
    if STATIC:
        mean = tl.load(current + at, mask=inside, other=0.0)
    else:
        here = at
        for _ in range(steps):
            mean += tl.load(current + here, mask=inside, other=0.0)
            here += row
        mean = tl.div_rn(mean, (v * 0.0) + steps)
    least = (1.0 - tau) * v
    slope = (1.0 - GAMMA * v + GAMMA * v * tau) / ((tau + BETA - 1.0) * v)
    firing = (mean >= least) & (mean <= BETA * v)
    below = (mean >= 0.0) & (mean < least)
    factor = slope * firing.to(kind) + GAMMA * below.to(kind)
    here = at
    for _ in range(steps):
        given = tl.load(grad + here, mask=inside, other=0.0)
        tl.store(found + here, given * factor, mask=inside)
        here += row


@no_type_check
def adaptive(
    membranes,
    grad,
    found,
    means,
    deviations,
    images,
    rows,
    threshold,
    leak,
    neurons,
    steps,
    features,
    remembered,
    STATIC: tl.constexpr,
    HARD: tl.constexpr,
    ATTACHED: tl.constexpr,
    REMEMBER: tl.constexpr,
    OMEGA: tl.constexpr,
    GAMMA: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The rule of `robustsnn.estimators.assg.Adaptive`, for a block of neurons of one image.

    The memory (`means` and `deviations`) is `[step, row, feature]` with so many `remembered` rows;
    `images` and `rows` give the image and the row of each program along the second axis. The step
    of the memory depends on its own membrane alone, so it is brought up to date on the way back.
    """
    kind = membranes.dtype.element_ty
    one = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = one < features
    image = tl.load(images + tl.program_id(1))
    place = tl.load(rows + tl.program_id(1))
    v = tl.load(threshold).to(kind)
    decay = tl.load(leak).to(kind)
    row = tl.full([], 0, tl.int64) + neurons
    size = tl.full([], 0, tl.int64) + features
    at = image * size + one
    here = at + row * (steps - 1)
    slice_ = size * remembered
    there = slice_ * (steps - 1) + place * size + one
    after = tl.full([BLOCK], 0.0, kind)
    total = tl.full([BLOCK], 0.0, kind)
    for _ in range(steps):
        u = tl.load(membranes + here, mask=inside, other=0.0)
        ratio = tl.div_rn(u, v)
        z = ratio - 1.0
        mean = tl.load(means + there, mask=inside, other=1.0)
        deviation = tl.load(deviations + there, mask=inside, other=0.0)
        if REMEMBER:
            distance = tl.abs(z)
            mean = mean * FIRST + distance * (1.0 - FIRST)
            deviation = deviation * SECOND + tl.abs(distance - mean) * (1.0 - SECOND)
            tl.store(means + there, mean, mask=inside)
            tl.store(deviations + there, deviation, mask=inside)
        alpha = OMEGA / (mean + GAMMA * deviation + 1e-4)
        scaled = z * alpha * 1.5707963267948966
        slope = alpha / ((1.0 + scaled * scaled) * (2.0 * v))
        through = tl.load(grad + here, mask=inside, other=0.0)
        if ATTACHED:
            if HARD:
                through = through - after * u
            else:
                through = through - after * v
        d = through * slope
        if HARD:
            d = d + after * (1.0 - (ratio > 1.0).to(kind))
        else:
            d = d + after
        if STATIC:
            total += d
        else:
            tl.store(found + here, d, mask=inside)
        after = d * decay
        here -= row
        there -= slice_
    if STATIC:
        tl.store(found + at, total, mask=inside)
