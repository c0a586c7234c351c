"""Gaussian noise of the size of the ball: what a perturbation without an aim costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng


@dataclass(frozen=True)
class GaussianNoise:
    """One draw n ~ N(0, I) for each image, scaled to the ball, then clipped to the pixel range.

    The noise is `n * epsilon / max|n|` for Linf and `n * epsilon / ||n||` for L2: the largest
    noise of that shape that the threat model allows.
    """

    kind: ClassVar[str] = "noise"

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Noisy images, `[batch, ...]`; the network is not called."""
        noise = rng.normal(images.shape[1:], like=images)
        return threat.project(images + threat.scaled(noise), images)


ATTACK = GaussianNoise
