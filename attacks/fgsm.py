"""FGSM: one step of the size of the ball along the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustsnn.adversary.losses import loss_function
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng


@dataclass(frozen=True)
class FGSM:
    """`x + epsilon * sign(gradient)`; for L2, epsilon along the normalised gradient.

    Source: Goodfellow et al., ICLR 2015, section 4; L2 as in Miyato et al., ICLR 2017.
    """

    kind: ClassVar[str] = "fixed-epsilon"
    steps: ClassVar[int] = 1
    loss: str = "cross-entropy"

    def __post_init__(self) -> None:
        loss_function(self.loss)

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, ...]`; one forward and one backward pass each."""
        found = victim.gradient(images, labels, self.loss)
        step = threat.radius * threat.ascent(found.gradient)
        return threat.project(images + step, images)


ATTACK = FGSM
