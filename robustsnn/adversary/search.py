"""What searches of the ball share: where they start, what they keep, when steps get shorter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError
from robustsnn.models.scoring import judged_margin

#: Length of the first period, what each next one is shorter, and the shortest; of all steps.
FIRST, SHORTER, SHORTEST = 0.22, 0.03, 0.06


@dataclass
class Best:
    """The proposal of largest margin of each image so far, and that margin, `[batch]`."""

    images: Tensor
    margin: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Best:
        """The images themselves, which any iterate replaces."""
        return cls(images.clone(), images.new_full((len(images),), -torch.inf))

    def note(self, rows: Tensor, iterates: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Keep iterates of larger margin; the margins of all of them, `[row]`.

        Args:
            rows: Which images they are iterates of, int64 on the CPU.
            iterates: `[row, ...]`.
            logits: What the network says of them.
            labels: True classes of those images.
        """
        margins = judged_margin(logits, labels).to(self.margin.dtype)
        where = rows.to(self.margin.device)
        better = margins > self.margin[where]
        self.images[where[better]] = iterates[better]
        self.margin[where[better]] = margins[better]
        return margins


def surface_point(images: Tensor, threat: ThreatModel, rng: Rng) -> Tensor:
    """A random point on the surface of the ball around each image, then clipped to the range.

    Linf scales uniform noise, L2 normal noise, to the size of the radius.
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
    """What earlier attacks of a cascade found, within the ball and the range.

    Args:
        victim: Whose `start` it is.
        images: `[batch, ...]`.
        threat: The ball.
        attack: Who asks, for the message.

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
    """After how many of so many steps APGD looks back: 22, 41, 57, 70, ... of 100.

    Source: Croce and Hein, ICML 2020, section 3.1; rounded as in AutoAttack.
    """
    period, found = max(int(FIRST * steps), 1), []
    last = period
    while last <= steps:
        found.append(last)
        period = max(period - max(int(SHORTER * steps), 1), max(int(SHORTEST * steps), 1))
        last += period
    return frozenset(found)
