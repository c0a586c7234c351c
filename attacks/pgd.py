"""PGD: many small steps along the gradient, each projected into the ball and the pixel range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustsnn.adversary.losses import judged_margin, loss_function
from robustsnn.adversary.search import chosen
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.epsilon import parse_epsilon
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent, for Linf (signs) and L2 (normalised gradients).

    Args:
        steps: The number of steps, >= 1.
        step_size: The size of a step in the units of epsilon, as written (`2/255`); by default
            `2.5 * epsilon / steps`.
        random_start: Whether to start at a uniform point of the ball instead of at the image.
        restarts: The number of runs from independent starts, >= 1; the best proposal of each image
            is kept.
        iterate: Which iterate is proposed. `best` is the one of largest margin, the start and the
            last included; `last` is the one that papers report, and with restarts the best of the
            last ones.
        early_exit: Whether to stop with an image once it is misclassified. On a stochastic network
            this is not done, since a single misclassified pass proves little there.
        loss: The loss that the steps raise, one of `robustsnn.adversary.losses.LOSSES`.

    Raises:
        InputError: A value is out of its range.

    Source: Madry et al., ICLR 2018, section 2.1.
    """

    kind: ClassVar[str] = "fixed-epsilon"
    steps: int = 20
    step_size: str | float | None = None
    random_start: bool = True
    restarts: int = 1
    iterate: Literal["best", "last"] = "best"
    early_exit: bool = True
    loss: str = "cross-entropy"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise InputError("pgd: steps and restarts must be at least 1.")
        if self.restarts > 1 and not self.random_start:
            raise InputError("pgd: restarts would all be the same without random_start.")
        if self.iterate not in ("best", "last"):
            raise InputError(f"pgd: iterate must be 'best' or 'last', not {self.iterate!r}.")
        if self.step_size is not None and parse_epsilon(str(self.step_size), "step_size") == 0:
            raise InputError("pgd: step_size must be above 0.")
        loss_function(self.loss)

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, ...]`."""
        proposal = images.clone()
        best = torch.full((len(images),), -torch.inf, dtype=images.dtype, device=images.device)
        active = torch.arange(len(images))
        for restart in range(self.restarts):
            if len(active) == 0:
                break
            part = victim.select(active)
            part.fresh()
            found, scores = self._run(
                part,
                images[active],
                labels[active],
                threat,
                rng.select(active).stream(f"start-{restart}"),
            )
            here = active.to(images.device)
            better = scores > best[here]
            if restart == 0:
                better = torch.ones_like(better)
            proposal[here] = chosen(better, found, proposal[here])
            best[here] = torch.where(better, scores, best[here])
            if self._exits(victim):
                active = (best <= 0).nonzero().flatten().cpu()
        return proposal

    def advance(self, x: Tensor, gradient: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
        """The iterate after `x` `[batch, ...]`: a step, projected into the ball and the range."""
        step_size = (
            2.5 * threat.radius / self.steps
            if self.step_size is None
            else parse_epsilon(str(self.step_size), "step_size")
        )
        return threat.project(x + step_size * threat.ascent(gradient), images)

    def _run(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """One restart: the proposals, and the margin of each as far as it is known."""
        x = threat.random_point(images, rng) if self.random_start else images.clone()
        kept = x.clone()
        scores = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        # The active images, as victims count them and as tensors on the device are indexed.
        active = torch.arange(len(x))
        here, part = active.to(x.device), victim

        def score(logits: Tensor) -> Tensor:
            """Keep iterates that are better, or newer; return which active images are fooled."""
            margins = judged_margin(logits, labels[here]).to(scores.dtype)
            better = margins > scores[here]
            if self.iterate == "last":
                better = torch.ones_like(better)
            scores[here] = torch.where(better, margins, scores[here])
            kept[here] = chosen(better, x[here], kept[here])
            return margins > 0

        for _ in range(self.steps):
            found = part.gradient(x[here], labels[here], self.loss)
            gradient = found.gradient
            fooled = score(found.logits)
            # To leave out what is done is the one reason for which a step asks the device.
            if self._exits(victim) and bool((done := fooled.cpu()).any()):
                active = active[~done]
                if len(active) == 0:
                    return kept, scores
                gradient = gradient[(~done).nonzero().flatten().to(x.device)]
                here, part = active.to(x.device), victim.select(active)
            x[here] = self.advance(x[here], gradient, images[here], threat)
        if self.iterate == "last" and self.restarts == 1:
            kept[here] = x[here]
        else:
            score(part.logits(x[here], victim.draws))
        return kept, scores

    def _exits(self, victim: Victim) -> bool:
        return self.early_exit and not victim.stochastic


ATTACK = PGD
