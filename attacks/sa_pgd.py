"""SA-PGD: steps scaled by the gradients that each pixel had so far, halved at fixed points."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustsnn.adversary.losses import loss_function
from robustsnn.adversary.search import Best, checkpoints, surface_point
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError

#: The share of the sum of gradients, and of that of their squares, that is left at the next step.
MOMENTUM, MEMORY = 0.5, 0.8
#: Avoids 0 / 0 at a pixel that never had a gradient.
TINY = 1e-12
#: The share of the steps over which a wider ball shrinks, and how many times as wide it may be.
SHRINKING, WIDEST = 0.6, 10


@dataclass(frozen=True)
class SAPGD:
    """Stable adaptive PGD: a decaying sum of gradients over the root of a sum of their squares.

    With g the gradient, `m <- 0.5 m + g / mean|g|` and `v <- 0.8 v + g^2 / mean(g^2)`, where means
    are over one image; each pixel steps by `eta m / sqrt(v)`, at most eta. That is for Linf, where
    the root makes every pixel count alike. In L2 it would turn the step away from the gradient, so
    there it is `m <- 0.5 m + g / |g|` and a step of length eta along m, which is ours. The attack
    starts on the surface of the ball with eta = epsilon, and halves eta at the checkpoints of APGD,
    however the loss behaved.

    Args:
        steps: The number of steps, >= 1.
        restarts: The number of runs from independent starts, >= 1.
        loss: The loss that the steps raise, one of `robustsnn.adversary.losses.LOSSES`.
        widen: The radius that the search begins with, as a multiple of epsilon, >= 1 and <= 10. It
            falls to epsilon, linearly over the first 60 % of the steps, and steps are longer by
            that multiple. Nothing outside the ball of radius epsilon is ever proposed.
        early_exit: Whether to stop with an image once it is misclassified. On a stochastic network
            this is not done, since a single misclassified pass proves little there.

    The iterate of largest margin is proposed, with any loss. A gradient that is zero everywhere
    adds nothing, and the step follows the gradients before it.

    Raises:
        InputError: A value is out of its range.

    Source: Wang et al., arXiv 2512.22522, SA-PGD. A ball that shrinks is from Croce and Hein,
    arXiv 2103.01208, section 3.3, where it is for L1 and has three sizes.
    """

    kind: ClassVar[str] = "fixed-epsilon"
    steps: int = 100
    restarts: int = 1
    loss: str = "cross-entropy"
    widen: float = 1.0
    early_exit: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise InputError("sa-pgd: steps and restarts must be at least 1.")
        if not 1 <= self.widen <= WIDEST:
            raise InputError(f"sa-pgd: widen must be from 1 to {WIDEST}.")
        loss_function(self.loss)

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, ...]`."""
        best = Best.of(images)
        active = torch.arange(len(images))
        for restart in range(self.restarts):
            if len(active) == 0:
                break
            x = self.start(images[active], threat, rng.select(active).stream(f"start-{restart}"))
            self._run(victim, x, images, labels, threat, best, active)
            if self._exits(victim):
                active = (best.margin <= 0).nonzero().flatten().cpu()
        return best.images

    def start(self, images: Tensor, threat: ThreatModel, rng: Rng) -> Tensor:
        """Random points on the surface of the ball, clipped to the range, `[batch, ...]`."""
        return surface_point(images, threat, rng)

    def _run(
        self,
        victim: Victim,
        x: Tensor,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        best: Best,
        rows: Tensor,
    ) -> None:
        """One restart from `x` of the images at those rows; `best` keeps what it finds."""
        part = victim.select(rows)
        part.fresh()
        # The rows on the device, and what belongs to them.
        here = rows.to(x.device)
        clean, true = images[here], labels[here]
        # These are float64, or the squares of a pixel with small gradients would be lost.
        momentum = torch.zeros_like(x, dtype=torch.float64)
        squares = torch.zeros_like(momentum)
        eta, halvings = threat.radius, checkpoints(self.steps)
        for taken in range(self.steps):
            found = part.gradient(x, true, self.loss)
            gradient = found.gradient
            if self._wider(taken) == 1:
                margins = best.note(here, x, found.logits, true)
                # To leave out what is done is the one reason for which a step asks the device.
                if self._exits(victim) and not bool((left := (margins <= 0).cpu()).all()):
                    rows = rows[left]
                    if len(rows) == 0:
                        return
                    part = victim.select(rows)
                    kept = left.nonzero().flatten().to(x.device)
                    here, clean, true = here[kept], clean[kept], true[kept]
                    x, gradient = x[kept], gradient[kept]
                    momentum, squares = momentum[kept], squares[kept]
            if taken in halvings:
                eta /= 2
            if threat.norm == "Linf":
                first, second = _normalised(gradient)
                momentum = MOMENTUM * momentum + first
                squares = MEMORY * squares + second
                step = (momentum / (squares.sqrt() + TINY)).clamp(-1, 1)
            else:
                momentum = MOMENTUM * momentum + threat.ascent(gradient.double())
                step = threat.ascent(momentum)
            x = x + (eta * self._wider(taken) * step).to(x.dtype)
            x = _widened(threat, self._wider(taken + 1)).project(x, clean)
        best.note(here, x, part.logits(x, part.draws), true)

    def _wider(self, taken: int) -> float:
        """How many times as wide the ball is after so many steps; 1 after the last one."""
        shrunk = taken / (SHRINKING * self.steps)
        if self.widen == 1 or shrunk >= 1 or taken >= self.steps:
            return 1.0
        return self.widen + (1 - self.widen) * shrunk

    def _exits(self, victim: Victim) -> bool:
        return self.early_exit and not victim.stochastic


def _widened(threat: ThreatModel, times: float) -> ThreatModel:
    """The same threat model with a radius so many times as large."""
    if times == 1:
        return threat
    return dataclasses.replace(threat, epsilon=repr(times * threat.radius))


def _normalised(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """`g / mean|g|` and `g^2 / mean(g^2)`, float64, shaped like the gradient; 0 where g is 0."""
    wide = gradient.double()
    shape = (-1, *[1] * (wide.dim() - 1))
    # Without division by the largest entry, the squares of a vanishing gradient would underflow.
    largest = wide.flatten(1).abs().amax(1)
    wide = wide / torch.where(largest > 0, largest, 1.0).reshape(shape)
    first, second = wide.flatten(1).abs().mean(1), wide.flatten(1).square().mean(1)
    return (
        wide / torch.where(first > 0, first, 1.0).reshape(shape),
        wide.square() / torch.where(second > 0, second, 1.0).reshape(shape),
    )


ATTACK = SAPGD
