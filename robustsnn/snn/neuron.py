"""Layers of leaky integrate-and-fire neurons, over a whole sequence at once.

`robustsnn.snn.lif_reference` states the dynamics and their gradients; on a CPU a compiled kernel
and on a GPU one of Triton compute the same spikes, bit for bit, in less time and memory.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.snn.backward_rule import BackwardRule, Trace, ruled
from robustsnn.snn.encoding import first_spikes
from robustsnn.snn.lif_reference import ReferenceLIF
from robustsnn.snn.lif_reference import run as run_reference
from robustsnn.snn.surrogate import Surrogate, Triangle, describe

LEAST_THRESHOLD = 1e-3
KERNEL_VARIABLE = "ROBUSTSNN_LIF"
INTERPRET_VARIABLE = "TRITON_INTERPRET"
KERNELS = ("auto", "fused", "triton", "reference")

Reset = Literal["soft", "hard"]


class LIFOutput(NamedTuple):
    """Spikes `[time, batch, ...]` in {0, 1}, and the final membrane `[batch, ...]` after reset."""

    spikes: Tensor
    membrane: Tensor


@cache
def fused_kernel() -> Any:
    """The module of the compiled kernel, or None, after one warning, where it cannot run."""
    try:
        return importlib.import_module("robustsnn.snn.lif_fused")
    except Exception as error:
        # Whatever the reason is, the reference gives the same spikes.
        warnings.warn(
            f"the compiled LIF kernel is not available ({type(error).__name__}: {error}); "
            "spiking networks run on the slower reference, with the same spikes. "
            "`pip install numba` may help.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


@cache
def triton_kernel(device: torch.device) -> Any:
    """The module of the Triton kernels, or None, after one warning, where they cannot run.

    At its first use on a device a small layer is compared with the reference, spike for spike.
    """
    try:
        module = importlib.import_module("robustsnn.snn.lif_triton")
        module.check(device)
    except Exception as error:
        reason = " ".join(str(error).split())
        warnings.warn(
            f"the Triton LIF kernel is not available on {device} ({type(error).__name__}: "
            f"{reason}); spiking networks run on the slower reference, with the same spikes.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return module


def kernel(device: torch.device | str = "cpu") -> str:
    """What computes LIF layers on a device: `fused`, `triton` or `reference`.

    The environment variable ROBUSTSNN_LIF chooses: `auto` (the default), `fused`, `triton` or
    `reference`. By itself `auto` takes the fused kernel on a CPU, Triton on a GPU where it can be
    imported, and the reference elsewhere.

    Raises:
        InputError: The variable has another value, or asks for a kernel that cannot run.
    """
    asked = os.environ.get(KERNEL_VARIABLE, "auto")
    if asked not in KERNELS:
        raise InputError(f"{KERNEL_VARIABLE}={asked}: choose one of {', '.join(KERNELS)}.")
    if asked == "reference":
        return "reference"
    device = torch.device(device)
    if asked == "fused":
        if device.type != "cpu":
            raise InputError(f"{KERNEL_VARIABLE}=fused runs on the CPU only, not on {device}.")
        if fused_kernel() is None:
            raise InputError(f"{KERNEL_VARIABLE}=fused needs numba: pip install numba.")
        return "fused"
    if asked == "triton":
        _ask_for_triton(device)
        return "triton"
    if device.type == "cpu":
        return "fused" if fused_kernel() is not None else "reference"
    if device.type != "cuda" or not _has_triton() or not torch.cuda.is_available():
        return "reference"
    return "reference" if triton_kernel(device) is None else "triton"


def _ask_for_triton(device: torch.device) -> None:
    """Raise an InputError if Triton cannot run on a device."""
    if not _has_triton():
        raise InputError(f"{KERNEL_VARIABLE}=triton needs Triton: pip install triton.")
    if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        raise InputError(
            f"{KERNEL_VARIABLE}=triton runs on a GPU, not on {device}: leave it at auto, or set "
            f"{INTERPRET_VARIABLE}=1 to try the kernels on a CPU, slowly."
        )
    if triton_kernel(device) is None:
        raise InputError(
            f"{KERNEL_VARIABLE}=triton cannot run on {device}; the warning before says why."
        )


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU, as the environment says; for tests."""
    return os.environ.get(INTERPRET_VARIABLE, "").lower() in ("1", "true", "on", "yes")


