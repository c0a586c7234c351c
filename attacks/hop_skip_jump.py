"""HopSkipJump: the nearest misclassified image by labels alone, along the decision boundary."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustsnn.adversary.peers import library, seeded
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError

#: Noise images tried as a start; where none of so many is misclassified hardly any is.
DIRECTIONS = 100
#: Blends of an image with its noise that are tried, the weakest first.
BLENDS = 50


@dataclass(frozen=True)
class HopSkipJump:
    """Decision-based search: estimate the boundary's normal by labels, step, bisect back.

    It runs one image at a time in foolbox, from what earlier attacks of a cascade found where
    that is misclassified, else from the image blended with uniform noise. Every point that the
    network is asked about counts as found, and the search ends with its budget, wherever it is.

    Args:
        queries: Forward passes of each image, >= 1.
        draws: Of the first estimate of the normal; it takes sqrt(k) times as many at step k.
        width: How far from the boundary the draws are, of the distance that is left: their size
            in L2, their root mean square in Linf. As published it is 1 / d for d values in L2, and
            less in Linf: so near, draws tell little of a network that is constant between spikes.

    The nearest misclassified point is proposed if it lies in the ball of the threat model, and
    the clean image if not, or if no start is found: with a large epsilon the records hold the
    least distances found.

    Raises:
        InputError: A value out of its range, or foolbox is not installed.

    Source: Chen, Jordan and Wainwright, S&P 2020; the search is foolbox's.
    """

    kind: ClassVar[str] = "minimum-norm"
    gradient_free: ClassVar[bool] = True
    queries: int = 1000
    draws: int = 100
    width: float = 0.3

    def __post_init__(self) -> None:
        if self.queries < 1 or self.draws < 1:
            raise InputError("hop-skip-jump: queries and draws must be at least 1.")
        if self.width <= 0:
            raise InputError("hop-skip-jump: width must be above 0.")
        # A suite is told of a missing library before it runs.
        library("foolbox", "foolbox")

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, ...]`.

        Raises:
            InputError: A stochastic network, whose labels are no boundary, or another pixel
                range than [0, 1].
        """
        if victim.stochastic:
            raise InputError(
                "hop-skip-jump follows the boundary between labels, and those of a stochastic "
                "network change from pass to pass: use square."
            )
        if (threat.low, threat.high) != (0.0, 1.0):
            raise InputError("hop-skip-jump: foolbox keeps pixels in [0, 1] only: use square.")
        proposals = images.clone()
        if threat.radius == 0:
            return proposals
        for i in range(len(images)):
            # Padding one image to a whole micro-batch would cost a micro-batch.
            part = victim.select([i], micro_batch=1)
            asked = _Asked(part.network, images[i : i + 1], labels[i : i + 1], threat, self.queries)
            with seeded(rng.select([i]).derive("hop-skip-jump")), warnings.catch_warnings():
                # Of a start that it does not find.
                warnings.simplefilter("ignore")
                self._search(asked, part.start)
            if asked.nearest is not None and bool(threat.admits(asked.nearest, asked.image).all()):
                proposals[i] = asked.nearest[0]
        return proposals

    def _search(self, asked: _Asked, start: Tensor | None) -> None:
        """Ask about one image until the budget is spent."""
        foolbox, attacks = library("foolbox", "foolbox"), library("foolbox.attacks", "foolbox")
        network = foolbox.PyTorchModel(asked, bounds=(0, 1), device=asked.image.device)
        wrong = foolbox.Misclassification(asked.label)
        noise = attacks.LinearSearchBlendedUniformNoiseAttack(directions=DIRECTIONS, steps=BLENDS)
        search = attacks.HopSkipJumpAttack(
            # The budget ends it, not the steps.
            steps=self.queries,
            initial_gradient_eval_steps=self.draws,
            gamma=self.width * asked.image.numel() ** (1 if asked.threat.norm == "L2" else 1.5),
            constraint=asked.threat.norm.lower(),
        )
        # It asserts that what was misclassified still is: not so where passes are not repeatable.
        with contextlib.suppress(_Spent, AssertionError):
            if start is not None:
                asked(start.to(asked.image).clamp(0, 1))
            if asked.nearest is None:
                noise.run(network, asked.image, wrong)
            if asked.nearest is not None:
                search.run(network, asked.image, wrong, starting_points=asked.nearest)


class _Spent(Exception):
    """The budget is used up."""


class _Asked(nn.Module):
    """The network of one image within a budget, and the nearest point that fooled it."""

    def __init__(
        self, network: nn.Module, image: Tensor, label: Tensor, threat: ThreatModel, left: int
    ) -> None:
        super().__init__()
        self.network, self.image, self.label, self.threat = network, image, label, threat
        self.left = left
        self.nearest: Tensor | None = None
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[1, class]`.

        Raises:
            _Spent: Nothing is left of the budget.
        """
        if self.left == 0:
            raise _Spent
        self.left -= 1
        logits: Tensor = self.network(x)
        if not bool(logits.isfinite().all()):
            # No prediction is wrong; the search takes any other class for it.
            logits = torch.zeros_like(logits).scatter(1, self.label[:, None], -1.0)
        if int(logits.argmax(1)) != int(self.label):
            distance = self.threat.distance
            if self.nearest is None or bool(
                distance(x, self.image) < distance(self.nearest, self.image)
            ):
                self.nearest = x.detach().clone()
        return logits


ATTACK = HopSkipJump
