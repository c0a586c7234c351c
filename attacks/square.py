"""Square: a random search by score over square windows, without any gradient."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustsnn.adversary.search import Best, warm_point
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError

#: The number of queries that the schedule is written for; it is stretched to any other number.
SCALE = 10_000
#: After each of these queries the share of pixels in a window is halved.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
#: The number of tiles along the smaller side at the start in L2.
TILES = 5
#: The number of signs drawn for each window; the first that changes a pixel is taken.
TRIES = 8
#: The number of queries whose draws are made at once.
BLOCK = 50


@dataclass(frozen=True)
class Square:
    """A random search that changes one square window at a time and keeps what raises the margin.

    It sees logits only, so nothing that hides gradients helps against it. In Linf every channel
    of a window goes to one end of the ball; in L2 the perturbation of one window is given up, and
    its size goes to a bump in another window.

    Args:
        queries: The number of forward passes of each image, >= 1.
        share: The share of the pixels in the first windows, in (0, 1].
        warm: Whether to start from what earlier attacks of a cascade found instead of stripes.
        offset: The position on the schedule of 10,000 queries where the windows start, in
            [0, 10000). The queries run through the rest of the schedule, so 200 begins with an
            eighth of `share`. It is for a warm start, whose perturbation the largest windows would
            only wipe out.
        draws: The number of passes that a query takes the mean of on a stochastic network, with
            the same draws every time.

    An image is left alone once it is misclassified, except on a stochastic network.

    Raises:
        InputError: A value is out of its range.

    Source: Andriushchenko et al., ECCV 2020, algorithms 1 to 3; the warm start is ours.
    """

    kind: ClassVar[str] = "fixed-epsilon"
    gradient_free: ClassVar[bool] = True
    queries: int = 5000
    share: float = 0.8
    warm: bool = False
    offset: int = 0
    draws: int = 1

    def __post_init__(self) -> None:
        if self.queries < 1 or self.draws < 1:
            raise InputError("square: queries and draws must be at least 1.")
        if not 0 < self.share <= 1:
            raise InputError("square: share must be above 0 and at most 1.")
        if not 0 <= self.offset < SCALE:
            raise InputError(f"square: offset must be at least 0 and below {SCALE}.")

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, ...]`.

        Raises:
            InputError: `warm` is set and there was no earlier attack, or the images do not have
                height and width.
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
        # The rows on the device, and what belongs to them.
        here, part, around, true = rows.to(x.device), victim, search(images, threat), labels
        best.note(here, x, victim.logits(x, self.draws), labels)
        shape = (BLOCK, search.columns(images.shape[1]))
        draws = torch.empty(len(images), *shape, dtype=torch.float64, device=x.device)
        for query in range(1, self.queries):
            # To leave out what is done is the one reason for which a query asks the device.
            if not victim.stochastic and not bool((left := (best.margin[here] <= 0).cpu()).all()):
                kept = left.nonzero().flatten().to(x.device)
                rows, here, draws = rows[left], here[kept], draws[kept]
                if len(rows) == 0:
                    break
                part, true = victim.select(rows), labels[here]
                around = search(images[here], threat)
            turn = (query - 1) % BLOCK
            if turn == 0:
                draws = rng.select(rows).uniform(shape, 0.0, 1.0, like=draws)
            side = self.side(query - 1, images.shape)
            x = around.changed(best.images[here], side, draws[:, turn])
            best.note(here, x, part.logits(x, self.draws), true)
        return best.images

    def side(self, query: int, shape: torch.Size) -> int:
        """The side of the window at that query, from 1 to the smaller side of the image."""
        position = self.offset + query * (SCALE - self.offset) // self.queries
        share = self.share / 2 ** sum(position > halving for halving in HALVINGS)
        height, width = shape[-2:]
        return min(max(round(math.sqrt(share * height * width)), 1), height, width)


class _Windows:
    """Changes in Linf, where each channel of a window goes to one end of the ball."""

    def __init__(self, images: Tensor, threat: ThreatModel) -> None:
        self.high = threat.project(images + 2 * threat.radius, images)
        self.low = threat.project(images - 2 * threat.radius, images)

    @staticmethod
    def columns(channels: int) -> int:
        """The number of random numbers that one change of an image takes."""
        return 2 + TRIES * channels

    def changed(self, x: Tensor, side: int, draws: Tensor) -> Tensor:
        """The best points `[batch, ...]`, changed in place, each in a window drawn for it."""
        window = _window(draws[:, 0], draws[:, 1], side, x)
        now, high, low = x[window], self.high[window], self.low[window]
        up = draws[:, 2:].unflatten(1, (TRIES, x.shape[1])) < 0.5
        # A sign that changes no pixel would waste the query.
        rises, falls = (now != high).any((1, 2))[:, None], (now != low).any((1, 2))[:, None]
        first = torch.where(up, rises, falls).any(2).to(torch.uint8).argmax(1)
        up = up[torch.arange(len(x), device=x.device), first]
        x[window] = torch.where(up[:, None, None], high, low)
        return x


class _Bumps:
    """Changes in L2, where the share of one window in the ball goes to a bump in another."""

    def __init__(self, images: Tensor, threat: ThreatModel) -> None:
        self.images, self.threat = images, threat

    @staticmethod
    def columns(channels: int) -> int:
        """The number of random numbers that one change of an image takes."""
        return 5 + channels

    def changed(self, x: Tensor, side: int, draws: Tensor) -> Tensor:
        """The best points `[batch, ...]`, each changed in two windows drawn for it."""
        height, width = x.shape[-2:]
        # A bump has two halves, each strongest in its middle.
        side = min(max(side | 1, 3), height, width)
        gains = _window(draws[:, 0], draws[:, 1], side, x)
        loses = _window(draws[:, 2], draws[:, 3], side, x)
        signs = torch.where(draws[:, 5:] < 0.5, -1.0, 1.0).to(x.dtype)[:, None, None]
        bump = _bump_like(side, x.dtype, x.device)[..., None]
        bump = torch.where((draws[:, 4] < 0.5)[:, None, None, None], bump.transpose(0, 1), bump)
        delta = x - self.images
        unused = (self.threat.radius**2 - _length(delta).square()).clamp_min(0) / x.shape[1]
        old = delta[gains]
        size = unused.reshape(-1, 1, 1, 1) + old.square().sum((1, 2), keepdim=True)
        delta[gains] = 0
        # Pixels that are in both windows are counted once.
        size = size + delta[loses].square().sum((1, 2), keepdim=True)
        delta[loses] = 0
        delta[gains] = _unit(bump * signs + _unit(old)) * size.sqrt()
        # The factor is rounded down, or a point would leave a large ball by more than the slack.
        factor = self.threat.radius / _length(delta) * (1 - 4 * torch.finfo(x.dtype).eps)
        x = torch.addcmul(self.images, delta, factor.reshape(-1, 1, 1, 1))
        return x.clamp_(self.threat.low, self.threat.high)


Window = tuple[Tensor, slice, Tensor, Tensor]
"""An index of a square in each image; with it, images give `[batch, side, side, channel]`."""


def _window(top: Tensor, left: Tensor, side: int, like: Tensor) -> Window:
    """The window of each image, at the position of two uniform draws, `[batch]` each."""
    ahead = torch.arange(side, device=like.device)
    rows, columns = (
        (draw * (length - side + 1)).long().clamp(max=length - side)[:, None] + ahead
        for draw, length in zip((top, left), like.shape[-2:], strict=True)
    )
    batch = torch.arange(len(like), device=like.device)
    return batch[:, None, None], slice(None), rows[:, :, None], columns[:, None, :]


def _stripes(images: Tensor, threat: ThreatModel, rng: Rng) -> Tensor:
    """The start in Linf: vertical stripes of one pixel, each channel at one end of the ball."""
    draws = rng.uniform((images.shape[1], 1, images.shape[3]), 0.0, 1.0, like=images)
    signs = torch.where(draws < 0.5, -1.0, 1.0).to(images.dtype)
    return threat.project(images + threat.radius * signs, images)


def _tiles(images: Tensor, threat: ThreatModel, rng: Rng) -> Tensor:
    """The start in L2: bumps of random sign and direction over the image, scaled to the ball."""
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
    """Two halves of opposite sign that fall off from their middles, L2 size 1, `[side, side]`."""
    upper = side // 2
    bump = torch.cat([_hill(upper, side), -_hill(side - upper, side)])
    return bump / bump.square().sum().sqrt()


@functools.cache
def _bump_like(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same, of that type and on that device, to which it is copied once."""
    return _bump(side).to(device, dtype)


def _hill(height: int, width: int) -> Tensor:
    """The sum of 1 / k^2 over centred rectangles of growing size k, L2 size 1, float64."""
    rows = (torch.arange(height) - height // 2).abs()[:, None]
    columns = (torch.arange(width) - width // 2).abs()[None, :]
    most = max(height, width) // 2 + 1
    tails = (1 / torch.arange(1, most + 1, dtype=torch.float64).square()).flip(0).cumsum(0).flip(0)
    hill = tails[torch.maximum(rows, columns)]
    return hill / hill.square().sum().sqrt().clamp_min(1e-12)


def _unit(values: Tensor) -> Tensor:
    """Windows `[batch, side, side, channel]`, each channel scaled to size 1; 0 if it is all 0."""
    return values / values.square().sum((1, 2), keepdim=True).sqrt().clamp_min(1e-12)


def _length(delta: Tensor) -> Tensor:
    """The size of each perturbation in L2, `[batch]`."""
    length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return length.clamp_min(1e-12)


ATTACK = Square
