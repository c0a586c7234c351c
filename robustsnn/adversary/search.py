"""What searches of the ball share: where they start, what they keep, when they shorten steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError
from robustsnn.models.scoring import judged_margin

#: The length of the first period, by how much each next period is shorter, and the shortest
#: length, as shares of all steps.
FIRST, SHORTER, SHORTEST = 0.22, 0.03, 0.06


@dataclass
class Best:
    """The proposal of largest margin of each image so far, and that margin, `[batch]`."""

    images: Tensor
    margin: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Best:
        """The images themselves at a margin of minus infinity, so that any iterate replaces them.

        Examples:
            >>> Best.of(torch.zeros(2, 1, 1, 1)).margin
            tensor([-inf, -inf])
        """
        return cls(images.clone(), images.new_full((len(images),), -torch.inf))

    def note(self, rows: Tensor, iterates: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Keep the iterates of larger margin; the margins of all iterates, `[row]`.

        Args:
            rows: The positions of the images that the iterates belong to, int64 `[row]`, each
                once; on the device of the images nothing is copied.
            iterates: The iterates, `[row, ...]`.
            logits: The logits of the iterates, `[row, class]`.
            labels: The true classes of those images, int64 `[row]`.
        """
        margins = judged_margin(logits, labels).to(self.margin.dtype)
        where = rows.to(self.margin.device)
        before = self.margin[where]
        better = margins > before
        # A choice by `where`, since the number of entries under a mask is known to the host only
        # once the device is done.
        self.images[where] = chosen(better, iterates, self.images[where])
        self.margin[where] = torch.where(better, margins, before)
        return margins


def chosen(mask: Tensor, these: Tensor, others: Tensor) -> Tensor:
    """The entries `[batch, ...]` of `these` under a mask `[batch]`, and of `others` elsewhere.

    Examples:
        >>> chosen(torch.tensor([True, False]), torch.ones(2, 1), torch.zeros(2, 1)).flatten()
        tensor([1., 0.])
    """
    return torch.where(mask.reshape(-1, *[1] * (these.dim() - 1)), these, others)


def surface_point(images: Tensor, threat: ThreatModel, rng: Rng) -> Tensor:
    """A random point on the surface of the ball around each image, clipped to the range.

    For Linf it is uniform noise, for L2 normal noise, scaled to the length of the radius.
    """
    shape = images.shape[1:]
    if threat.norm == "Linf":
        noise = rng.uniform(shape, -1.0, 1.0, like=images)
        largest = noise.flatten(1).abs().amax(1).clamp_min(1e-12)
        noise = noise * (threat.radius / largest).reshape(-1, *[1] * len(shape))
    else:
        noise = threat.scaled(rng.normal(shape, like=images))
    return threat.project(images + noise, images)


def warm_point(victim: Victim, images: Tensor, threat: ThreatModel, attack: str) -> Tensor:
    """What earlier attacks of a cascade found, projected into the ball and the range.

    Args:
        victim: The victim that holds it as its `start`.
        images: The clean images, `[batch, ...]`.
        threat: The threat model, whose ball is searched.
        attack: The name of the attack that starts there, for the message.

    Raises:
        InputError: There was no earlier attack.
    """
    if victim.start is None:
        raise InputError(
            f"{attack}: warm starts where earlier attacks of a cascade stopped, and there were "
            "none: run it behind them in a cascading suite, or drop warm."
        )
    return threat.project(victim.start.to(images), images)


def checkpoints(steps: int) -> frozenset[int]:
    """The steps, out of that many, after which APGD looks back: 22, 41, 57, 70, ... of 100.

    Examples:
        >>> sorted(checkpoints(100))[:4]
        [22, 41, 57, 70]

    Source: Croce and Hein, ICML 2020, section 3.1; rounded as in AutoAttack.
    """
    period, found = max(int(FIRST * steps), 1), []
    last = period
    while last <= steps:
        found.append(last)
        period = max(period - max(int(SHORTER * steps), 1), max(int(SHORTEST * steps), 1))
        last += period
    return frozenset(found)