def lif_sequence(
    current: Tensor,
    threshold: Tensor,
    leak: Tensor,
    *,
    steps: int,
    surrogate: Surrogate,
    initial: Tensor | None = None,
    reset: Reset = "soft",
    detach_reset: bool = True,
    pool: bool = False,
) -> LIFOutput:
    """Run a layer of LIF neurons over all its time steps.

    Args:
        current: The input current, `[time, batch, ...]`; `[1, batch, ...]` is a static input that
            every one of the `steps` receives.
        threshold: The firing threshold `V > 0`, a scalar.
        leak: The leak in [0, 1], a scalar; 1 is integrate-and-fire.
        steps: The number of time steps; equal to the first dimension unless that is 1.
        surrogate: The stand-in for the derivative of the spike in the backward pass.
        initial: The membrane potential before the first step, `[batch, ...]`; zero if absent.
        reset: What a spike does: `soft` subtracts the threshold, `hard` sets the membrane to zero.
        detach_reset: Whether the backward pass holds the spike of the reset fixed instead of
            differentiating it with the surrogate.
        pool: Whether to average the spikes over windows of 2 x 2 pixels, as an `AvgPool2d(2)`
            after them would; the compiled kernel then never writes the spikes themselves.

    Returns:
        The spikes, or with `pool` their means, and the final membrane, which is never pooled.

    Raises:
        ValueError: `current` has neither one nor `steps` entries in time, `initial` does not have
            the shape of one of them, or there is no such reset.

    Source: Kundu et al., HIRE-SNN, ICCV 2021, section 3; Rathi and Roy, DIET-SNN, 2020.
    """
    if current.shape[0] not in (1, steps):
        raise ValueError(f"current has {current.shape[0]} time steps, expected 1 or {steps}")
    if initial is not None and initial.shape != current.shape[1:]:
        raise ValueError(
            f"initial membranes {list(initial.shape)} for a current {list(current.shape[1:])}"
        )
    if reset not in ("soft", "hard"):
        raise ValueError(f"reset must be 'soft' or 'hard', not {reset!r}")
    options = (threshold, leak, initial, steps, surrogate, reset == "hard", not detach_reset)
    made = _chosen(current, surrogate)
    if made == "fused":
        here = pool and fused_kernel().can_pool(current)
        spikes, membrane = fused_kernel().FusedLIF.apply(current, *options, here)
        pool = pool and not here
    elif made == "triton":
        run = triton_kernel(current.device).TritonLIF.apply
        spikes, membrane = run(current, *options, torch.is_grad_enabled())
    else:
        spikes, membrane = ReferenceLIF.apply(current, *options)
    return LIFOutput(average_over_windows(spikes) if pool else spikes, membrane)


def average_over_windows(spikes: Tensor) -> Tensor:
    """The means of `[time, batch, channel, height, width]` over windows of 2 x 2 pixels."""
    means: Tensor = F.avg_pool2d(spikes.flatten(0, 1), 2)
    return torch.unflatten(means, 0, spikes.shape[:2])


def _chosen(current: Tensor, surrogate: Surrogate) -> str:
    """What computes a layer: the kernel of the device if it takes that current and surrogate."""
    found = kernel(current.device)
    if found == "reference":
        return found
    module = fused_kernel() if found == "fused" else triton_kernel(current.device)
    if current.dtype not in module.DTYPES:
        return "reference"
    if type(surrogate) in module.SURROGATES:
        return found
    _tell_about(type(surrogate))
    return "reference"


def rule_kernels(grad: Tensor, trace: Trace) -> Any:
    """The module of the Triton kernels of backward rules, or None where a rule runs in torch.

    Args:
        grad: The gradient of the spikes, `[time, batch, ...]`.
        trace: The trace of the layer.
    """
    current = trace.current
    if not trace.plain or trace.gain != 1 or kernel(current.device) != "triton":
        return None
    module = triton_kernel(current.device)
    return module if {current.dtype, grad.dtype} <= set(module.DTYPES) else None


@cache
def _tell_about(kind: type) -> None:
    warnings.warn(
        f"the compiled LIF kernel does not know the surrogate {kind.__name__}; layers with it "
        "run on the slower reference, with the same spikes.",
        RuntimeWarning,
        stacklevel=4,
    )


