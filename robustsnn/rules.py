"""Backward rules: what an attacker puts in place of the derivative of a layer of spiking neurons.

Each takes the gradient of the spikes `[time, batch, ...]` and the trace of the layer, and returns
the gradient of its input current, as large. `u = U - V` is the membrane above the threshold.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from robustsnn.snn.backward_rule import Trace
from robustsnn.snn.neuron import kernel
from robustsnn.snn.surrogate import Surrogate


def through_time(
    grad: Tensor,
    trace: Trace,
    derivative: list[Tensor],
    attached: bool | None = None,
    cut: int | None = None,
) -> Tensor:
    """Backpropagation through time with the spike's derivative given, neuron by neuron.

    Args:
        grad: Gradient of the spikes, `[time, batch, ...]`.
        trace: Of the layer.
        derivative: `do/dU` of each step, `[batch, ...]`.
        attached: Whether the reset's spike is differentiated too; None as the model does.
        cut: Steps after which the membrane's gradient is dropped; 1 leaves no path through time,
            None the whole.

    Source: the recursion of `robustsnn.snn.lif_reference`; cut: Williams and Peng, 1990.
    """
    attached = trace.attached if attached is None else attached
    found = torch.empty_like(grad)
    after: Tensor | None = None
    for t in reversed(range(len(grad))):
        through = grad[t]
        if after is not None and attached:
            through = through - after * (trace.membranes[t] if trace.hard else trace.threshold)
        d = through * derivative[t]
        if after is not None:
            d += after * (1 - trace.spikes[t]) if trace.hard else after
        found[t] = d
        after = None if cut is not None and t % cut == 0 else d * trace.leak
    return found if trace.gain == 1 else found * trace.gain


def surrogate_derivative(trace: Trace, surrogate: Surrogate) -> list[Tensor]:
    """`g(U/V - 1) / V` of each step, `[batch, ...]`."""
    return [
        surrogate.derivative((u / trace.threshold).sub_(1)).div_(trace.threshold)
        for u in trace.membranes
    ]


@dataclass(frozen=True)
class ThroughTime:
    """Backpropagation through time with a surrogate.

    Args:
        surrogate: None keeps the layer's own.
        attached: None keeps the model's.
        cut: As in `through_time`.
    """

    surrogate: Surrogate | None = None
    attached: bool | None = None
    cut: int | None = None

    def __call__(self, grad: Tensor, trace: Trace) -> Tensor:
        """See `through_time`."""
        surrogate = trace.surrogate if self.surrogate is None else self.surrogate
        derivative = surrogate_derivative(trace, surrogate)
        return through_time(grad, trace, derivative, self.attached, self.cut)


@dataclass(frozen=True)
class ThroughRate:
    """BPTR: the gradient passes where the neuron fired at all, whenever.

    Args:
        leak: What passes where it never fired, in [0, 1]; 0 as published, where a silent neuron
            cannot be recruited.

    Source: Ding et al., SNN-RAT, NeurIPS 2022.
    """

    leak: float = 0.0

    def __call__(self, grad: Tensor, trace: Trace) -> Tensor:
        """`grad * max(1[mean over time of spikes > 0], leak)`."""
        fired = trace.spikes.amax(0, keepdim=True)
        return grad * (fired.clamp_min(self.leak) if self.leak else fired)


@dataclass(frozen=True)
class RateOfMeanCurrent:
    """RGA: derivative of the firing rate as a function of the current's mean over time.

    With leak `tau` and threshold V: `slope = (1 - gamma V + gamma V tau) / ((tau + beta - 1) V)`
    where the mean current lies in `[(1 - tau) V, beta V]`, gamma in `[0, (1 - tau) V)`, else 0.

    Source: Bu et al., Rate Gradient Approximation, CVPR 2023.
    """

    gamma: float = 0.2
    beta: float = 2.0

    def __call__(self, grad: Tensor, trace: Trace) -> Tensor:
        """`grad * d(mean current)`, the same derivative at every step."""
        mean = trace.current.mean(0, keepdim=True)
        v, tau = trace.threshold, trace.leak
        slope = (1 - self.gamma * v + self.gamma * v * tau) / ((tau + self.beta - 1) * v)
        firing = (mean >= (1 - tau) * v) & (mean <= self.beta * v)
        below = (mean >= 0) & (mean < (1 - tau) * v)
        return grad * (slope * firing + self.gamma * below)


@dataclass(frozen=True)
class MeanOverTime:
    """HART: no path through the membrane, and the mean over time for every step.

    `dL/dI[t] = 1/T sum_s g(u[s]) dL/do[s]`, g a triangle of that width.

    Args:
        width: In units of the threshold.

    Source: Hao et al., HART, ICLR 2024.
    """

    width: float = 0.5

    def __call__(self, grad: Tensor, trace: Trace) -> Tensor:
        """The same gradient at every step."""
        total = torch.zeros_like(grad[0])
        for t, u in enumerate(trace.membranes):
            z = (u / trace.threshold).sub_(1).abs_()
            total += grad[t] * (self.width - z).clamp_min_(0)
        scale = self.width**2 * trace.threshold * len(grad)
        return (total / scale).expand_as(grad)


@dataclass(frozen=True)
class PotentialDependent:
    """PDSG: a Gaussian surrogate as wide as the membranes are spread.

    `g(u) = exp(-(u - s/2)^2 / (2 s^2)) / (sqrt(2 pi) s)`, where s is the standard deviation of u
    over the steps so far and the pixels, per channel (over all neurons of a flat layer), and 1
    where it is 0. Published over the whole batch; here of each image, so that a verdict does not
    depend on the others.

    Source: Lun et al., CVPR 2025 (arXiv 2503.03272).
    """

    def __call__(self, grad: Tensor, trace: Trace) -> Tensor:
        """Through time with that derivative."""
        first = trace.membranes[0]
        over = tuple(range(2, first.dim())) if first.dim() > 2 else (1,)
        mean, square = 0.0 * first, 0.0 * first
        derivative = []
        for t, membrane in enumerate(trace.membranes):
            u = membrane - trace.threshold
            # Moments of the means: a running mean keeps the digits that a sum would lose.
            here = u.mean(over, keepdim=True)
            spread = (u - here).square().mean(over, keepdim=True)
            if t == 0:
                mean, square = here, spread
            else:
                weight = t / (t + 1)
                square = (
                    weight * square
                    + (1 - weight) * spread
                    + weight * (1 - weight) * (here - mean).square()
                )
                mean = weight * mean + (1 - weight) * here
            sigma = square.sqrt()
            sigma = torch.where(sigma > 0, sigma, torch.ones_like(sigma))
            shifted = (u - sigma / 2) / sigma
            derivative.append(torch.exp(-0.5 * shifted.square()) / (math.sqrt(2 * math.pi) * sigma))
        return through_time(grad, trace, derivative)


@dataclass(eq=False)
class Adaptive:
    """ASSG: an arctangent whose sharpness follows how far each membrane stays off the threshold.

    Of every neuron, step and image, over the iterations of an attack, with z = U/V - 1:
    `M <- b1 M + (1 - b1) |z|`, `D <- b2 D + (1 - b2) ||z| - M|`,
    `alpha = omega / (M + gamma D + 1e-4)`, `omega = (2/pi) tan(pi vanishing)`, and
    `g(z) = alpha/2 / (1 + (pi alpha z / 2)^2)`. M starts at 1, D at 0.

    Source: Wang et al., arXiv 2512.22522. There in units of u at V = 1.
    """

    vanishing: float
    gamma: float = 1.5
    first: float = 0.9
    second: float = 0.9
    _memory: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, grad: Tensor, trace: Trace, name: str, rows: Tensor) -> Tensor:
        """Through time with that derivative; remembers.

        Args:
            grad: Gradient of the spikes.
            trace: Of the layer.
            name: Of the layer.
            rows: Which image each one of the batch is; only the first of several equal ones,
                such as draws of one image, is remembered.
        """
        omega = 2 / math.pi * math.tan(math.pi * self.vanishing)
        means, deviations = self._of(name, grad, rows)
        new, old = _first_of_each(rows)
        if _compiled(trace):
            found: Tensor = adaptive_kernel().adaptive(
                trace.current, grad, means, deviations, new, rows[new], old, rows[old],
                threshold=trace.threshold.item(), leak=trace.leak.item(), hard=trace.hard,
                attached=trace.attached, omega=omega, gamma=self.gamma, first=self.first,
                second=self.second,
            )  # fmt: skip
            return found
        derivative = []
        for t, u in enumerate(trace.membranes):
            z = (u / trace.threshold).sub_(1)
            distance = _flat(z[new]).abs()
            at = rows[new]
            mean = means[t, at].mul_(self.first).add_(distance, alpha=1 - self.first)
            means[t, at] = mean
            deviation = distance.sub_(mean).abs_().mul_(1 - self.second)
            deviation.add_(deviations[t, at], alpha=self.second)
            deviations[t, at] = deviation
            sharpness = omega / (means[t, rows] + self.gamma * deviations[t, rows] + 1e-4)
            alpha = _shaped(sharpness, z)
            z.mul_(alpha).mul_(math.pi / 2).square_().add_(1)
            derivative.append(alpha.div(z).div_(2 * trace.threshold))
        return through_time(grad, trace, derivative)

    def forget(self, rows: Tensor) -> None:
        """Start anew with those images."""
        for means, deviations in self._memory.values():
            at = rows[rows < means.shape[1]].to(means.device)
            means[:, at] = 1.0
            deviations[:, at] = 0.0

    def _of(self, name: str, grad: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Means and deviations, `[time, row, neuron]`, neurons with the channel last."""
        needed = int(rows.max()) + 1
        held = self._memory.get(name)
        if held is not None and held[0].shape[1] >= needed:
            return held
        size = (len(grad), needed, grad[0, 0].numel())
        means = torch.ones(size, dtype=grad.dtype, device=grad.device)
        deviations = torch.zeros(size, dtype=grad.dtype, device=grad.device)
        if held is not None:
            means[:, : held[0].shape[1]] = held[0]
            deviations[:, : held[1].shape[1]] = held[1]
        self._memory[name] = (means, deviations)
        return means, deviations


