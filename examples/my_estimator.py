"""A gradient estimator of your own: what comes back passes where a neuron fired, at that step.

`robustsnn evaluate MODEL --estimator examples/my_estimator.py:silent=0.1`, or run this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

import robustsnn
from robustsnn import Estimator, InputError


@dataclass(frozen=True)
class WhereItFired(Estimator):
    """The gradient of the spikes times the spikes, and a share of it everywhere else.

    Args:
        silent: What passes where the neuron did not fire, in [0, 1].
    """

    silent: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.silent <= 1:
            raise InputError("my_estimator: silent must lie in [0, 1].")

    def rule(self, grad: Tensor, trace: Any) -> Tensor:
        """The gradient of the current, `[time, batch, ...]`."""
        passes: Tensor = trace.spikes.clamp_min(self.silent)
        return grad * passes


ESTIMATOR = WhereItFired

if __name__ == "__main__":
    for estimator in (None, f"{__file__}:silent=0.1"):
        found = robustsnn.evaluate(
            "fashion-mnist/vgg5-snn", attack=["pgd:steps=10"], estimator=estimator, samples=50
        )
        print(found.results[["suite", "attack", "estimator", "accuracy"]].to_string())
