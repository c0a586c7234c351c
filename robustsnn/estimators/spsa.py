"""SPSA: differences along random signs, no derivative of anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustsnn.common.epsilon import parse_epsilon
from robustsnn.common.randomness import Rng, derive
from robustsnn.errors import InputError
from robustsnn.estimators.base import Estimator, Found, Loss, Passes


@dataclass(frozen=True)
class Spsa(Estimator):
    """Simultaneous perturbation stochastic approximation.

    `1/N sum (L(x + sigma v) - L(x - sigma v)) / (2 sigma) v` with v in {-1, 1}. Spikes make the
    loss piecewise constant, so differences with a sigma below a grey level are mostly 0.

    Args:
        pairs: The number N of random signs, which cost 2 N forward passes.
        sigma: The length of a difference as the user wrote it, in pixel units.

    Source: Spall 1992; Uesato et al., ICML 2018.

    Examples:
        >>> Spsa(pairs=8).name
        'spsa:pairs=8,sigma=2/255'
    """

    kind: ClassVar[str] = "spsa"
    spikes: ClassVar[bool | None] = None
    pairs: int = 64
    sigma: str = "2/255"

    def __post_init__(self) -> None:
        if self.pairs < 1 or self.length <= 0:
            raise InputError("spsa: pairs must be at least 1 and sigma above 0.")

    @property
    def length(self) -> float:
        """Sigma as a number, in pixel units."""
        return parse_epsilon(self.sigma, "sigma")

    @property
    def name(self) -> str:
        """The kind, the number of pairs and sigma."""
        return self.named(every=True)

    @contextmanager
    def applied(self, network: nn.Module, rows: Tensor | None = None) -> Iterator[None]:
        """Leave the network as it is."""
        yield

    def gradient(self, passes: Passes, images: Tensor, labels: Tensor, loss: Loss) -> Found:
        """Loss, logits and the mean over pairs of the difference times its signs."""
        # The pass count goes into the stream, so that each call draws other signs.
        stream = [derive(i, n) for i, n in zip(passes.ids, passes.spent, strict=True)]
        rng = Rng(passes.seed, stream, "spsa")
        gradient = torch.zeros_like(images)
        with torch.no_grad():
            logits = passes.logits(images, passes.spend(forward=1))
            values = loss(logits, labels)
            for _ in range(self.pairs):
                signs = rng.uniform(images.shape[1:], -1.0, 1.0, like=images).sign()
                # Both sides see the same draw; different draws would drown the difference in noise.
                keys = passes.spend(forward=2)
                above = loss(passes.logits(images + self.length * signs, keys), labels)
                below = loss(passes.logits(images - self.length * signs, keys), labels)
                slope = (above - below) / (2 * self.length * self.pairs)
                gradient += slope.reshape(-1, *[1] * (images.dim() - 1)) * signs
        return values, logits, gradient


ESTIMATOR = Spsa
