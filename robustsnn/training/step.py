"""One optimizer step, the same for every method."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsnn.errors import InputError
from robustsnn.snn.network import Network


class Progress(NamedTuple):
    """What a batch contributed: summed loss, correct predictions and images counted."""

    loss: float
    correct: int
    images: int


def plain_update(
    network: Network, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> Progress:
    """One step on the cross-entropy of a clean batch, over all time steps.

    Args:
        network: In training mode.
        optimizer: Over its weights, thresholds and leaks.
        images: `[batch, channel, height, width]`, pixel units of [0, 1].
        labels: int64 `[batch]`.
    """
    logits = network(images)
    loss = F.cross_entropy(logits, labels)
    step(network, optimizer, loss)
    return progress(loss, logits, labels)


def step(network: Network, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Backward, optimizer step, and thresholds and leaks back into range.

    Raises:
        InputError: The loss is not finite.
    """
    if not torch.isfinite(loss):
        raise InputError(f"training diverged: the loss is {loss.item()}; lower optimizer.lr.")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    network.clamp_()


def progress(loss: Tensor, logits: Tensor, labels: Tensor) -> Progress:
    """Turn a mean loss and logits into a batch's contribution."""
    right = int((logits.argmax(1) == labels).sum())
    return Progress(loss.item() * len(labels), right, len(labels))