@cache
def adaptive_kernel() -> Any:
    """The module of the compiled rule."""
    return importlib.import_module("robustsnn.snn.adaptive_fused")


def _compiled(trace: Trace) -> bool:
    """Whether compiled code may do it; it walks through images with the channel last."""
    one = trace.current[0]
    return (
        trace.plain
        and trace.gain == 1
        and kernel(one.device) == "fused"
        and one.dtype in (torch.float32, torch.float64)
        and (one.dim() == 2 or one.is_contiguous(memory_format=torch.channels_last))
    )


def _flat(one: Tensor) -> Tensor:
    """`[batch, channel, height, width]` or `[batch, neuron]` as `[batch, neuron]`."""
    return one.movedim(1, -1).flatten(1)


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    """Back from `_flat`."""
    if like.dim() == 2:
        return flat
    channels, *rest = like.shape[1:]
    return torch.unflatten(flat, 1, (*rest, channels)).movedim(-1, 1)


def _first_of_each(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the first of each value, and of the others, in order."""
    seen: dict[int, int] = {}
    others = []
    for position, row in enumerate(rows.tolist()):
        if seen.setdefault(row, position) != position:
            others.append(position)
    new = torch.tensor(list(seen.values()), dtype=torch.int64)
    return new, torch.tensor(others, dtype=torch.int64)