class LIF(nn.Module):
    """A layer of LIF neurons with one learnable threshold and one learnable leak.

    It holds no state: the membrane goes in and comes out. If `rule` is set, it replaces the
    backward pass (see `robustsnn.snn.backward_rule`); the spikes stay the same. With `once`, a
    neuron fires at most once in a sequence: what it would fire later is taken away.
    """

    def __init__(
        self,
        threshold: float = 1.0,
        leak: float = 1.0,
        surrogate: Surrogate | None = None,
        reset: Reset = "soft",
        detach_reset: bool = True,
        once: bool = False,
    ) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))
        self.leak = nn.Parameter(torch.tensor(float(leak)))
        self.surrogate: Surrogate = surrogate if surrogate is not None else Triangle()
        self.reset: Reset = reset
        self.detach_reset = detach_reset
        self.once = once
        self.rule: BackwardRule | None = None

    def forward(
        self, current: Tensor, steps: int, initial: Tensor | None = None, pool: bool = False
    ) -> LIFOutput:
        """Spikes `[steps, batch, ...]` and final membrane `[batch, ...]`; see `lif_sequence`."""
        if self.rule is not None and torch.is_grad_enabled():
            run = partial(self.trace, steps=steps, initial=initial)
            spikes, membrane = ruled(run, current, self.rule)
            return self._seen(LIFOutput(spikes, membrane), pool)
        found = lif_sequence(
            current,
            self.threshold,
            self.leak,
            steps=steps,
            surrogate=self.surrogate,
            initial=initial,
            reset=self.reset,
            detach_reset=self.detach_reset,
            pool=pool and not self.once,
        )
        return self._seen(found, pool) if self.once else found

    def _seen(self, found: LIFOutput, pool: bool) -> LIFOutput:
        """What the next layer sees of all spikes of the dynamics."""
        spikes = first_spikes(found.spikes) if self.once else found.spikes
        return LIFOutput(average_over_windows(spikes) if pool else spikes, found.membrane)

    @torch.no_grad()
    def trace(self, current: Tensor, steps: int, initial: Tensor | None = None) -> Trace:
        """What the layer does over a sequence; the arguments are those of `lif_sequence`.

        With `once`, the spikes are still all those of the dynamics.
        """
        hard = self.reset == "hard"
        threshold, leak = self.threshold.detach(), self.leak.detach()
        options: dict[str, Any] = {"surrogate": self.surrogate, "reset": self.reset}
        spikes, final = lif_sequence(
            current, threshold, leak, steps=steps, initial=initial, **options
        )
        return Trace(
            current=current,
            spikes=spikes,
            replay=partial(_membranes, current, threshold, leak, initial, steps, hard),
            final=final,
            threshold=threshold,
            leak=leak,
            hard=hard,
            attached=not self.detach_reset,
            surrogate=self.surrogate,
            plain=initial is None,
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
            f"surrogate={describe(self.surrogate)}{', once=True' if self.once else ''}"
        )


def _membranes(
    current: Tensor,
    threshold: Tensor,
    leak: Tensor,
    initial: Tensor | None,
    steps: int,
    hard: bool,
) -> list[Tensor]:
    """The membranes before reset, `[batch, ...]` of each step; the arguments are those of `run`."""
    arguments = (current, threshold, leak, initial, steps, hard)
    if kernel(current.device) == "triton":
        module = triton_kernel(current.device)
        if current.dtype in module.DTYPES:
            return list(module.membranes_of(*arguments))
    return run_reference(*arguments)[1]


class FixedDropout(nn.Module):
    """Dropout with one mask for all time steps, drawn once in each forward pass.

    Input and output are `[time, batch, ...]`; the mask carries the factor `1 / (1 - p)`.
    Source: HIRE-SNN and DIET-SNN, `neuron_init`.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Apply one mask `[1, batch, ...]` to all time steps; do nothing in evaluation mode."""
        if not self.training or self.p == 0:
            return x
        return x * nn.functional.dropout(torch.ones_like(x[:1]), self.p, training=True)

    def extra_repr(self) -> str:
        """The rate, for printing."""
        return f"p={self.p:g}"
