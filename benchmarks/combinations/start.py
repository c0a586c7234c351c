"""What the combinations share: the run along gradients that they go on from."""

from __future__ import annotations

import torch
from torch import Tensor

from robustsnn.losses import margin
from robustsnn.randomness import Rng
from robustsnn.registry import load_attack
from robustsnn.threat import ThreatModel
from robustsnn.victim import Victim

#: Share of the passes that goes to the gradients.
SHARE = 1 / 3
#: What breaks the most training images for its passes.
ESTIMATOR = "assg:vanishing=0.425"


def after_gradients(
    victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng, passes: int
) -> tuple[Tensor, Tensor]:
    """SA-PGD's iterate of largest margin within so many passes, and that margin `[batch]`."""
    attack = load_attack(f"sa-pgd:steps={max(1, (passes - 1) // 2)}")
    best = attack(victim.under(ESTIMATOR), images, labels, threat, rng)
    return best, margin(victim.logits(best), labels)


def left(best: Tensor) -> Tensor:
    """Positions of the images that are still right, by their margins; a tie is an error."""
    return (best <= 0).nonzero().flatten().cpu()


def take(best: Tensor, margins: Tensor, rows: Tensor, x: Tensor, found: Tensor) -> Tensor:
    """Keep proposals at those rows that raise the margin; which did, bool `[row]`."""
    better = found > margins[rows]
    best[rows[better]] = x[better]
    margins[rows[better]] = found[better]
    return torch.as_tensor(better)
