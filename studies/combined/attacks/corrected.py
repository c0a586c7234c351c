"""Gradient steps whose direction is corrected by finite differences along few directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.models.scoring import margin
from studies.combined.attacks.start import after_gradients, continuing, take

#: The estimators, which take turns, one in each step.
WIDTHS = ("assg:vanishing=0.45", "bptt:arctan:width=0.0796")
#: The number of directions in one step: the pixels are divided at random into so many parts.
PARTS = 4
#: The passes of one step: two for a gradient, one for each part, and one for the whole.
STEP = 2 + PARTS + 1


@dataclass(frozen=True)
class Corrected:
    """Steps from SA-PGD's best iterate along a surrogate gradient that the true loss has checked.

    At every step the pixels are divided at random into four parts. The margin after a step along
    one part alone shows whether the gradient of that part has the right sign. The whole step goes
    along the parts that raise the margin and against the others. The best of the five proposals is
    kept if it raises the margin. After three steps in a row that raise nothing, the size of the
    step is halved; below an eighth it starts again at its first size.

    Args:
        passes: The number of forward and backward passes of each image in all.
    """

    kind: ClassVar[str] = "fixed-epsilon"
    norms: ClassVar[tuple[str, ...]] = ("Linf",)
    passes: int = 1000

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """The proposed images."""
        best, margins = after_gradients(victim, images, labels, threat, rng, self.passes)
        rng = rng.stream("parts")
        size = torch.full((len(images),), 2 * threat.radius, device=images.device)
        failed = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        turn = 0
        while True:
            rows = continuing(victim, margins, self.passes, STEP)
            if len(rows) == 0:
                return best
            part, here, true = victim.select(rows), images[rows], labels[rows]
            part = part.under(WIDTHS[turn % len(WIDTHS)])
            turn += 1
            x, before = best[rows].clone(), margins[rows].clone()
            gradient = part.gradient(x, true, "margin").gradient
            move = size[rows].reshape(-1, 1, 1, 1) * gradient.sign()
            draws = rng.select(rows).uniform(images.shape[1:], 0.0, float(PARTS), like=images)
            total = torch.zeros_like(x)
            raised = torch.zeros_like(before, dtype=torch.bool)
            for index in range(PARTS):
                chosen = (draws.floor() == index).to(x.dtype)
                trial = threat.project(x + chosen * move, here)
                found = margin(part.logits(trial), true)
                raised |= take(best, margins, rows, trial, found)
                total += (found - before).sign().reshape(-1, 1, 1, 1) * chosen * move
            trial = threat.project(x + total, here)
            raised |= take(best, margins, rows, trial, margin(part.logits(trial), true))
            failed[rows] = torch.where(raised, 0, failed[rows] + 1)
            shorter = failed[rows] >= 3
            halved = torch.where(size[rows] <= threat.radius / 4, 8 * size[rows], size[rows] / 2)
            size[rows] = torch.where(shorter, halved, size[rows])
            failed[rows] = torch.where(shorter, 0, failed[rows])


ATTACK = Corrected
