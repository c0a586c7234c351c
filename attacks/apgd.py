"""APGD: projected gradient ascent with momentum that chooses its own step size."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from robustsnn.adversary.losses import TARGETED, loss_function
from robustsnn.adversary.search import Best, checkpoints, chosen, surface_point, warm_point
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Gradient, Victim
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError

#: The weight of the new step; the rest of the weight is on the step before it.
MOMENTUM = 0.75
#: If a smaller share of the steps since the last checkpoint raised the loss, the step is halved.
ENOUGH_RISES = 0.75


@dataclass(frozen=True)
class APGD:
    """Auto-PGD without parameters, for Linf (signs) and L2 (normalised gradients).

    It starts on the surface of the ball with steps of 2 epsilon. At checkpoints, which follow each
    other faster and faster, it halves the step of an image whose loss rises too seldom or whose
    best loss did not rise, and goes back to the best point of that image.

    Args:
        steps: The number of steps, >= 1.
        restarts: The number of runs from independent starts, >= 1; with targets, for each target.
        loss: The loss that the steps raise, one of `robustsnn.adversary.losses.LOSSES`; with
            targets, one of `robustsnn.adversary.losses.TARGETED`.
        targets: The number of wrong classes to aim at one after another, those that are likeliest
            for the clean image first; fewer if the network has fewer. 0 aims at none.
        warm: Whether the first run starts from what earlier attacks of a cascade found.
        early_exit: Whether to stop with an image once it is misclassified. On a stochastic network
            this is not done, since a single misclassified pass proves little there.

    The iterate of largest margin is proposed, with any loss.

    Raises:
        InputError: A value is out of its range, or the loss does not fit the targets.

    Source: Croce and Hein, ICML 2020, algorithm 1; the constants are those of AutoAttack.
    """

    kind: ClassVar[str] = "fixed-epsilon"
    steps: int = 100
    restarts: int = 1
    loss: str = "cross-entropy"
    targets: int = 0
    warm: bool = False
    early_exit: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise InputError("apgd: steps and restarts must be at least 1.")
        if self.targets < 0:
            raise InputError("apgd: targets must be at least 0.")
        if self.targets == 0 and self.loss in TARGETED:
            raise InputError(f"apgd: the loss {self.loss} needs targets: add targets=9.")
        if self.targets == 0:
            loss_function(self.loss)
        elif self.loss not in TARGETED:
            raise InputError(
                f"apgd: targets need a loss that takes them, not {self.loss}: "
                f"write loss={' or loss='.join(sorted(TARGETED))}."
            )

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, ...]`.

        Raises:
            InputError: `warm` is set and there was no earlier attack.
        """
        best = Best.of(images)
        aims = self._aims(victim, images, labels)
        runs = self.restarts * (1 if aims is None else aims.shape[1])
        active = torch.arange(len(images))
        for run in range(runs):
            if len(active) == 0:
                break
            part, some = victim.select(active), images[active]
            part.fresh()
            if self.warm and run == 0:
                x = warm_point(part, some, threat, "apgd")
            else:
                x = self.start(some, threat, rng.select(active).stream(f"start-{run}"))
            aim = None if aims is None else aims[active, run % aims.shape[1]]
            self._run(part, x, some, labels[active], aim, threat, best, active)
            if self._exits(victim):
                active = (best.margin <= 0).nonzero().flatten().cpu()
        return best.images

    def start(self, images: Tensor, threat: ThreatModel, rng: Rng) -> Tensor:
        """Random points on the surface of the ball, clipped to the range, `[batch, ...]`."""
        return surface_point(images, threat, rng)

    def _aims(self, victim: Victim, images: Tensor, labels: Tensor) -> Tensor | None:
        """The wrong classes to aim at, the likeliest first, int64 `[batch, target]`, or None."""
        if self.targets == 0:
            return None
        logits = victim.logits(images)
        wrong = logits.scatter(1, labels[:, None], -torch.inf)
        order = wrong.sort(dim=1, descending=True, stable=True).indices
        return order[:, : min(self.targets, logits.shape[1] - 1)]

    def _run(
        self,
        victim: Victim,
        x: Tensor,
        images: Tensor,
        labels: Tensor,
        aim: Tensor | None,
        threat: ThreatModel,
        best: Best,
        rows: Tensor,
    ) -> None:
        """One run from `x`, with the images at those rows of `best`, which keeps what it finds."""
        # On the device, where all tensors of the search are; victims take positions on the CPU.
        rows = rows.to(x.device)

        def gradient(part: Victim, x: Tensor, here: Tensor) -> tuple[Gradient, Tensor]:
            aimed = None if aim is None else aim[here]
            found = part.gradient(x, labels[here], self.loss, aimed)
            return found, found.loss.to(x.dtype).nan_to_num(nan=-torch.inf)

        def note(now: _Search, logits: Tensor) -> bool:
            """Keep iterates that are better and drop fooled images; whether any was dropped."""
            margins = best.note(rows[now.here], now.x, logits, labels[now.here])
            # To leave out what is done is the one reason for which a step asks the device.
            if not self._exits(victim) or not bool((fooled := (margins > 0).cpu()).any()):
                return False
            now.keep((~fooled).nonzero().flatten().to(x.device))
            return True

        here = torch.arange(len(images), device=x.device)
        found, loss = gradient(victim, x, here)
        now = _Search(
            here=here,
            x=x,
            before=x.clone(),
            gradient=found.gradient,
            loss=loss,
            best=x.clone(),
            best_gradient=found.gradient.clone(),
            best_loss=loss.clone(),
            checked=loss.clone(),
            step=torch.full_like(loss, 2 * threat.radius),
            rises=torch.zeros_like(loss),
            halved=torch.ones_like(loss, dtype=torch.bool),
        )
        part = victim.select(now.here) if note(now, found.logits) else victim
        looks, since = checkpoints(self.steps), 0
        for taken in range(1, self.steps + 1):
            if len(now.here) == 0:
                return
            _advance(now, images[now.here], threat, MOMENTUM if taken > 1 else 1.0)
            if taken == self.steps:
                note(now, part.logits(now.x, part.draws))
                return
            found, loss = gradient(part, now.x, now.here)
            now.rises += loss > now.loss
            now.loss, now.gradient = loss, found.gradient
            better = loss > now.best_loss
            now.best = chosen(better, now.x, now.best)
            now.best_gradient = chosen(better, now.gradient, now.best_gradient)
            now.best_loss = torch.where(better, loss, now.best_loss)
            if note(now, found.logits):
                part = victim.select(now.here)
            if taken in looks:
                _look_back(now, taken - since)
                since = taken

    def _exits(self, victim: Victim) -> bool:
        return self.early_exit and not victim.stochastic


