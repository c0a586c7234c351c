"""Square: random search by score over square windows, without any gradient."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustsnn.errors import InputError
from robustsnn.randomness import Rng
from robustsnn.search import Best, warm_point
from robustsnn.threat import ThreatModel
from robustsnn.victim import Victim

#: The schedule is written for so many queries, and stretched to any other number.
SCALE = 10_000
#: After each of these the share of pixels in a window is half of what it was.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
#: The start in L2 has tiles of a fifth of the smaller side.
TILES = 5
#: Signs drawn for each window, of which the first that changes a pixel is taken.
TRIES = 8
#: Queries whose draws are made at once.
BLOCK = 50


@dataclass(frozen=True)
class Square:
    """Random search that changes one square window at a time and keeps what raises the margin.

    It sees logits only, so nothing that hides gradients helps against it. In Linf every channel
    of a window goes to one end of the ball; in L2 the perturbation of one window is given up and
    its size goes to a bump in another.

    Args:
        queries: Forward passes of each image, >= 1.
        share: Share of the pixels in the first windows, in (0, 1].
        warm: Start from what earlier attacks of a cascade found instead of stripes.
        offset: Where on the schedule of 10,000 the windows start, in [0, 10000): the queries
            run through what is left of it, so 200 begins with an eighth of `share`. For a warm
            start, whose perturbation the largest windows would only wipe out.

    An image is left alone once it is misclassified, except on a stochastic network.

    Raises:
        InputError: A value out of its range.

    Source: Andriushchenko et al., ECCV 2020, algorithms 1 to 3; the warm start is ours.
    """

    kind: ClassVar[str] = "fixed-epsilon"
    gradient_free: ClassVar[bool] = True
    queries: int = 5000
    share: float = 0.8
    warm: bool = False
    offset: int = 0

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise InputError("square: queries must be at least 1.")
        if not 0 < self.share <= 1:
            raise InputError("square: share must be above 0 and at most 1.")
        if not 0 <= self.offset < SCALE:
            raise InputError(f"square: offset must be at least 0 and below {SCALE}.")

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, ...]`.

        Raises:
            InputError: `warm` without an earlier attack, or images without height and width.
        """
        if images.dim() != 4:
            raise InputError(
                f"square needs images [channel, height, width], not {list(images.shape[1:])}: "
                "use apgd."
            )
        if self.warm:
            x = warm_point(victim, images, threat, "square")
        else:
            x = (_stripes if threat.norm == "Linf" else _tiles)(images, threat, rng)
        search = _Windows if threat.norm == "Linf" else _Bumps
        best, rows = Best.of(images), torch.arange(len(images))
        best.note(rows, x, victim.logits(x), labels)
        part, around, true = victim, search(images, threat), labels
        shape = (BLOCK, search.columns(images.shape[1]))
        draws = torch.empty(len(images), *shape, dtype=torch.float64)
        for query in range(1, self.queries):
            left = (best.margin[rows] <= 0).cpu()
            if not victim.stochastic and not bool(left.all()):
                rows, draws = rows[left], draws[left]
                if len(rows) == 0:
                    break
                part, true = victim.select(rows), labels[rows]
                around = search(images[rows], threat)
            turn = (query - 1) % BLOCK
            if turn == 0:
                draws = rng.select(rows).uniform(shape, 0.0, 1.0, like=draws)
            side = self.side(query - 1, images.shape)
            x = around.changed(best.images[rows], side, draws[:, turn].to(images.device))
            best.note(rows, x, part.logits(x), true)
        return best.images

    def side(self, query: int, shape: torch.Size) -> int:
        """Side of the window at that query, 1 to the smaller side of the image."""
        position = self.offset + query * (SCALE - self.offset) // self.queries
        share = self.share / 2 ** sum(position > halving for halving in HALVINGS)
        height, width = shape[-2:]
        return min(max(round(math.sqrt(share * height * width)), 1), height, width)


class _Windows:
    """Changes in Linf: each channel of a window goes to one end of the ball."""

    def __init__(self, images: Tensor, threat: ThreatModel) -> None:
        self.high = threat.project(images + 2 * threat.radius, images)
        self.low = threat.project(images - 2 * threat.radius, images)

    @staticmethod
    def columns(channels: int) -> int:
        """Random numbers that one change of an image takes."""
        return 2 + TRIES * channels

    def changed(self, x: Tensor, side: int, draws: Tensor) -> Tensor:
        """The best points `[batch, ...]`, each changed in a window drawn for it."""
        inside = _Place(draws[:, 0], draws[:, 1], side, x).inside
        up = draws[:, 2:].unflatten(1, (TRIES, x.shape[1])) < 0.5
        # A sign that moves no pixel would waste the query.
        rises = ((x != self.high) & inside).flatten(2).any(2)[:, None]
        falls = ((x != self.low) & inside).flatten(2).any(2)[:, None]
        moves = torch.where(up, rises, falls).any(2)
        first = moves.to(torch.uint8).argmax(1)
        up = up[torch.arange(len(x), device=x.device), first][:, :, None, None]
        return torch.where(inside, torch.where(up, self.high, self.low), x)


