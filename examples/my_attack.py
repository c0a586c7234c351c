"""An attack of your own: uniform noise, of which the most harmful draw is kept.

`robustsnn evaluate MODEL --attack examples/my_attack.py:draws=20`, or run this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import robustsnn
from robustsnn import Rng, ThreatModel, Victim


@dataclass(frozen=True)
class WorstOfDraws:
    """Random points of the ball; the one with the lowest logit of the label is proposed."""

    kind: ClassVar[str] = "noise"
    draws: int = 10

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, channel, height, width]`."""
        best, lowest = images.clone(), torch.full((len(images),), torch.inf)
        for _ in range(self.draws):
            point = threat.random_point(images, rng)
            own = victim.logits(point).gather(1, labels[:, None]).flatten().to(lowest)
            better = own < lowest
            best[better], lowest[better] = point[better], own[better]
        return best


ATTACK = WorstOfDraws

if __name__ == "__main__":
    attacks = ["gaussian-noise", f"{__file__}:draws=20"]
    found = robustsnn.evaluate("fashion-mnist/vgg5-snn", attack=attacks, samples=50)
    print(found.results[["attack", "accuracy", "forward_passes"]].to_string())
