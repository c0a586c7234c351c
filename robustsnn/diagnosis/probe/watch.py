"""An estimator that also notes what passes through each spiking layer in a backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from robustsnn.diagnosis.indicators import cosine
from robustsnn.estimators.base import Estimator
from robustsnn.estimators.bptt import ThroughTime
from robustsnn.snn.backward_rule import (
    BackwardRule,
    Trace,
    spiking_layers,
    surrogate_derivative,
)
from robustsnn.snn.surrogate import Rectangle, Surrogate, Triangle

#: The distance from the threshold, in units of it, within which small changes flip a spike.
NEAR = 0.1
#: The width of the arctangent (alpha 8) whose vanishing degree is given next to that of the
#: network's own surrogate.
SHARP = 0.0796


@dataclass
class LayerWatch:
    """What was seen in the backward passes of a layer, summed over images.

    Args:
        entries: The number of values of the current, over all images, neurons and steps.
        zero: The number of gradients of the current that are zero.
        silent: The number of entries where the derivative of the surrogate times the gradient of
            the spike is zero.
        nonfinite: The number of NaN or infinite gradients of the current.
        near: The number of membranes within `NEAR` of the threshold.
        inside: The number of membranes within the support of the surrogate, or within its width if
            its support has no bounds.
        compact: Whether the support of the surrogate has bounds.
        vanishing: The sum, over all membranes z, of the share of the surrogate's area between -|z|
            and |z|.
        sharp: The same sum for an arctangent of width `SHARP`.
        lengths: The length of the gradient of the spikes, for each image.
        temporal: The mean cosine of the gradients of the current at adjacent steps, for each image.
    """

    entries: int = 0
    zero: int = 0
    silent: int = 0
    nonfinite: int = 0
    near: int = 0
    inside: int = 0
    compact: bool = False
    vanishing: float = 0.0
    sharp: float = 0.0
    lengths: list[float] = field(default_factory=list)
    temporal: list[float] = field(default_factory=list)

    def share(self, count: float) -> float:
        """A sum over entries as a share of all entries; 0 if there are none.

        Examples:
            >>> LayerWatch(entries=4).share(1)
            0.25
        """
        return count / self.entries if self.entries else 0.0

    def note(self, grad: Tensor, trace: Trace, found: Tensor) -> None:
        """Add what is seen in one backward pass.

        Args:
            grad: The gradient of the spikes, `[time, batch, ...]`.
            trace: The trace of the layer; images beyond the batch of `grad` are left out.
            found: The gradient of the current, `[time, batch, ...]`.
        """
        images, surrogate = grad.shape[1], trace.surrogate
        self.entries += found.numel()
        self.zero += int((found == 0).sum())
        self.nonfinite += int((~found.isfinite()).sum())
        reach = support(surrogate)
        self.compact = math.isfinite(reach)
        reach = reach if self.compact else surrogate.width
        derivative = surrogate_derivative(trace, surrogate)
        for t in range(len(trace.membranes)):
            z = trace.over(t)[:images].abs_()
            self.silent += int((derivative[t][:images] * grad[t] == 0).sum())
            self.near += int((z < NEAR).sum())
            self.inside += int((z < reach).sum())
            self.vanishing += float(mass(surrogate, z).double().sum())
            self.sharp += float((2 / math.pi * (z / SHARP).atan()).double().sum())
        self.lengths += grad.double().transpose(0, 1).flatten(1).norm(dim=1).tolist()
        if len(found) > 1:
            steps = found.double().flatten(2).cpu().numpy()
            pairs = [cosine(a, b) for a, b in pairwise(steps)]
            self.temporal += np.mean(pairs, 0).tolist()


def support(surrogate: Surrogate) -> float:
    """The distance from the threshold beyond which a surrogate is zero; infinite if there is none.

    Args:
        surrogate: The surrogate; one of another library says it as `support`.

    Examples:
        >>> from robustsnn.snn.surrogate import Arctan
        >>> support(Triangle(width=0.5)), support(Arctan())
        (0.5, inf)
    """
    if isinstance(surrogate, Triangle | Rectangle):
        return surrogate.width
    return float(getattr(surrogate, "support", math.inf))


def mass(surrogate: Surrogate, z: Tensor) -> Tensor:
    """The share of a surrogate's area between -z and z, in [0, 1].

    Args:
        surrogate: The surrogate.
        z: The distances of membranes from the threshold, in units of it, at least 0.

    Source: the vanishing degree of Wang et al., arXiv 2512.22522.
    """
    whole = surrogate.primitive(torch.full((), 1e6, dtype=torch.float64))
    return (surrogate.primitive(z) / float(whole)).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Watched(Estimator):
    """Another estimator under watch; its gradients are unchanged.

    Args:
        inner: The estimator that is watched.
        layers: What was seen in each layer, by the name of the layer; filled in backward passes.
    """

    inner: Estimator
    layers: dict[str, LayerWatch]

    @property
    def name(self) -> str:
        """The name of the estimator that is watched."""
        return self.inner.name

    def __post_init__(self) -> None:
        object.__setattr__(self, "faithful", self.inner.faithful)

    def forget(self, rows: Tensor) -> None:
        """Let the estimator that is watched forget those images."""
        self.inner.forget(rows)

    @contextmanager
    def applied(self, network: nn.Module, rows: Tensor | None = None) -> Iterator[None]:
        """Apply the estimator and watch the layers; copies that pad the batch are not counted."""
        images = None if rows is None else len(rows.unique())
        layers = spiking_layers(network)
        with self.inner.applied(network, rows), _whole(network):
            before = {name: layer.rule for name, layer in layers.items()}
            try:
                for name, layer in layers.items():
                    layer.rule = self._watching(name, before[name] or ThroughTime(), images)
                yield
            finally:
                for name, layer in layers.items():
                    layer.rule = before[name]

    def _watching(self, name: str, rule: BackwardRule, images: int | None) -> BackwardRule:
        def watching(grad: Tensor, trace: Trace) -> Tensor:
            found = rule(grad, trace)
            seen = self.layers.setdefault(name, LayerWatch())
            seen.note(grad[:, :images], trace, found[:, :images])
            return found

        return watching


@contextmanager
def _whole(network: nn.Module) -> Iterator[None]:
    """Run the network over all its time steps at once inside the block.

    A segment of steps that is computed again for its gradient would be seen twice.
    """
    segments = getattr(network, "recompute", None)
    if segments is None:
        yield
        return
    try:
        network.recompute = None  # type: ignore[assignment]
        yield
    finally:
        network.recompute = segments
