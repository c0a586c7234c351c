"""FGSM: one step along the gradient, of the size of the ball."""

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
    """`x + epsilon * sign(gradient)`; for L2, a step of length epsilon along the gradient.

    Args:
        loss: The loss that the step raises, one of `robustsnn.adversary.losses.LOSSES`.

    Raises:
        InputError: There is no such loss.

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
        """Proposed images, `[batch, ...]`, with one forward and one backward pass for each."""
        found = victim.gradient(images, labels, self.loss)
        step = threat.radius * threat.ascent(found.gradient)
        return threat.project(images + step, images)


ATTACK = FGSM
