"""FMN: the nearest misclassified image, found by steps in a ball that grows and shrinks."""

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

#: The last step has the first share of the length of the first step, and the ball at the end
#: changes by the second share.
LAST_STEP, LAST_CHANGE = 0.01, 0.001
#: A smaller gain is rounding, which would choose between iterates on the surface of one ball.
NEARER = 1 - 1e-6


@dataclass(frozen=True)
class FMN:
    """Fast minimum norm: raise the margin, in a ball that shrinks as long as images are fooled.

    Until an image is misclassified for the first time, its ball reaches to where a linear margin
    would be 0, and it grows at every step (the growth is ours). From then on it shrinks at each
    misclassified iterate, to the nearest one at most, and grows at any other iterate. The steps
    and the changes of the ball get smaller along a cosine.

    Args:
        steps: The number of steps, >= 1; each takes a forward and a backward pass, and the last
            iterate takes one more forward pass.
        step_size: The length of the first step in L2, for either norm.
        change: The share by which the ball grows or shrinks at first, in [0.001, 1).

    The nearest misclassified iterate is proposed if it lies in the ball of the threat model, and
    the clean image if it does not. So with a large epsilon the records hold the least distances
    that were found.

    Raises:
        InputError: A value is out of its range.

    Source: Pintor et al., NeurIPS 2021, algorithm 1.
    """

    kind: ClassVar[str] = "minimum-norm"
    steps: int = 100
    step_size: float = 1.0
    change: float = 0.05

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError("fmn: steps must be at least 1.")
        if self.step_size <= 0:
            raise InputError("fmn: step_size must be above 0.")
        if not LAST_CHANGE <= self.change < 1:
            raise InputError(f"fmn: change must be at least {LAST_CHANGE} and below 1.")

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, ...]`; nothing is drawn."""
        victim.fresh()
        x, nearest = images.clone(), images.clone()
        farthest = torch.maximum(images - threat.low, threat.high - images)
        most = threat.distance(images + farthest, images)
        # Distances are float64, as the threat model computes them.
        least, radius = torch.full_like(most, torch.inf), torch.full_like(most, torch.inf)

        def note(logits: Tensor) -> tuple[Tensor, Tensor]:
            """Keep iterates that are nearer; return the distance of each, and if it is fooled."""
            distance, fooled = threat.distance(x, images), judged_margin(logits, labels) > 0
            nearer = fooled & (distance < least * NEARER)
            nearest[nearer], least[nearer] = x[nearer], distance[nearer]
            return distance, fooled

        for step in range(self.steps):
            found = victim.gradient(x, labels, "margin")
            margins, gradient = found.loss.double(), found.gradient.double()
            distance, fooled = note(found.logits)
            falling = (1 + math.cos(math.pi * step / self.steps)) / 2
            change = LAST_CHANGE + (self.change - LAST_CHANGE) * falling
            linear = distance + _over(margins.abs(), _dual(gradient, threat))
            wider = radius * (1 + change)
            grown = torch.where(least.isfinite(), wider, _searching(linear, wider))
            radius = torch.where(fooled, torch.minimum(radius * (1 - change), least), grown)
            radius = radius.clamp(max=most)
            length = self.step_size * (LAST_STEP + (1 - LAST_STEP) * falling)
            size = gradient.flatten(1).square().sum(1).sqrt().clamp_min(1e-300)
            delta = (x - images).double() + length * gradient / _wide(size, gradient)
            x = images + _within(delta, radius, threat).to(images.dtype)
            x = x.clamp(threat.low, threat.high)
        note(victim.logits(x, victim.draws))
        reached = least.isfinite() & threat.admits(nearest, images)
        return torch.where(_wide(reached, images), nearest, images)


def _dual(gradient: Tensor, threat: ThreatModel) -> Tensor:
    """The dual norm of each gradient, which bounds the growth of a linear margin, `[batch]`."""
    flat = gradient.flatten(1)
    return flat.abs().sum(1) if threat.norm == "Linf" else flat.square().sum(1).sqrt()


def _searching(linear: Tensor, wider: Tensor) -> Tensor:
    """The radius before anything was found, from the linear guess and that of a growing ball.

    The guess alone can stop at a tie, where the margin is 0, or stay on the near side of the
    boundary.
    """
    return torch.where(wider.isfinite(), torch.maximum(linear, wider), linear)


def _over(margins: Tensor, slopes: Tensor) -> Tensor:
    """The distance to margin 0 at that slope; infinite if the slope is 0 or a value is NaN."""
    return torch.where(slopes > 0, margins / slopes, torch.inf).nan_to_num(nan=torch.inf)


def _within(delta: Tensor, radius: Tensor, threat: ThreatModel) -> Tensor:
    """Each perturbation projected into a ball of its own radius, float64."""
    wide = _wide(radius, delta)
    if threat.norm == "Linf":
        return delta.clamp(-wide, wide)
    size = delta.flatten(1).square().sum(1).sqrt().clamp_min(1e-300)
    return delta * (wide / _wide(size, delta)).clamp(max=1)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """Values `[batch]` in a shape that multiplies `like`."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


ATTACK = FMN
