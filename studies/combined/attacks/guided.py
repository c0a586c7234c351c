"""Random search over windows whose proposals are drawn from surrogate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.models.scoring import margin
from studies.combined.attacks.start import after_gradients, continuing, take

#: Estimators of several widths, which take turns.
WIDTHS = (
    "assg:vanishing=0.45",
    "bptt:triangle:width=0.5",
    "bptt:arctan:width=0.0796",
    "hart:width=0.5",
)
#: The number of proposals drawn from one gradient.
EACH = 10


@dataclass(frozen=True)
class Guided:
    """Square's windows, starting from SA-PGD's best iterate and filled from surrogate gradients.

    After every ten queries the gradient at the best point is computed again, under the next of
    several estimators. A pixel of the window moves to the end of the ball that its gradient points
    to, with a probability that rises with the rank of its gradient in the image; if it does not
    move, it stays as it is.

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
        rng = rng.stream("windows")
        windows: Any = load_attack(f"square:queries={self.passes},offset=200")
        high = threat.project(images + 2 * threat.radius, images)
        low = threat.project(images - 2 * threat.radius, images)
        turn, query = 0, 0
        while True:
            rows = continuing(victim, margins, self.passes, 2 + EACH)
            if len(rows) == 0:
                return best
            part = victim.select(rows).under(WIDTHS[turn % len(WIDTHS)])
            gradient = part.gradient(best[rows], labels[rows], "margin").gradient
            turn += 1
            ranks = gradient.flatten(1).abs().argsort(1).argsort(1).reshape(gradient.shape)
            chance = 0.1 + 0.8 * ranks / gradient[0].numel()
            ends = torch.where(gradient > 0, high[rows], low[rows])
            ends = torch.where(gradient == 0, best[rows], ends)
            for _ in range(EACH):
                side = windows.side(query, images.shape)
                draws = rng.select(rows).uniform((2, *images.shape[1:]), 0.0, 1.0, like=images)
                inside = _window(draws[:, 0], side) & (draws[:, 1] < chance)
                x = torch.where(inside, ends, best[rows])
                found = margin(part.logits(x), labels[rows])
                take(best, margins, rows, x, found)
                query += 1


def _window(draws: Tensor, side: int) -> Tensor:
    """A square window for each image, at a place given by its draws, as a mask of type bool."""
    height, width = draws.shape[-2:]
    top = (draws[:, 0, 0, 0] * (height - side + 1)).long().clamp(max=height - side)
    first = (draws[:, 0, 0, 1] * (width - side + 1)).long().clamp(max=width - side)
    rows = torch.arange(height, device=draws.device)
    columns = torch.arange(width, device=draws.device)
    across = (rows >= top[:, None]) & (rows < top[:, None] + side)
    along = (columns >= first[:, None]) & (columns < first[:, None] + side)
    return (across[:, :, None] & along[:, None, :])[:, None].expand_as(draws)


ATTACK = Guided
