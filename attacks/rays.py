"""RayS: a search by labels alone for the direction in which another class is nearest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustsnn.adversary.losses import judged_margin
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError

#: The share of a radius, and of that of the ball, to which a radius is bisected.
PRECISION, OF_BALL = 0.02, 0.1


@dataclass(frozen=True)
class RayS:
    """A search over directions of signs, blocks of which are flipped, first large then small.

    It asks for decisions only: whether a point is misclassified. So nothing that hides gradients,
    or makes logits flat, helps against it. A flip of a block is kept if the point in the new
    direction at the radius so far is misclassified; the radius is then bisected. The search ends
    where the radius fits into the ball, or with its budget.

    Args:
        queries: The number of forward passes of each image, >= 1.

    In L2 the directions are those of signs, too, which hardly are the nearest ones there.

    Raises:
        InputError: The number of queries is out of its range.

    Source: Chen and Gu, RayS, KDD 2020, algorithms 1 to 3.
    """

    kind: ClassVar[str] = "fixed-epsilon"
    gradient_free: ClassVar[bool] = True
    queries: int = 1000

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise InputError("rays: queries must be at least 1.")

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, ...]`: the last point in the ball along the best direction.

        Raises:
            InputError: The network is stochastic, so its decisions have no boundary.
        """
        if victim.stochastic:
            raise InputError(
                "rays follows decisions, and those of a stochastic network change from pass to "
                "pass: use square."
            )
        proposals = images.clone()
        if threat.radius == 0 or len(images) == 0:
            return proposals
        rays, rows, part = _Rays(images, threat), torch.arange(len(images)), victim
        for _ in range(self.queries):
            x = rays.asked()
            wrong = judged_margin(part.logits(x), labels[rows]) >= 0
            rays.answered(wrong)
            left = ~rays.done
            if not bool(left.all()):
                gone = ~left
                proposals[rows[gone.cpu()]] = rays.points()[gone]
                rows = rows[left.cpu()]
                rays = rays.at(left)
                if len(rows) == 0:
                    return proposals
                part = victim.select(rows)
        proposals[rows] = rays.points()
        return proposals


class _Rays:
    """The state of the search of each image; `radius` is infinite until one is found.

    Each image either tries a direction, or bisects the radius of one that was misclassified.
    """

    def __init__(self, images: Tensor, threat: ThreatModel) -> None:
        self.images, self.threat = images, threat
        count, values = len(images), images[0].numel()
        like = {"device": images.device, "dtype": torch.float64}
        self.unit = 1.0 if threat.norm == "Linf" else 1 / math.sqrt(values)
        self.farthest = (threat.high - threat.low) / self.unit
        self.levels = max(0, math.ceil(math.log2(values)))
        self.signs = images.new_ones(count, values)
        self.tried = self.signs.clone()
        self.radius = torch.full((count,), math.inf, **like)  # type: ignore[call-overload]
        self.low, self.high = torch.zeros(count, **like), torch.zeros(count, **like)  # type: ignore[call-overload]
        self.bisecting = torch.zeros(count, dtype=torch.bool, device=images.device)
        # The first direction is tried as it is, before any block of it.
        self.level = torch.zeros(count, dtype=torch.int64, device=images.device)
        self.block = torch.full_like(self.level, -1)

    def asked(self) -> Tensor:
        """The next points, `[image, ...]`."""
        radius = torch.where(self.bisecting, self.middle, self.radius.clamp_max(self.farthest))
        return self._along(self.tried, radius)

    def answered(self, wrong: Tensor) -> None:
        """Take in whether each of those points is misclassified."""
        trying = ~self.bisecting
        found, failed = trying & wrong, trying & ~wrong
        self.signs = torch.where(found[:, None], self.tried, self.signs)
        now, middle = self.radius.clamp_max(self.farthest), self.middle
        self.high = torch.where(found, now, torch.where(self.bisecting & wrong, middle, self.high))
        self.low = torch.where(found, 0.0, torch.where(self.bisecting & ~wrong, middle, self.low))
        self.bisecting = self.bisecting | found
        self.radius = torch.where(self.bisecting, self.high, self.radius)
        ended = self.bisecting & self.narrow & ~self.around
        self.bisecting = self.bisecting & ~ended
        self._next(ended | failed)

    @property
    def narrow(self) -> Tensor:
        """Whether the radius of each image is known well enough."""
        least = torch.clamp(PRECISION * self.high, min=OF_BALL * self.threat.radius)
        known: Tensor = self.high - self.low <= least
        return known

    @property
    def around(self) -> Tensor:
        """Whether the radius of the ball lies between the bounds of that of each image."""
        inside: Tensor = (self.low < self.threat.radius) & (self.high > self.threat.radius)
        return inside

    @property
    def middle(self) -> Tensor:
        """The radius that a bisection asks next: in the end that of the ball itself."""
        half = (self.low + self.high) / 2
        return torch.where(self.narrow & self.around, self.threat.radius, half)

    @property
    def done(self) -> Tensor:
        """Whether the radius of each image fits into the ball."""
        fits: Tensor = self.radius <= self.threat.radius
        return fits

    def points(self) -> Tensor:
        """The points along the best directions, in the ball, `[image, ...]`."""
        return self.threat.project(
            self._along(self.signs, self.radius.clamp_max(self.threat.radius)), self.images
        )

    def at(self, chosen: Tensor) -> _Rays:
        """The state of a part of the images."""
        part = _Rays.__new__(_Rays)
        part.__dict__.update(self.__dict__)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(part, name, value[chosen])
        return part

    def _along(self, signs: Tensor, radius: Tensor) -> Tensor:
        step = (signs * (radius * self.unit)[:, None]).to(self.images.dtype)
        moved = self.images + step.reshape(self.images.shape)
        return moved.clamp(self.threat.low, self.threat.high)

    def _next(self, which: Tensor) -> None:
        """The next block of those images: one flipped in their best direction."""
        self.block = torch.where(which, self.block + 1, self.block)
        over = self.block >= 2**self.level
        self.level = torch.where(over, (self.level + 1).clamp_max(self.levels), self.level)
        self.block = torch.where(over, 0, self.block)
        values = self.signs.shape[1]
        # Blocks of equal size but for one value, in the order of the pixels.
        place = torch.arange(values, device=self.signs.device)
        blocks = 2 ** self.level[:, None]
        inside = (place * blocks).div(values, rounding_mode="floor") == self.block[:, None]
        flipped = torch.where(inside, -self.signs, self.signs)
        self.tried = torch.where(which[:, None], flipped, self.tried)


ATTACK = RayS