@dataclass
class _Search:
    """What is remembered of each image that is still attacked, `[image, ...]`.

    `here` are the positions of the images in the batch, and `before` is the iterate before `x`.
    `rises` counts the steps since the last checkpoint that raised the loss, `checked` is the best
    loss at that checkpoint, and `halved` says whether the step was halved there.
    """

    here: Tensor
    x: Tensor
    before: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    checked: Tensor
    step: Tensor
    rises: Tensor
    halved: Tensor

    def keep(self, positions: Tensor) -> None:
        """Keep the images at those positions and forget the others."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[positions])


def _advance(now: _Search, images: Tensor, threat: ThreatModel, weight: float) -> None:
    """A step along the gradient plus a part of the last step, projected into ball and range."""
    step = now.step.reshape(-1, *[1] * (images.dim() - 1))
    target = threat.project(now.x + step * threat.ascent(now.gradient), images)
    x = now.x + weight * (target - now.x) + (1 - weight) * (now.x - now.before)
    now.before, now.x = now.x, threat.project(x, images)


def _look_back(now: _Search, period: int) -> None:
    """Where the last period brought too little, halve the step and go back to the best point."""
    stuck = (now.rises <= ENOUGH_RISES * period) | (~now.halved & (now.best_loss <= now.checked))
    now.step = torch.where(stuck, now.step / 2, now.step)
    now.x = chosen(stuck, now.best, now.x)
    now.gradient = chosen(stuck, now.best_gradient, now.gradient)
    now.halved = stuck
    now.checked = now.best_loss.clone()
    now.rises.zero_()


ATTACK = APGD
