"""Surrogate gradients, which stand in for the derivative of the spike.

A surrogate is a function of the membrane relative to the threshold, `z = U/V - 1`, so that nothing
depends on the scale of a layer: `do/dU = g(z) / V`. `amplitude` is the peak `g(0)`; `width` is
the half-support of the surrogates of bounded support and the scale of the others, in units of the
threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from robustsnn.errors import InputError, unknown


class Surrogate(Protocol):
    """A stand-in for the derivative of the Heaviside step, as a function of `z = U/V - 1`."""

    name: ClassVar[str]

    @property
    def width(self) -> float:
        """Half-support or scale, in units of the threshold."""

    @property
    def amplitude(self) -> float:
        """Peak value `g(0)`."""

    def derivative(self, z: Tensor) -> Tensor:
        """Surrogate derivative `g(z)`, elementwise."""

    def primitive(self, z: Tensor) -> Tensor:
        """The antiderivative `G(z)` of `g` with `G(0) = 0`, elementwise."""


@dataclass(frozen=True)
class Triangle:
    """`g(z) = amplitude * max(0, 1 - |z| / width)`.

    HIRE-SNN and DIET-SNN use a width of 1 and an amplitude of 0.3.

    Source: Bellec et al., NeurIPS 2018; Rathi and Roy, DIET-SNN, 2020.
    """

    name: ClassVar[str] = "triangle"
    width: float = 1.0
    amplitude: float = 0.3

    def derivative(self, z: Tensor) -> Tensor:
        """Surrogate derivative, zero from |z| = width on."""
        slope = self.amplitude / self.width
        return z.abs().mul_(-slope).add_(self.amplitude).clamp_(min=0)

    def primitive(self, z: Tensor) -> Tensor:
        """Antiderivative: a quadratic sigmoid of height `amplitude * width`."""
        r = (z.abs() / self.width).clamp(max=1)
        return self.amplitude * self.width * torch.sign(z) * (r - r * r / 2)


@dataclass(frozen=True)
class Rectangle:
    """`g(z) = amplitude` for `|z| < width`, else 0.

    Source: Wu et al., STBP, Frontiers in Neuroscience 2018 (there of full width a = 2 * width).
    """

    name: ClassVar[str] = "rectangle"
    width: float = 0.5
    amplitude: float = 1.0

    def derivative(self, z: Tensor) -> Tensor:
        """Surrogate derivative, zero from |z| = width on."""
        return (z.abs() < self.width).to(z.dtype) * self.amplitude

    def primitive(self, z: Tensor) -> Tensor:
        """Antiderivative: a clipped ramp."""
        return self.amplitude * z.clamp(-self.width, self.width)


@dataclass(frozen=True)
class Sigmoid:
    """`g(z) = 4 * amplitude * s(z/width) * (1 - s(z/width))` with the logistic function s.

    Source: Zenke and Ganguli, SuperSpike, 2018 (logistic form).
    """

    name: ClassVar[str] = "sigmoid"
    width: float = 0.25
    amplitude: float = 1.0

    def derivative(self, z: Tensor) -> Tensor:
        """Surrogate derivative; both tails underflow to 0, never to NaN."""
        s = torch.sigmoid(z / self.width)
        return 4 * self.amplitude * s * (1 - s)

    def primitive(self, z: Tensor) -> Tensor:
        """Antiderivative: a logistic function shifted to 0 at 0."""
        return 4 * self.amplitude * self.width * (torch.sigmoid(z / self.width) - 0.5)


@dataclass(frozen=True)
class Arctan:
    """`g(z) = amplitude / (1 + (z/width)^2)`.

    Source: Fang et al., ICCV 2021; their alpha is `2 / (pi * width)` for unit area.
    """

    name: ClassVar[str] = "arctan"
    width: float = 1 / math.pi
    amplitude: float = 1.0

    def derivative(self, z: Tensor) -> Tensor:
        """Surrogate derivative, positive everywhere."""
        return self.amplitude / (1 + (z / self.width) ** 2)

    def primitive(self, z: Tensor) -> Tensor:
        """Antiderivative: an arctangent."""
        return self.amplitude * self.width * torch.atan(z / self.width)


@dataclass(frozen=True)
class FastSigmoid:
    """`g(z) = amplitude / (1 + |z|/width)^2`.

    Source: Zenke and Ganguli, SuperSpike, Neural Computation 2018.
    """

    name: ClassVar[str] = "fast-sigmoid"
    width: float = 0.25
    amplitude: float = 1.0

    def derivative(self, z: Tensor) -> Tensor:
        """Surrogate derivative, positive everywhere."""
        return self.amplitude / (1 + z.abs() / self.width) ** 2

    def primitive(self, z: Tensor) -> Tensor:
        """Antiderivative: `z / (1 + |z|/width)`."""
        return self.amplitude * z / (1 + z.abs() / self.width)


@dataclass(frozen=True)
class Gaussian:
    """`g(z) = amplitude * exp(-(z/width)^2 / 2)`.

    Source: Yin et al., Nature Machine Intelligence 2021 (single Gaussian).
    """

    name: ClassVar[str] = "gaussian"
    width: float = 0.5
    amplitude: float = 1.0

    def derivative(self, z: Tensor) -> Tensor:
        """Surrogate derivative, positive until it underflows."""
        return self.amplitude * torch.exp(-0.5 * (z / self.width) ** 2)

    def primitive(self, z: Tensor) -> Tensor:
        """Antiderivative: an error function."""
        scale = self.amplitude * self.width * math.sqrt(math.pi / 2)
        return scale * torch.erf(z / (self.width * math.sqrt(2)))


@dataclass(frozen=True)
class StraightThrough:
    """`g(z) = amplitude`: the gradient passes every neuron, spiking or not.

    `width` exists only because every surrogate has one; it must stay 1.

    Source: Bengio et al., 2013.
    """

    name: ClassVar[str] = "straight-through"
    width: float = 1.0
    amplitude: float = 1.0

    def derivative(self, z: Tensor) -> Tensor:
        """Surrogate derivative, constant."""
        return torch.full_like(z, self.amplitude)

    def primitive(self, z: Tensor) -> Tensor:
        """Antiderivative: a straight line."""
        return self.amplitude * z


SURROGATES: dict[str, type[Surrogate]] = {
    kind.name: kind
    for kind in (Triangle, Rectangle, Sigmoid, Arctan, FastSigmoid, Gaussian, StraightThrough)
}


def make_surrogate(
    name: str, width: float | None = None, amplitude: float | None = None
) -> Surrogate:
    """The surrogate of that name; a value that is not given keeps its default.

    >>> make_surrogate("triangle", width=0.5)
    Triangle(width=0.5, amplitude=0.3)

    Args:
        name: The name, one of `SURROGATES`.
        width: The half-support or scale, in units of the threshold, finite and > 0.
        amplitude: The peak value, finite and > 0.

    Raises:
        InputError: The name is unknown, or a value is not a positive number.
    """
    if name not in SURROGATES:
        raise unknown("surrogate", name, SURROGATES)
    given = {k: v for k, v in (("width", width), ("amplitude", amplitude)) if v is not None}
    for field, value in given.items():
        if not 1e-6 <= value <= 1e6:
            raise InputError(
                f"surrogate {name}: {field} must be a positive number between 1e-6 and 1e6, got "
                f"{value}."
            )
    return SURROGATES[name](**given)


def describe(surrogate: Surrogate) -> str:
    """The surrogate as a text, in the form that records hold.

    >>> describe(Triangle())
    'triangle(width=1,amplitude=0.3)'
    """
    return f"{surrogate.name}(width={surrogate.width:g},amplitude={surrogate.amplitude:g})"
