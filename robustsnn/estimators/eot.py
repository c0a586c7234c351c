"""EOT: any estimator, averaged over draws of a stochastic network.

It has no name of its own: the settings `draws=20,average=logits` of another estimator ask for it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.estimators.base import Estimator, Found, Loss, Passes, reached
from robustsnn.snn.draws import mean_of_draws

Average = Literal["gradients", "logits"]


@dataclass(frozen=True)
class Eot(Estimator):
    """Expectation over transformation; on a network that does not draw, the inner estimator.

    Args:
        inner: The estimator that differentiates each draw.
        draws: The number of draws, with a pass of each image for each.
        average: What is averaged: `gradients` for the mean gradient of the loss of each draw, or
            `logits` for the gradient of the loss of the mean logits, which a vote over draws
            depends on.

    Source: Athalye et al., ICML 2018.
    """

    spikes: ClassVar[bool | None] = None
    inner: Estimator
    draws: int
    average: Average = "gradients"

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise InputError("draws must be at least 1.")
        if self.average not in ("gradients", "logits"):
            raise InputError(f"average must be gradients or logits, not {self.average!r}.")
        for name in ("faithful", "remembers"):
            object.__setattr__(self, name, getattr(self.inner, name))

    @property
    def name(self) -> str:
        """The name of the inner estimator, with `draws` and `average`."""
        head, colon, rest = self.inner.name.rpartition(":")
        own = f"draws={self.draws},average={self.average}"
        # All options are in one list, after a surrogate if there is one.
        if colon and "=" in rest and "(" not in rest:
            return f"{head}:{rest},{own}"
        return f"{self.inner.name}:{own}"

    def applied(
        self, network: nn.Module, rows: Tensor | None = None
    ) -> AbstractContextManager[None]:
        """The context of the inner estimator."""
        return self.inner.applied(network, rows)

    def forget(self, rows: Tensor) -> None:
        """Let the inner estimator forget those images."""
        self.inner.forget(rows)

    def gradient(self, passes: Passes, images: Tensor, labels: Tensor, loss: Loss) -> Found:
        """Loss and logits of the mean logits, and the gradient over all draws in one batch.

        Args:
            passes: The victim's passes of these images.
            images: The images, `[batch, channel, height, width]`, in pixel units.
            labels: The true classes, int64 `[batch]`.
            loss: The loss that a step along the gradient raises.
        """
        if not passes.stochastic:
            return self.inner.gradient(passes, images, labels, loss)
        several = images.repeat(self.draws, *[1] * (images.dim() - 1))
        spent = [passes.spend(forward=1, backward=1) for _ in range(self.draws)]
        keys = torch.cat([key for key in spent if key is not None])
        own: Tensor | None = None
        if not self.faithful:
            with torch.no_grad():
                own = passes.logits(several, keys, whole=True)
            passes.spend(forward=self.draws)
        several.requires_grad_()
        with self.applied(passes.network, passes.rows.repeat(self.draws)):
            logits = passes.logits(several, keys, whole=True)
            mean = mean_of_draws(logits.unflatten(0, (self.draws, len(images))))
            if self.average == "logits":
                values = loss(mean, labels)
            else:
                each = loss(logits, labels.repeat(self.draws))
                values = each.unflatten(0, (self.draws, -1)).mean(0)
            found = reached(values, several).unflatten(0, (self.draws, len(images)))
        gradient = _without_broken_draws(found, passes).sum(0)
        if own is not None:
            mean = mean_of_draws(own.unflatten(0, (self.draws, len(images))))
        return loss(mean, labels).detach(), mean.detach(), gradient


def _without_broken_draws(each: Tensor, passes: Passes) -> Tensor:
    """The gradients, `[draw, batch, ...]`, with zeros for draws that hold NaN or infinity.

    If all draws of an image do, they stay as they are, and the victim counts them.
    """
    broken = ~each.isfinite().flatten(2).all(2)
    if not bool(broken.any()):
        return each
    some = broken.any(0) & ~broken.all(0)
    passes.nonfinite((broken.sum(0) * some).cpu())
    where = (broken & some).reshape(*broken.shape, *[1] * (each.dim() - 2))
    return torch.where(where, 0.0, each)
