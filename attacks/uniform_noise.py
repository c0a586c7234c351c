"""Uniform noise in the ball: where a random search for an adversarial image would start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng


@dataclass(frozen=True)
class UniformNoise:
    """One uniform draw from the ball around each image, clipped to the pixel range."""

    kind: ClassVar[str] = "noise"

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Noisy images, `[batch, ...]`; the network is not called."""
        return threat.random_point(images, rng)


ATTACK = UniformNoise
