"""No attack: the clean images, so that clean accuracy is one row among the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng


@dataclass(frozen=True)
class NoAttack:
    """The attack that proposes each image itself."""

    kind: ClassVar[str] = "none"

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Copies of the images, `[batch, ...]`."""
        return images.clone()


ATTACK = NoAttack
