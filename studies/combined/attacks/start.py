"""What the combinations share: the attack along gradients that they continue from."""

from __future__ import annotations

import torch
from torch import Tensor

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.models.scoring import margin

#: The share of the passes that is spent on gradients.
SHARE = 1 / 3
#: The estimator that breaks the most training images for its passes.
ESTIMATOR = "assg:vanishing=0.425"


def after_gradients(
    victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng, passes: int
) -> tuple[Tensor, Tensor]:
    """SA-PGD's iterate of the largest margin within its share of the passes, and that margin.

    Args:
        victim: The network under attack.
        images: The images, `[batch, ...]`.
        labels: The true classes, `[batch]`.
        threat: The ball.
        rng: The random generators, one for each image.
        passes: The number of forward and backward passes of each image in all.
    """
    steps = max(1, (round(SHARE * passes) - 1) // 2)
    attack = load_attack(f"sa-pgd:steps={steps}")
    best = attack(victim.under(ESTIMATOR), images, labels, threat, rng)
    return best.clone(), margin(victim.logits(best), labels)


def continuing(victim: Victim, margins: Tensor, passes: int, cost: int) -> Tensor:
    """Positions of the images that no proposal has broken and that can pay for the next search.

    Args:
        victim: The network under attack.
        margins: The margins of the best proposals, `[batch]`; the search stops above 0.
        passes: The number of passes of each image in all.
        cost: The number of passes of the next search.
    """
    rows = (margins <= 0).nonzero().flatten().cpu()
    spent = victim.forward_passes + victim.backward_passes
    return rows[spent[rows] + cost <= passes]


def take(best: Tensor, margins: Tensor, rows: Tensor, x: Tensor, found: Tensor) -> Tensor:
    """Keep the proposals that raise the margin; the result says which did, bool `[row]`."""
    better = found > margins[rows]
    best[rows[better]] = x[better]
    margins[rows[better]] = found[better]
    return torch.as_tensor(better)
