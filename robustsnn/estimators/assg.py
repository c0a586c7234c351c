"""ASSG: an arctangent whose sharpness each neuron, step and image adapts during an attack."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.estimators.base import Estimator, ruled_layers
from robustsnn.snn.backward_rule import BackwardRule, Trace, through_time
from robustsnn.snn.neuron import kernel, rule_kernels


@dataclass(frozen=True)
class Assg(Estimator):
    """Adaptive sharpness, remembered for each image over the iterations of an attack.

    Args:
        vanishing: The share of the surrogate's area that lies nearer to the threshold than the
            membranes do, between 0 and 0.5.

    Source: Wang et al., arXiv 2512.22522.

    Examples:
        >>> Assg().name
        'assg:vanishing=0.425'
    """

    kind: ClassVar[str] = "assg"
    remembers = True
    vanishing: float = 0.425
    memory: Adaptive = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.vanishing < 0.5:
            raise InputError("assg: vanishing must lie between 0 and 0.5.")
        object.__setattr__(self, "memory", Adaptive(self.vanishing))

    @property
    def name(self) -> str:
        """The kind and the vanishing degree."""
        return self.named(every=True)

    @contextmanager
    def applied(self, network: nn.Module, rows: Tensor | None = None) -> Iterator[None]:
        """Differentiate every spiking layer in this way.

        Args:
            network: The network that is differentiated.
            rows: The position, among the images of the victim, of each image of the next forward
                pass, int64 `[batch]`; by default its position in the batch.
        """

        def rule_of(name: str) -> BackwardRule:
            def rule(grad: Tensor, trace: Trace) -> Tensor:
                which = torch.arange(grad.shape[1]) if rows is None else rows
                return self.memory(grad, trace, name, which)

            return rule

        with ruled_layers(network, rule_of):
            yield

    def forget(self, rows: Tensor) -> None:
        """Forget the sharpness of those images."""
        self.memory.forget(rows)


@dataclass(eq=False)
class Adaptive:
    """An arctangent whose sharpness follows how far each membrane stays off the threshold.

    For every neuron, step and image, over the iterations of an attack, with z = U/V - 1:
    `M <- b1 M + (1 - b1) |z|`, `D <- b2 D + (1 - b2) ||z| - M|`,
    `alpha = omega / (M + gamma D + 1e-4)`, `omega = (2/pi) tan(pi vanishing)`, and
    `g(z) = alpha/2 / (1 + (pi alpha z / 2)^2)`. M starts at 1 and D at 0.

    Args:
        vanishing: The share of the surrogate's area that lies nearer to the threshold than the
            membranes do, between 0 and 0.5.
        gamma: The weight of the deviation D.
        first: The decay b1 of the mean M.
        second: The decay b2 of the deviation D.

    Source: Wang et al., arXiv 2512.22522, where membranes are in units of a threshold of 1.
    """

    vanishing: float
    gamma: float = 1.5
    first: float = 0.9
    second: float = 0.9
    _memory: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, grad: Tensor, trace: Trace, name: str, rows: Tensor) -> Tensor:
        """The gradient of the current, through time with that derivative; updates the memory.

        Args:
            grad: The gradient of the spikes, `[time, batch, ...]`.
            trace: The trace of the layer.
            name: The name of the layer.
            rows: The position, among the images of the victim, of each image of the batch, int64
                `[batch]`. If a position occurs several times, as for draws of one image, only the
                first of them is remembered.
        """
        omega = 2 / math.pi * math.tan(math.pi * self.vanishing)
        means, deviations = self._of(name, grad, rows)
        places = _places(tuple(rows.tolist()), grad.device)
        settings = dict(omega=omega, gamma=self.gamma, first=self.first, second=self.second)
        found: Tensor
        if _dense(trace) and kernel(grad.device) == "fused":
            found = adaptive_kernel().adaptive(
                trace.current, grad, means, deviations, *places[1:],
                threshold=trace.threshold.item(), leak=trace.leak.item(), hard=trace.hard,
                attached=trace.attached, **settings,
            )  # fmt: skip
            return found
        if _dense(trace) and (kernels := rule_kernels(grad, trace)) is not None:
            found = kernels.adaptive(grad, trace, means, deviations, *places[1:], **settings)
            return found
        rows, new, at = places[:3]
        derivative = []
        for t in range(len(trace.membranes)):
            z = trace.over(t)
            distance = _flat(z[new]).abs()
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
        """Forget the means and deviations of those images."""
        for means, deviations in self._memory.values():
            at = rows[rows < means.shape[1]].to(means.device)
            means[:, at] = 1.0
            deviations[:, at] = 0.0

    def _of(self, name: str, grad: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The means and the deviations, `[time, row, neuron]`, neurons with the channel last."""
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
    """The module of the compiled rule, which takes time to import."""
    return importlib.import_module("robustsnn.snn.adaptive_fused")


def _dense(trace: Trace) -> bool:
    """Whether compiled rules can be used; they need images with the channel last."""
    one = trace.current[0]
    return (
        trace.plain
        and trace.gain == 1
        and one.dtype in (torch.float32, torch.float64)
        and (one.dim() == 2 or one.is_contiguous(memory_format=torch.channels_last))
    )


def _flat(one: Tensor) -> Tensor:
    """`[batch, channel, height, width]` or `[batch, neuron]` as `[batch, neuron]`."""
    return one.movedim(1, -1).flatten(1)


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_flat`, in the shape of `like`."""
    if like.dim() == 2:
        return flat
    channels, *rest = like.shape[1:]
    return torch.unflatten(flat, 1, (*rest, channels)).movedim(-1, 1)


class _Places(NamedTuple):
    """The rows of a batch in the memory, and where in the batch they are, int64 on one device.

    `new` are the positions where each row occurs first and `at` their rows, `old` the other
    positions and `also_at` their rows.
    """

    rows: Tensor
    new: Tensor
    at: Tensor
    old: Tensor
    also_at: Tensor


@lru_cache(maxsize=256)
def _places(rows: tuple[int, ...], device: torch.device) -> _Places:
    """The places of such rows; the next steps of an attack do not copy them to the device again."""
    seen: dict[int, int] = {}
    others = []
    for position, row in enumerate(rows):
        if seen.setdefault(row, position) != position:
            others.append(position)
    new = list(seen.values())
    lists = (list(rows), new, [rows[i] for i in new], others, [rows[i] for i in others])
    return _Places(*(torch.tensor(some, dtype=torch.int64).to(device) for some in lists))


ESTIMATOR = Assg
