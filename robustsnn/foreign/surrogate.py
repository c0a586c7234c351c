"""The surrogate of another library, which is asked and never transcribed.

Libraries name surrogates alike and mean different functions, ignore their settings, or let users
write their own. So the function itself is called, and differentiated by autograd where the library
does so too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

#: The range of z within which the area below a surrogate is measured, and the number of intervals.
RANGE, INTERVALS = 50.0, 100_000
#: The widths within which a surrogate with bounds lies whole: a rectangle takes 1, a triangle 2.
#: Tails that float32 rounds to zero lie further out: those of a logistic function 8, of a Gaussian
#: 11.
WIDTHS = 4.0


@dataclass(frozen=True, eq=False)
class OwnSurrogate:
    """A surrogate that a library computes.

    Args:
        slope: The function from the membrane minus the threshold, and the threshold, to the
            derivative of the spike.
        threshold: The threshold above rest, a scalar or a tensor that broadcasts to
            `[batch, ...]`.
    """

    name: ClassVar[str] = "own"
    slope: Callable[[Tensor, Tensor], Tensor] = field(repr=False)
    threshold: Tensor = field(repr=False)

    def derivative(self, z: Tensor) -> Tensor:
        """The surrogate derivative of `z = U/V - 1`, elementwise."""
        threshold = self.threshold.to(z.device, z.dtype)
        return self.slope(z * threshold, threshold) * threshold

    @property
    def amplitude(self) -> float:
        """The value at the threshold."""
        return float(self._at(torch.zeros(1, dtype=torch.float64)))

    @cached_property
    def width(self) -> float:
        """Half the width of a rectangle of the same area and amplitude, in units of the threshold.

        Surrogates of other libraries have no common scale, so this one stands for it.
        """
        area = float(self._table[-1] - self._table[0])
        return abs(area) / (2 * abs(self.amplitude)) if area and self.amplitude else 1.0

    @cached_property
    def support(self) -> float:
        """The distance from the threshold beyond which it is zero, to 0.001; infinite if it is not.

        In units of the threshold.
        """
        grid = torch.linspace(-RANGE, RANGE, INTERVALS + 1, dtype=torch.float64)
        there = grid[self._at(grid) != 0].abs()
        if not len(there):
            return 0.0
        reach = float(there.max()) + 2 * RANGE / INTERVALS
        return reach if reach <= WIDTHS * self.width else math.inf

    def primitive(self, z: Tensor) -> Tensor:
        """The antiderivative, 0 at 0, measured on a grid; constant where |z| is above 50."""
        place = (z.double().clamp(-RANGE, RANGE) + RANGE) * (INTERVALS / (2 * RANGE))
        low = place.floor().long().clamp(0, INTERVALS - 1)
        table = self._table.to(z.device)
        return (table[low] + (place - low) * (table[low + 1] - table[low])).to(z.dtype)

    @cached_property
    def _table(self) -> Tensor:
        """The antiderivative on the grid, by the trapezoidal rule."""
        grid = torch.linspace(-RANGE, RANGE, INTERVALS + 1, dtype=torch.float64)
        value = self._at(grid)
        steps = (value[1:] + value[:-1]) * (RANGE / INTERVALS)
        table = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
        return table - table[INTERVALS // 2]

    def _at(self, z: Tensor) -> Tensor:
        """The derivative at the mean threshold, so that one curve stands for all neurons."""
        mean = self.threshold.mean()
        found = self.slope(z.to(mean.device, mean.dtype) * mean, mean) * mean
        return found.double().cpu()


def slope_of(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The derivative that autograd gives for a library's spike function, elementwise."""

    def slope(x: Tensor, threshold: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            spikes = function(x)
            if not spikes.requires_grad:
                return torch.zeros_like(x)
            (found,) = torch.autograd.grad(spikes.sum(), x, allow_unused=True)
        return torch.zeros_like(x) if found is None else found

    return slope
