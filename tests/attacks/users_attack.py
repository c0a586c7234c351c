"""An attack as a user would write it: one file, no registration. Not a test itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng


@dataclass(frozen=True)
class HalfwayThenFull:
    """Two gradient steps from a random point: half of epsilon, then all of it."""

    kind: ClassVar[str] = "fixed-epsilon"
    loss: str = "margin"
    spread: float = 0.1

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images."""
        start = threat.random_point(images, rng)
        x = images + self.spread * (start - images)
        for size in (0.5, 2.0):
            gradient = victim.gradient(x, labels, self.loss).gradient
            x = threat.project(x + size * threat.radius * threat.ascent(gradient), images)
        return x


ATTACK = HalfwayThenFull
