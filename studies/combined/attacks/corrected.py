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
from studies.combined.attacks.start import after_gradients, left, take

#: Asked in turn, one a step.
WIDTHS = ("assg:vanishing=0.45", "bptt:arctan:width=0.0796")
#: Directions a step: the pixels are drawn into so many parts.
PARTS = 4
#: Passes of one step: a gradient, one of each part, one of the whole.
STEP = 2 + PARTS + 1


@dataclass(frozen=True)
class Corrected:
    """From SA-PGD's best iterate, steps along a surrogate gradient that the true loss has checked.

    The pixels are drawn into four parts anew at every step. The margin after a step along each
    part alone says which parts point the right way; the step goes along those and against the
    others. The best of the five proposals is kept if it raises the margin; three steps in a row
    that raise nothing halve the step, down to an eighth, from where it starts anew.

    Args:
        passes: Forward and backward passes of each image in all.
    """

    kind: ClassVar[str] = "fixed-epsilon"
    norms: ClassVar[tuple[str, ...]] = ("Linf",)
    passes: int = 1000

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images."""
        best, margins = after_gradients(victim, images, labels, threat, rng, self.passes)
        rng = rng.stream("parts")
        size = torch.full((len(images),), 2 * threat.radius, device=images.device)
        failed = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        turn = 0
        while True:
            rows = left(victim, margins, self.passes, STEP)
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
