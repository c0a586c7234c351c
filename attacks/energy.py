"""Energy: images on which a spiking network does the most synaptic operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.epsilon import parse_epsilon
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError


@dataclass(frozen=True)
class Energy:
    """Projected ascent of the synaptic operations, by surrogate gradients of the spike count.

    A synaptic operation is an input that is not zero meeting a weight that is not zero, so every
    spike counts as often as it is sent on. The iterate with the most operations is proposed; if
    none has more than the image itself, the image is. The network must have spikes.

    Args:
        steps: The number of steps, >= 1.
        step_size: The size of a step in the units of epsilon, as written (`2/255`); by default
            `2.5 * epsilon / steps`.
        random_start: Whether to start at a uniform point of the ball instead of at the image.
        restarts: The number of runs from independent starts, >= 1.
        keep_label: Whether only iterates are proposed that are classified as the clean image is,
            so that nobody notices but the power supply. An iterate that lost its label takes its
            next step towards that label. `no` proposes whatever costs most.

    Raises:
        InputError: A value is out of its range.

    Source: the aim is that of Shumailov et al., Sponge Examples, EuroS&P 2021, for spikes; the
    steps are those of Madry et al., ICLR 2018, section 2.1.
    """

    kind: ClassVar[str] = "energy"
    steps: int = 40
    step_size: str | float | None = None
    random_start: bool = True
    restarts: int = 1
    keep_label: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise InputError("energy: steps and restarts must be at least 1.")
        if self.restarts > 1 and not self.random_start:
            raise InputError("energy: restarts would all be the same without random_start.")
        if self.step_size is not None and parse_epsilon(str(self.step_size), "step_size") == 0:
            raise InputError("energy: step_size must be above 0.")

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, ...]`."""
        clean = victim.activity(images, victim.draws)
        best = _Most(images.clone(), clean.operations.clone(), _predicted(clean.logits))
        for restart in range(self.restarts):
            victim.fresh()
            x = images.clone()
            if self.random_start:
                x = threat.random_point(images, rng.stream(f"start-{restart}"))
            for _ in range(self.steps):
                found = victim.activity_gradient(x)
                kept = best.note(x, found.loss, found.logits, self.keep_label)
                gradient = found.gradient
                lost = (~kept & (best.label >= 0)).nonzero().flatten().cpu()
                if self.keep_label and len(lost):
                    back = victim.select(lost).gradient(x[lost], best.label[lost], "margin")
                    gradient[lost] = -back.gradient
                x = threat.project(x + self._step(threat) * threat.ascent(gradient), images)
            last = victim.activity(x, victim.draws)
            best.note(x, last.operations, last.logits, self.keep_label)
        return best.images

    def _step(self, threat: ThreatModel) -> float:
        if self.step_size is None:
            return 2.5 * threat.radius / self.steps
        return parse_epsilon(str(self.step_size), "step_size")


@dataclass
class _Most:
    """The proposal with the most operations so far, and the class of each clean image."""

    images: Tensor
    operations: Tensor
    label: Tensor

    def note(self, x: Tensor, operations: Tensor, logits: Tensor, keep_label: bool) -> Tensor:
        """Keep iterates with more operations; whether each has its label still, bool `[batch]`."""
        kept = _predicted(logits) == self.label
        better = operations > self.operations
        if keep_label:
            better &= kept
        self.images[better] = x[better]
        self.operations[better] = operations[better]
        return kept


def _predicted(logits: Tensor) -> Tensor:
    """The classes, int64 `[batch]`; -1 where logits are not finite, as the judge says it."""
    return torch.where(logits.isfinite().all(1), logits.argmax(1), -1)


ATTACK = Energy
