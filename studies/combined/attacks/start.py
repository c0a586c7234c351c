"""What the combinations share: the run along gradients that they go on from."""

from __future__ import annotations

import torch
from torch import Tensor

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.models.scoring import margin

#: Share of the passes that goes to the gradients.
SHARE = 1 / 3
#: What breaks the most training images for its passes.
ESTIMATOR = "assg:vanishing=0.425"


def after_gradients(
    victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng, passes: int
) -> tuple[Tensor, Tensor]:
    """SA-PGD's iterate of largest margin within its share of the passes, and that margin.

    Args:
        victim: Under attack.
        images: `[batch, ...]`.
        labels: True classes `[batch]`.
        threat: The ball.
        rng: A generator per image.
        passes: Forward and backward passes of each image in all.
    """
    steps = max(1, (round(SHARE * passes) - 1) // 2)
    attack = load_attack(f"sa-pgd:steps={steps}")
    best = attack(victim.under(ESTIMATOR), images, labels, threat, rng)
    return best.clone(), margin(victim.logits(best), labels)


def left(victim: Victim, margins: Tensor, passes: int, cost: int) -> Tensor:
    """Positions of images that are still right and have so many passes left to spend.

    Args:
        victim: Under attack.
        margins: Of the best proposals, `[batch]`; a tie is an error.
        passes: Of each image in all.
        cost: Of what comes next.
    """
    rows = (margins <= 0).nonzero().flatten().cpu()
    spent = victim.forward_passes + victim.backward_passes
    return rows[spent[rows] + cost <= passes]


def take(best: Tensor, margins: Tensor, rows: Tensor, x: Tensor, found: Tensor) -> Tensor:
    """Keep proposals at those rows that raise the margin; which did, bool `[row]`."""
    better = found > margins[rows]
    best[rows[better]] = x[better]
    margins[rows[better]] = found[better]
    return torch.as_tensor(better)
