"""One optimizer step, which every method takes, and plain training, which is nothing more."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsnn.errors import InputError
from robustsnn.snn.network import Network


class BatchOutcome(NamedTuple):
    """What a batch contributed: its summed loss, its correct predictions and its images."""

    loss: float
    correct: int
    images: int


def plain_update(
    network: Network, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> BatchOutcome:
    """One step on the cross-entropy of a clean batch, over all time steps.

    This trains an ANN, and an SNN after its conversion: the image is the same at all time steps,
    and weights, thresholds and leaks are updated together, once a batch.

    Args:
        network: The network, in training mode.
        optimizer: The optimizer of its weights, thresholds and leaks.
        images: Images `[batch, channel, height, width]`, in pixel units of [0, 1].
        labels: True classes, int64 `[batch]`.

    Returns:
        The loss and the accuracy before the step.

    Raises:
        InputError: The loss is not finite.

    Source: Rathi et al., ICLR 2020; Rathi and Roy, DIET-SNN, 2020 (both for the SNN).
    """
    logits = network(images)
    loss = F.cross_entropy(logits, labels)
    optimizer_step(network, optimizer, loss)
    return outcome(loss, logits, labels)


def optimizer_step(network: Network, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Backward, optimizer step, and thresholds and leaks back into their range.

    Raises:
        InputError: The loss is not finite.
    """
    if not torch.isfinite(loss):
        raise InputError(f"training diverged: the loss is {loss.item()}; lower optimizer.lr.")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    network.clamp_()


def outcome(loss: Tensor, logits: Tensor, labels: Tensor) -> BatchOutcome:
    """The contribution of a batch, from its mean loss and its logits.

    >>> outcome(torch.tensor(0.5), torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]))
    BatchOutcome(loss=1.0, correct=1, images=2)
    """
    right = int((logits.argmax(1) == labels).sum())
    return BatchOutcome(loss.item() * len(labels), right, len(labels))
