"""LIF layers and backward rules on Triton kernels, each layer in one launch forward and backward.

The kernels are in `triton_kernels`; this module holds what the host does. It never waits for the
device: thresholds and leaks are read by the kernels, and sums stay on the device. The forward pass
keeps the membranes before reset, from which the backward pass takes spikes and surrogates, and not
the input current, so that both take the same memory.

On tensors of the CPU the kernels are interpreted, step by step, which is for tests.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustsnn.snn import triton_kernels
from robustsnn.snn.backward_rule import Trace
from robustsnn.snn.kernel_arrays import dense, one_like, steps_like
from robustsnn.snn.lif_reference import ReferenceLIF, empty_over_time
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

SURROGATES: tuple[type[Surrogate], ...] = (
    *(Triangle, Rectangle, Sigmoid, Arctan, FastSigmoid, Gaussian, StraightThrough),
)
#: Triton divides with correct rounding in float32 only.
DTYPES = (torch.float32,)

#: The neurons of a program: one load of 16 bytes for each of its threads, 4 warps of 32.
BLOCK = 512
WARPS = 4


@cache
def _kernel(function: Callable[..., None], interpret: bool) -> Any:
    # Triton would decide when this module is imported, which may be before the variable is set.
    if interpret:
        kind = importlib.import_module("triton.runtime.interpreter").InterpretedFunction
    else:
        kind = importlib.import_module("triton.runtime.jit").JITFunction
    return kind(function)


def _launch(
    function: Callable[..., None], grid: tuple[int, ...], *arguments: Any, **constants: Any
) -> None:
    """Run a kernel on the device of its first argument; an empty grid runs nothing."""
    if 0 in grid:
        return
    # On a CPU they can only be interpreted.
    kernel = _kernel(function, not arguments[0].is_cuda)
    with _on(arguments[0]):
        # Fused, a product and a sum round once instead of twice, and spikes would differ.
        kernel[grid](*arguments, **constants, BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=False)


def _on(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which the device of the tensor is the one that kernels run on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def check(device: torch.device) -> None:
    """Compare a small layer with the reference on that device.

    Raises:
        RuntimeError: A spike differs, or a gradient by more than rounding.
    """
    draw = torch.Generator().manual_seed(0)
    # Currents on a grid bring many membranes to within a rounding of the threshold.
    current = (torch.randn(4, 3, 400, generator=draw) * 8).round().div(8).mul(0.3).to(device)
    weights = torch.randn(4, 3, 400, generator=draw).to(device)
    surrogate = Triangle()
    for hard in (False, True):
        found = []
        for kind in (ReferenceLIF, TritonLIF):
            with torch.inference_mode(False), torch.enable_grad():
                x = current.clone().requires_grad_()
                v, leak = (torch.tensor(value, device=device) for value in (0.3, 0.7))
                spikes, final = kind.apply(x, v, leak, None, 4, surrogate, hard, False)
                (gradient,) = torch.autograd.grad(spikes, x, weights)
            found.append((spikes.detach(), final.detach(), gradient))
        reference, made = found
        if not all(map(torch.equal, reference[:2], made[:2])):
            raise RuntimeError("it gives other spikes than the reference")
        difference = (made[2] - reference[2]).abs().max() / reference[2].abs().max()
        if not difference < 1e-5:
            raise RuntimeError(f"its gradients differ by {difference:.2g} of the largest")


def _blocks(neurons: int) -> int:
    return -(-neurons // BLOCK)


class TritonLIF(torch.autograd.Function):
    """The dynamics of `lif_reference`; the membranes before reset are kept for backward."""

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
        differentiated: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Spikes `[steps, batch, ...]` and final membrane `[batch, ...]`.

        `differentiated` says whether autograd was on outside, which it never is in here.
        """
        ctx.set_materialize_grads(False)
        current = dense(current.detach())
        one = current[0]
        started = None if initial is None else one_like(initial.detach(), one)
        spikes = empty_over_time(one, steps)
        final = torch.empty_like(one)
        keeps = differentiated and any(ctx.needs_input_grad)
        membranes = empty_over_time(one, steps) if keeps else None
        _forward(current, started, spikes, membranes, final, threshold, leak, steps, hard)
        ctx.save_for_backward(membranes, threshold, leak, started)
        ctx.static, ctx.surrogate, ctx.hard, ctx.attached = (
            *(len(current) == 1, surrogate, hard, attached),
        )
        return spikes, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of current, threshold, leak and initial membrane."""
        grad_spikes, grad_final = grads
        membranes, threshold, leak, initial = ctx.saved_tensors
        needs_current, needs_threshold, needs_leak, needs_initial = ctx.needs_input_grad[:4]
        steps, one = len(membranes), membranes[0]
        length = 1 if ctx.static else steps
        grad_current = empty_over_time(one, length) if needs_current else None
        grad_initial = torch.empty_like(one) if needs_initial else None
        programs = _blocks(one.numel())
        parameters = needs_threshold or needs_leak
        sums = one.new_zeros((programs if parameters else 0, 2), dtype=torch.float64)
        given = None if grad_spikes is None else steps_like(grad_spikes, one, steps)
        ended = None if grad_final is None else one_like(grad_final, one)
        _launch(
            triton_kernels.lif_backward,
            (programs,),
            # An argument that a constant leaves out is never read: any tensor stands for it.
            *(
                membranes if each is None else each
                for each in (membranes, initial, given, ended, grad_current, grad_initial)
            ),
            *(sums, threshold.detach(), leak.detach(), one.numel(), steps),
            STATIC=ctx.static,
            STARTED=initial is not None,
            HARD=ctx.hard,
            ATTACHED=ctx.attached,
            GIVEN=given is not None,
            ENDED=ended is not None,
            WANTED=grad_current is not None,
            START_WANTED=grad_initial is not None,
            PARAMETERS=parameters,
            SURROGATE=ctx.surrogate.name,
            WIDTH=float(ctx.surrogate.width),
            AMPLITUDE=float(ctx.surrogate.amplitude),
        )
        by_threshold, by_leak = sums.sum(0).unbind()
        return (
            grad_current,
            by_threshold.to(threshold).reshape(threshold.shape) if needs_threshold else None,
            by_leak.to(leak).reshape(leak.shape) if needs_leak else None,
            grad_initial,
            *(None,) * 5,
        )


def _forward(
    current: Tensor,
    initial: Tensor | None,
    spikes: Tensor | None,
    membranes: Tensor | None,
    final: Tensor | None,
    threshold: Tensor,
    leak: Tensor,
    steps: int,
    hard: bool,
) -> None:
    """Write what is there of spikes, membranes before reset and the final membrane."""
    neurons = current[0].numel()
    _launch(
        triton_kernels.lif_forward,
        (_blocks(neurons),),
        current,
        *(current if each is None else each for each in (initial, spikes, membranes, final)),
        *(threshold.detach(), leak.detach(), neurons, steps),
        STATIC=len(current) == 1,
        STARTED=initial is not None,
        HARD=hard,
        FIRES=spikes is not None,
        KEEPS=membranes is not None,
    )


def membranes_of(
    current: Tensor,
    threshold: Tensor,
    leak: Tensor,
    initial: Tensor | None,
    steps: int,
    hard: bool,
) -> Tensor:
    """The membranes before reset, `[steps, batch, ...]`; the arguments are those of `run`."""
    current = dense(current.detach())
    one = current[0]
    found = empty_over_time(one, steps)
    started = None if initial is None else one_like(initial.detach(), one)
    _forward(current, started, None, found, None, threshold, leak, steps, hard)
    return found


def hart(grad: Tensor, trace: Trace, width: float) -> Tensor:
    """The rule of `robustsnn.estimators.hart`; the gradient `[time, batch, ...]` is expanded."""
    current = dense(trace.current.detach())
    one, steps = current[0], len(grad)
    found = torch.empty_like(one)
    _launch(
        triton_kernels.hart,
        (_blocks(one.numel()),),
        *(current, steps_like(grad, one, steps), found),
        *(trace.threshold, trace.leak, one.numel(), steps),
        STATIC=len(current) == 1,
        HARD=trace.hard,
        WIDTH=float(width),
    )
    return found.expand_as(grad)


def bptr(grad: Tensor, trace: Trace, leak: float) -> Tensor:
    """The rule of `robustsnn.estimators.bptr`, `[time, batch, ...]`."""
    spikes = dense(trace.spikes.detach())
    one, steps = spikes[0], len(grad)
    found = empty_over_time(one, steps)
    _launch(
        triton_kernels.bptr,
        (_blocks(one.numel()),),
        *(spikes, steps_like(grad, one, steps), found, one.numel(), steps),
        LEAK=float(leak),
    )
    return found


def rga(grad: Tensor, trace: Trace, gamma: float, beta: float) -> Tensor:
    """The rule of `robustsnn.estimators.rga`, `[time, batch, ...]`."""
    current = dense(trace.current.detach())
    one, steps = current[0], len(grad)
    found = empty_over_time(one, steps)
    _launch(
        triton_kernels.rga,
        (_blocks(one.numel()),),
        *(current, steps_like(grad, one, steps), found),
        *(trace.threshold, trace.leak, one.numel(), steps),
        STATIC=len(current) == 1,
        GAMMA=float(gamma),
        BETA=float(beta),
    )
    return found


def adaptive(
    grad: Tensor,
    trace: Trace,
    means: Tensor,
    deviations: Tensor,
    images: Tensor,
    rows: Tensor,
    later: Tensor,
    rows_later: Tensor,
    *,
    omega: float,
    gamma: float,
    first: float,
    second: float,
) -> Tensor:
    """The gradient of the current of the rule of ASSG, shaped like the current.

    The arguments are those of `robustsnn.snn.adaptive_fused.adaptive`, on the device.
    """
    current = dense(trace.current.detach())
    one, steps = current[0], len(grad)
    membranes = membranes_of(current, trace.threshold, trace.leak, None, steps, trace.hard)
    given = steps_like(grad, one, steps)
    found = empty_over_time(one, len(current))
    features = means.shape[2]
    for some, which, remember in ((images, rows, True), (later, rows_later, False)):
        _launch(
            triton_kernels.adaptive,
            (_blocks(features), len(some)),
            *(membranes, given, found, means, deviations),
            *(some, which, trace.threshold, trace.leak),
            *(one.numel(), steps, features, means.shape[1]),
            STATIC=len(current) == 1,
            HARD=trace.hard,
            ATTACHED=trace.attached,
            REMEMBER=remember,
            OMEGA=float(omega),
            GAMMA=float(gamma),
            FIRST=float(first),
            SECOND=float(second),
        )
    return found
