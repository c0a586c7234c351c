"""APGD: projected gradient ascent with momentum that chooses its own step size."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from robustsnn.errors import InputError
from robustsnn.losses import loss_function, margin
from robustsnn.randomness import Rng
from robustsnn.threat import ThreatModel
from robustsnn.victim import Victim

#: Weight of the new step; the rest goes on as before.
MOMENTUM = 0.75
#: Where too few of the steps since the last checkpoint raised the loss, the step is halved.
ENOUGH_RISES = 0.75
#: Length of the first period, what each next one is shorter, and the shortest; of all steps.
FIRST, SHORTER, SHORTEST = 0.22, 0.03, 0.06


@dataclass(frozen=True)
class APGD:
    """Auto-PGD without parameters, for Linf (signs) and L2 (normalised gradients).

    It starts on the surface of the ball with steps of 2 epsilon. At checkpoints that come ever
    closer it halves the step of an image whose loss rises too seldom or whose best loss stands
    still, and goes back to its best point.

    Args:
        steps: Number of steps, >= 1.
        restarts: Runs from independent starts, >= 1.
        loss: What the steps raise, one of `robustsnn.losses.LOSSES`.
        early_exit: Stop with an image once it is misclassified. Not done on a stochastic
            network, where a single misclassified pass proves little.

    The iterate of largest margin is proposed, whatever the loss.

    Raises:
        InputError: A value out of its range.

    Source: Croce and Hein, ICML 2020, algorithm 1; the constants are those of AutoAttack.
    """

    kind: ClassVar[str] = "fixed-epsilon"
    steps: int = 100
    restarts: int = 1
    loss: str = "cross-entropy"
    early_exit: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise InputError("apgd: steps and restarts must be at least 1.")
        loss_function(self.loss)

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, ...]`."""
        kept = _Kept(images.clone(), images.new_full((len(images),), -torch.inf))
        active = torch.arange(len(images))
        for restart in range(self.restarts):
            if len(active) == 0:
                break
            some = rng.select(active).stream(f"start-{restart}")
            self._run(
                victim.select(active), images[active], labels[active], threat, some, kept, active
            )
            if self._exits(victim):
                active = (kept.margin <= 0).nonzero().flatten().cpu()
        return kept.images

    def start(self, images: Tensor, threat: ThreatModel, rng: Rng) -> Tensor:
        """A random point on the surface of the ball, then in range, `[batch, ...]`."""
        shape = images.shape[1:]
        if threat.norm == "Linf":
            noise = rng.uniform(shape, -1.0, 1.0, like=images)
            largest = noise.flatten(1).abs().amax(1).clamp_min(1e-12)
            noise = noise * (threat.radius / largest).reshape(-1, *[1] * len(shape))
        else:
            noise = threat.scaled(rng.normal(shape, like=images))
        return threat.project(images + noise, images)

    def _run(
        self,
        victim: Victim,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        rng: Rng,
        kept: _Kept,
        rows: Tensor,
    ) -> None:
        """One restart of the images at those rows of `kept`, which gets what it finds."""
        x = self.start(images, threat, rng)
        found = victim.gradient(x, labels, self.loss)
        loss = found.loss.to(x.dtype).nan_to_num(nan=-torch.inf)
        now = _Search(
            here=torch.arange(len(images)),
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
        self._note(now, found.logits, labels, kept, rows, victim)
        period = max(int(FIRST * self.steps), 1)
        checkpoint = period
        for taken in range(1, self.steps + 1):
            if len(now.here) == 0:
                return
            _advance(now, images[now.here], threat, MOMENTUM if taken > 1 else 1.0)
            part = victim.select(now.here)
            if taken == self.steps:
                self._note(now, part.logits(now.x), labels, kept, rows, victim)
                return
            found = part.gradient(now.x, labels[now.here], self.loss)
            loss = found.loss.to(now.x.dtype).nan_to_num(nan=-torch.inf)
            now.rises += loss > now.loss
            now.loss, now.gradient = loss, found.gradient
            better = loss > now.best_loss
            now.best[better] = now.x[better]
            now.best_gradient[better] = now.gradient[better]
            now.best_loss[better] = loss[better]
            self._note(now, found.logits, labels, kept, rows, victim)
            if taken == checkpoint:
                _check(now, period)
                period = max(
                    period - max(int(SHORTER * self.steps), 1), max(int(SHORTEST * self.steps), 1)
                )
                checkpoint += period

    def _note(
        self,
        now: _Search,
        logits: Tensor,
        labels: Tensor,
        kept: _Kept,
        rows: Tensor,
        victim: Victim,
    ) -> None:
        """Keep iterates of larger margin, and stop with the images that are fooled."""
        margins = margin(logits, labels[now.here]).to(now.x.dtype).nan_to_num(nan=-torch.inf)
        where = rows[now.here]
        better = (margins > kept.margin[where]).cpu()
        kept.images[where[better]] = now.x[better]
        kept.margin[where[better]] = margins[better]
        if self._exits(victim):
            now.keep((margins <= 0).cpu())

    def _exits(self, victim: Victim) -> bool:
        return self.early_exit and not victim.stochastic


@dataclass
class _Kept:
    """The best proposal of each image, and its margin."""

    images: Tensor
    margin: Tensor


@dataclass
class _Search:
    """What is remembered of each image that is still attacked, `[image, ...]`.

    `here` are their positions in the batch; `rises` counts steps since the last checkpoint that
    raised the loss, `checked` is the best loss at that checkpoint, `halved` whether it halved.
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

    def keep(self, mask: Tensor) -> None:
        """Forget the other images."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[mask])


def _advance(now: _Search, images: Tensor, threat: ThreatModel, weight: float) -> None:
    """A step along the gradient and on along the last one, back into ball and range."""
    step = now.step.reshape(-1, *[1] * (images.dim() - 1))
    target = threat.project(now.x + step * threat.ascent(now.gradient), images)
    x = now.x + weight * (target - now.x) + (1 - weight) * (now.x - now.before)
    now.before, now.x = now.x, threat.project(x, images)


def _check(now: _Search, period: int) -> None:
    """Halve the step and go back to the best point where the last period brought too little."""
    stuck = (now.rises <= ENOUGH_RISES * period) | (~now.halved & (now.best_loss <= now.checked))
    now.step[stuck] /= 2
    now.x[stuck] = now.best[stuck]
    now.gradient[stuck] = now.best_gradient[stuck]
    now.halved = stuck
    now.checked = now.best_loss.clone()
    now.rises.zero_()


ATTACK = APGD
