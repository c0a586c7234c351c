"""HopSkipJump: the nearest misclassified image from labels alone, along the decision boundary."""

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

#: The number of noise images that are tried as a start; if none of them is misclassified, hardly
#: any noise image is.
DIRECTIONS = 100
#: The number of blends of an image with its noise that are tried, the weakest first.
BLENDS = 50


@dataclass(frozen=True)
class HopSkipJump:
    """A search by decisions: estimate the normal of the boundary from labels, step, bisect back.

    It runs one image at a time in foolbox. It starts from what earlier attacks of a cascade found
    if that is misclassified, and from the image blended with uniform noise if not. Every point
    that the network is called with counts as found, and the search ends with its budget, wherever
    it is then.

    Args:
        queries: The number of forward passes of each image, >= 1.
        draws: The number of draws of the first estimate of the normal; at step k it takes sqrt(k)
            times as many.
        width: The distance of the draws from the boundary, as a share of the distance that is
            left: their size in L2, their root mean square in Linf. The published value is 1 / d
            for d values in L2, and less in Linf; draws that near tell little of a network that is
            constant between spikes.

    The nearest misclassified point is proposed if it lies in the ball of the threat model, and
    the clean image if it does not, or if no start is found. So with a large epsilon the records
    hold the least distances that were found.

    Raises:
        InputError: A value is out of its range, or foolbox is not installed.

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
        # A missing library is reported before the suite runs.
        library("foolbox", "foolbox")

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, ...]`.

        Raises:
            InputError: The network is stochastic, so its labels have no boundary, or the pixel
                range is not [0, 1].
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
            # To pad one image to a whole micro-batch would cost a micro-batch.
            part = victim.select([i], micro_batch=1)
            asked = _Asked(part.network, images[i : i + 1], labels[i : i + 1], threat, self.queries)
            with seeded(rng.select([i]).derive("hop-skip-jump")), warnings.catch_warnings():
                # foolbox warns if it does not find a start.
                warnings.simplefilter("ignore")
                self._search(asked, part.start)
            if asked.nearest is not None and bool(threat.admits(asked.nearest, asked.image).all()):
                proposals[i] = asked.nearest[0]
        return proposals

    def _search(self, asked: _Asked, start: Tensor | None) -> None:
        """Search around one image until the budget is spent."""
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
        # foolbox asserts that a misclassified point still is one, which fails if passes cannot be
        # repeated.
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
    """The network for one image, with a budget, and the nearest point that fooled it."""

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
            _Spent: The budget is used up.
        """
        if self.left == 0:
            raise _Spent
        self.left -= 1
        logits: Tensor = self.network(x)
        if not bool(logits.isfinite().all()):
            # Logits that are not finite count as an error; the search sees another class.
            logits = torch.zeros_like(logits).scatter(1, self.label[:, None], -1.0)
        if int(logits.argmax(1)) != int(self.label):
            distance = self.threat.distance
            if self.nearest is None or bool(
                distance(x, self.image) < distance(self.nearest, self.image)
            ):
                self.nearest = x.detach().clone()
        return logits


ATTACK = HopSkipJump
