"""Threat models: how far, in which norm and in which pixel range an attacker may go."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from robustsnn.common.epsilon import norm as norm_named
from robustsnn.common.epsilon import parse_epsilon as parse_epsilon
from robustsnn.common.epsilon import sizes
from robustsnn.common.kinds import NORMS
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError, unknown


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class ThreatModel:
    """The ball around each image and the pixel range that a proposal must stay in.

    Args:
        norm: The norm, `Linf` or `L2`.
        epsilon: The radius as the user or the paper wrote it (`8/255`), in pixel units of [0, 1].
        low: The lowest pixel value.
        high: The highest pixel value.

    Raises:
        InputError: The norm is unknown, or epsilon is not a radius.

    Examples:
        >>> ThreatModel("Linf", "51/255").radius
        0.2
    """

    norm: str
    epsilon: str
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        # A program may give 2 and 0.5 for L2 and "0.5".
        given: Any = self.norm
        if not isinstance(given, str):
            object.__setattr__(self, "norm", norm_named(given))
        object.__setattr__(self, "epsilon", sizes(self.epsilon))
        if self.norm not in NORMS:
            raise unknown("norm", self.norm, NORMS)
        object.__setattr__(self, "epsilon", str(self.epsilon).strip())
        if self.norm == "Linf" and self.radius > self.high - self.low:
            remedy = "stay within it" if "/" in self.epsilon else f"write {self.epsilon}/255"
            raise InputError(
                f"epsilon {self.epsilon!r} is more than the whole pixel range of "
                f"[{self.low:g}, {self.high:g}]: {remedy}."
            )

    @cached_property
    def radius(self) -> float:
        """Epsilon as a number, in pixel units."""
        return parse_epsilon(self.epsilon)

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """Each proposal moved into the ball around its image and into the range, `[batch, ...]`.

        A proposal is projected into the ball first and then into the range; since the image itself
        is in range, the second step only moves the proposal closer to it. For Linf the result is
        the nearest point of both sets; for L2 it is a point of both sets, not always the nearest.
        The result is a new tensor.

        Args:
            adversarial: The proposals, `[batch, ...]`.
            images: The images that they belong to, `[batch, ...]`.

        Examples:
            >>> ball = ThreatModel("Linf", "0.25")
            >>> ball.project(torch.tensor([[1.0, 0.5]]), torch.tensor([[0.5, 0.5]]))
            tensor([[0.7500, 0.5000]])
        """
        delta = adversarial - images
        if self.norm == "Linf":
            delta = delta.clamp(-self.radius, self.radius)
        else:
            size = self._size(delta).clamp_min(torch.finfo(torch.float64).tiny)
            # In float64: a factor rounded up would leave a large ball by more than the slack.
            factor = _per_image((self.radius / size).clamp(max=1), delta)
            delta = (delta.double() * factor).to(delta.dtype)
        return (images + delta).clamp(self.low, self.high)

    def distance(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """The distance of each proposal from its image in the norm, float64 `[batch]`."""
        return self._size(adversarial.double() - images.double())

    def admits(self, adversarial: Tensor, images: Tensor, slack: float = 1e-6) -> Tensor:
        """Whether each proposal is finite, in the ball and in range, bool `[batch]`.

        Args:
            adversarial: The proposals, `[batch, ...]`.
            images: The images that they belong to, `[batch, ...]`.
            slack: The distance that rounding may add: `(x + e) - x` exceeds 8/255 by 6e-8 in
                float32.
        """
        flat = adversarial.flatten(1)
        in_range = (flat >= self.low - slack).all(1) & (flat <= self.high + slack).all(1)
        return in_range & (self.distance(adversarial, images) <= self.radius + slack)

    def ascent(self, gradient: Tensor) -> Tensor:
        """The step of length 1 along which a linear loss grows most, shaped like the gradient.

        For Linf it is the sign of the gradient; where that is zero, the pixel stays untouched. For
        L2 it is the normalised gradient, and zero for an image whose gradient is all zero.
        """
        if self.norm == "Linf":
            return gradient.sign()
        return self._unit(gradient)

    def scaled(self, noise: Tensor) -> Tensor:
        """The noise of each image, `[batch, ...]`, scaled to exactly the length of the radius."""
        return self._unit(noise) * self.radius

    def random_point(self, images: Tensor, rng: Rng) -> Tensor:
        """A point drawn uniformly from the ball around each image, then clipped to the range.

        Linf draws each pixel from U(-epsilon, epsilon); L2 draws a direction from a normal
        distribution and a length `epsilon * u^(1/d)`.
        """
        shape = images.shape[1:]
        if self.norm == "Linf":
            delta = rng.uniform(shape, -self.radius, self.radius, like=images)
        else:
            length = rng.uniform((), 0.0, 1.0, like=images) ** (1 / max(math.prod(shape), 1))
            delta = self.scaled(rng.normal(shape, like=images)) * _per_image(length, images)
        return self.project(images + delta, images)

    def _size(self, delta: Tensor) -> Tensor:
        flat = delta.flatten(1).double()
        if self.norm == "Linf":
            return flat.abs().amax(1)
        return flat.square().sum(1).sqrt()

    def _unit(self, values: Tensor) -> Tensor:
        # In float64 and scaled by the largest entry first: the squares of a vanishing gradient
        # underflow, and a constant added to the norm would shrink the step.
        wide = values.double()
        largest = wide.flatten(1).abs().amax(1)
        wide = wide / _per_image(torch.where(largest > 0, largest, 1.0), wide)
        size = self._size(wide)
        return (wide / _per_image(torch.where(size > 0, size, 1.0), wide)).to(values.dtype)
