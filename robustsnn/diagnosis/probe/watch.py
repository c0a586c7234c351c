"""An estimator that also notes what passes through each spiking layer on the way back."""

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
from robustsnn.estimators.bptt import ThroughTime, surrogate_derivative
from robustsnn.snn.backward_rule import BackwardRule, Trace, spiking_layers
from robustsnn.snn.surrogate import Rectangle, Surrogate, Triangle

#: A membrane so near to the threshold, in units of it, is one that small changes flip.
NEAR = 0.1
#: The width of the arctangent whose vanishing degree stands beside the own surrogate's: alpha 8.
SHARP = 0.0796


@dataclass
class LayerWatch:
    """What the backward passes of a layer were seen to do, summed over images.

    Args:
        entries: Values of the current, of every image, neuron and step.
        zero: Gradients of the current that are zero.
        silent: Where surrogate derivative times gradient of the spike is zero.
        nonfinite: NaN or infinite gradients of the current.
        near: Membranes within `NEAR` of the threshold.
        inside: Membranes within the width of the surrogate.
        compact: Whether the surrogate is zero beyond its width.
        vanishing: Sum of the surrogate's mass between -|z| and |z|, as a share of all of it.
        sharp: The same for an arctangent of width `SHARP`.
        lengths: Length of the gradient of the spikes, of each image.
        temporal: Mean cosine of the current's gradients of adjacent steps, of each image.
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
        """A sum as a share of all entries."""
        return count / self.entries if self.entries else 0.0

    def note(self, grad: Tensor, trace: Trace, found: Tensor) -> None:
        """Take in a backward pass.

        Args:
            grad: Gradient of the spikes, `[time, batch, ...]`.
            trace: Of the layer; images beyond the batch of `grad` are left out.
            found: Gradient of the current, as large as `grad`.
        """
        images, surrogate = grad.shape[1], trace.surrogate
        self.entries += found.numel()
        self.zero += int((found == 0).sum())
        self.nonfinite += int((~found.isfinite()).sum())
        self.compact = isinstance(surrogate, Triangle | Rectangle)
        derivative = surrogate_derivative(trace, surrogate)
        for t, membrane in enumerate(trace.membranes):
            z = (membrane[:images] / trace.threshold).sub_(1).abs_()
            self.silent += int((derivative[t][:images] * grad[t] == 0).sum())
            self.near += int((z < NEAR).sum())
            self.inside += int((z < surrogate.width).sum())
            self.vanishing += float(mass(surrogate, z).double().sum())
            self.sharp += float((2 / math.pi * (z / SHARP).atan()).double().sum())
        self.lengths += grad.double().transpose(0, 1).flatten(1).norm(dim=1).tolist()
        if len(found) > 1:
            steps = found.double().flatten(2).cpu().numpy()
            pairs = [cosine(a, b) for a, b in pairwise(steps)]
            self.temporal += np.mean(pairs, 0).tolist()


def mass(surrogate: Surrogate, z: Tensor) -> Tensor:
    """Share of a surrogate's area between -z and z, in [0, 1]; z at least 0.

    Source: the vanishing degree of Wang et al., arXiv 2512.22522.
    """
    whole = surrogate.primitive(torch.full((), 1e6, dtype=torch.float64))
    return (surrogate.primitive(z) / float(whole)).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Watched(Estimator):
    """Another estimator, watched: what it gives is unchanged.

    Args:
        inner: That one.
        layers: Filled by layer name; layers of a network that names none stay unseen.
    """

    inner: Estimator
    layers: dict[str, LayerWatch]

    @property
    def name(self) -> str:
        """The inner one's."""
        return self.inner.name

    def __post_init__(self) -> None:
        object.__setattr__(self, "faithful", self.inner.faithful)

    def forget(self, rows: Tensor) -> None:
        """As the inner one."""
        self.inner.forget(rows)

    @contextmanager
    def applied(self, network: nn.Module, rows: Tensor | None = None) -> Iterator[None]:
        """As the inner one; images that only pad the batch are not seen."""
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
    """The network over all its time steps at once: segments run again would be seen twice."""
    segments = getattr(network, "recompute", None)
    if segments is None:
        yield
        return
    try:
        network.recompute = None  # type: ignore[assignment]
        yield
    finally:
        network.recompute = segments
