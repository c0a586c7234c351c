"""SA-PGD for a third of the passes, then Square from its best iterate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from studies.combined.attacks.start import after_gradients, continuing


@dataclass(frozen=True)
class WarmSquare:
    """The baseline of the combinations: gradients first, then a search without gradients.

    Args:
        passes: The number of forward and backward passes of each image in all.
    """

    kind: ClassVar[str] = "fixed-epsilon"
    passes: int = 1000

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """The proposed images."""
        best, margins = after_gradients(victim, images, labels, threat, rng, self.passes)
        rows = continuing(victim, margins, self.passes, 1)
        if len(rows) == 0:
            return best
        spent = int((victim.forward_passes + victim.backward_passes)[rows].max())
        part = victim.select(rows)
        part.start = best[rows]
        square = load_attack(f"square:queries={self.passes - spent},warm=yes,offset=200")
        best[rows] = square(part, images[rows], labels[rows], threat, rng.select(rows))
        return best


ATTACK = WarmSquare