class _Bumps:
    """Changes in L2: one window's share of the ball goes to a bump in another."""

    def __init__(self, images: Tensor, threat: ThreatModel) -> None:
        self.images, self.threat = images, threat

    @staticmethod
    def columns(channels: int) -> int:
        """Random numbers that one change of an image takes."""
        return 5 + channels

    def changed(self, x: Tensor, side: int, draws: Tensor) -> Tensor:
        """The best points `[batch, ...]`, each changed in two windows drawn for it."""
        height, width = x.shape[-2:]
        # A bump has two halves, and a middle where the halves are strongest.
        side = min(max(side | 1, 3), height, width)
        gains = _Place(draws[:, 0], draws[:, 1], side, x)
        loses = _Place(draws[:, 2], draws[:, 3], side, x)
        signs = torch.where(draws[:, 5:] < 0.5, -1.0, 1.0).to(x.dtype)[:, :, None, None]
        delta = x - self.images
        unused = (self.threat.radius**2 - delta.flatten(1).square().sum(1)).clamp_min(0)
        either = gains.inside | loses.inside
        size = (delta * either).square().sum((-2, -1), keepdim=True)
        size = (size + unused.reshape(-1, 1, 1, 1) / x.shape[1]).sqrt()
        old = _unit(delta * gains.inside)
        new = _unit(gains.placed(_bump(side).to(x), draws[:, 4] < 0.5) * signs + old)
        delta = torch.where(either, new * size, delta)
        x = self.images + self.threat.scaled(delta)
        return x.clamp(self.threat.low, self.threat.high)


class _Place:
    """A square window of each image, from two uniform draws `[batch]` each."""

    def __init__(self, top: Tensor, left: Tensor, side: int, like: Tensor) -> None:
        height, width = like.shape[-2:]
        self.side = side
        self._down = _offsets(top, height, side)
        self._across = _offsets(left, width, side)
        down, across = ((0 <= at) & (at < side) for at in (self._down, self._across))
        #: Whether a pixel lies in the window, `[batch, 1, height, width]`.
        self.inside = (down[:, :, None] & across[:, None, :])[:, None]

    def placed(self, pattern: Tensor, turned: Tensor) -> Tensor:
        """A pattern `[side, side]` in each window, transposed where that is said, else 0."""
        down = self._down.clamp(0, self.side - 1)[:, :, None]
        across = self._across.clamp(0, self.side - 1)[:, None, :]
        values = torch.where(turned[:, None, None], pattern[across, down], pattern[down, across])
        return values[:, None] * self.inside


def _offsets(draw: Tensor, length: int, side: int) -> Tensor:
    """How far each pixel along an axis is from where the window begins, `[batch, length]`."""
    begin = (draw * (length - side + 1)).long().clamp(max=length - side)
    return torch.arange(length, device=draw.device) - begin[:, None]


def _stripes(images: Tensor, threat: ThreatModel, rng: Rng) -> Tensor:
    """Vertical stripes of one pixel, each channel at one end of the ball."""
    draws = rng.uniform((images.shape[1], 1, images.shape[3]), 0.0, 1.0, like=images)
    signs = torch.where(draws < 0.5, -1.0, 1.0).to(images.dtype)
    return threat.project(images + threat.radius * signs, images)


def _tiles(images: Tensor, threat: ThreatModel, rng: Rng) -> Tensor:
    """Bumps of random sign and direction over the whole image, of the size of the ball."""
    channels, height, width = images.shape[1:]
    side = max(min(height, width) // TILES, 1)
    bump = _bump(side).to(images)
    noise = torch.zeros_like(images)
    for top in range(height % side // 2, height - side + 1, side):
        for left in range(width % side // 2, width - side + 1, side):
            draws = rng.uniform((1 + channels,), 0.0, 1.0, like=images)[:, :, None, None]
            tile = torch.where(draws[:, :1] < 0.5, bump.T, bump)
            signs = torch.where(draws[:, 1:] < 0.5, -1.0, 1.0).to(images.dtype)
            noise[..., top : top + side, left : left + side] = tile * signs
    return (images + threat.scaled(noise)).clamp(threat.low, threat.high)


@functools.cache
def _bump(side: int) -> Tensor:
    """Two halves of opposite sign that fall off from their middles, of size 1, `[side, side]`."""
    upper = side // 2
    bump = torch.cat([_hill(upper, side), -_hill(side - upper, side)])
    return bump / bump.square().sum().sqrt()


def _hill(height: int, width: int) -> Tensor:
    """Sum over growing centred rectangles k of 1 / k^2, of size 1, float64."""
    rows = (torch.arange(height) - height // 2).abs()[:, None]
    columns = (torch.arange(width) - width // 2).abs()[None, :]
    most = max(height, width) // 2 + 1
    tails = (1 / torch.arange(1, most + 1, dtype=torch.float64).square()).flip(0).cumsum(0).flip(0)
    hill = tails[torch.maximum(rows, columns)]
    return hill / hill.square().sum().sqrt().clamp_min(1e-12)


def _unit(values: Tensor) -> Tensor:
    """Each channel of each image scaled to size 1; 0 where it is all 0."""
    return values / values.square().sum((-2, -1), keepdim=True).sqrt().clamp_min(1e-12)


ATTACK = Square
