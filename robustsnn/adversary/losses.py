"""Losses of each image that an attacker raises: the higher, the better for the attacker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from robustsnn.errors import InputError, unknown
from robustsnn.models.scoring import judged_margin, margin

#: With the margins that the judge of an evaluation takes, for attacks that stop once an image is
#: misclassified in the eyes of the judge.
__all__ = [
    "LOSSES",
    "TARGETED",
    "Loss",
    "LossName",
    "TargetedLoss",
    "cross_entropy",
    "dlr",
    "judged_margin",
    "loss_function",
    "margin",
    "targeted_loss",
]

Loss = Callable[[Tensor, Tensor], Tensor]
TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
LossName = Literal["cross-entropy", "margin", "dlr"]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of logits `[batch, class]` and labels `[batch]`, as `[batch]`."""
    return F.cross_entropy(logits, labels, reduction="none")


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """The difference of logits ratio: the margin over `z_(1) - z_(3)`, as `[batch]`.

    The ratio does not depend on the scale of the logits. Read-outs that count spikes tie often;
    1e-12 in the denominator keeps the ratio finite then.

    Args:
        logits: The logits z, `[batch, class]`.
        labels: The true classes, int64 `[batch]`.

    Raises:
        InputError: There are fewer than three classes.

    Examples:
        >>> import torch
        >>> dlr(torch.tensor([[4.0, 2.0, 0.0]]), torch.tensor([0]))
        tensor([-0.5000])

    Source: Croce and Hein, ICML 2020, equation 6.
    """
    if logits.shape[1] < 3:
        raise InputError("the dlr loss needs at least 3 classes: use margin.")
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """`z_t - z_y`, how far the target class t is ahead of the true class y, `[batch]`."""
    return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The targeted margin over `z_(1) - (z_(3) + z_(4)) / 2`, as `[batch]`.

    The ratio does not depend on the scale of the logits.

    Args:
        logits: The logits z, `[batch, class]`.
        labels: The true classes, int64 `[batch]`.
        targets: The classes to reach, int64 `[batch]`.

    Raises:
        InputError: There are fewer than four classes.

    Source: Croce and Hein, ICML 2020, equation 7.
    """
    if logits.shape[1] < 4:
        raise InputError("the targeted-dlr loss needs at least 4 classes: use targeted-margin.")
    top = logits.topk(4, dim=1).values
    scale = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    return targeted_margin(logits, labels, targets) / (scale + 1e-12)


LOSSES: dict[str, Loss] = {"cross-entropy": cross_entropy, "margin": margin, "dlr": dlr}


def loss_function(name: str) -> Loss:
    """The loss of that name.

    Raises:
        InputError: There is no such loss.

    Examples:
        >>> loss_function("margin") is margin
        True
    """
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    return LOSSES[name]


TARGETED: dict[str, TargetedLoss] = {
    "targeted-margin": targeted_margin,
    "targeted-dlr": targeted_dlr,
}


def targeted_loss(name: str) -> TargetedLoss:
    """The loss of that name, of those that take targets.

    Raises:
        InputError: There is no such loss.
    """
    if name not in TARGETED:
        raise unknown("targeted loss", name, TARGETED)
    return TARGETED[name]
