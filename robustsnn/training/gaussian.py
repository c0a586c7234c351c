"""Training on images with Gaussian noise, to which training on crafted noise is compared."""

from __future__ import annotations

import torch
from torch import Tensor

from robustsnn.common.epsilon import parse_epsilon
from robustsnn.snn.network import Network
from robustsnn.training.recipe import Gaussian
from robustsnn.training.step import BatchOutcome, plain_update


def gaussian_update(
    network: Network,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    settings: Gaussian,
) -> BatchOutcome:
    """One optimizer step on images with normal noise, clipped to the pixel range.

    An image has one noise for all time steps, drawn anew for every batch.

    Args:
        network: An ANN or an SNN, in training mode.
        optimizer: The optimizer of its weights, thresholds and leaks.
        images: Clean images `[batch, channel, height, width]`, in pixel units of [0, 1].
        labels: True classes, int64 `[batch]`.
        settings: The standard deviation of the noise, and the share of images that get some.

    Returns:
        The loss and the accuracy on the noisy images.

    Raises:
        InputError: The loss is not finite.
    """
    noise = parse_epsilon(settings.deviation) * torch.randn_like(images)
    # Images are in random order, so the first ones of a batch are a random share of it.
    noise[round(settings.noisy_share * len(images)) :] = 0
    return plain_update(network, optimizer, (images + noise).clamp(0, 1), labels)
