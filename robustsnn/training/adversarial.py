"""Adversarial training: every batch is attacked on the current network before the update.

The attack takes one step from a random start inside the ball by default, and more as an option.
Sources: Madry et al., ICLR 2018 (PGD); Wong, Rice and Kolter, ICLR 2020 (one step of 1.25 epsilon).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsnn.common.epsilon import parse_epsilon
from robustsnn.snn.network import Network
from robustsnn.training.recipe import Adversarial
from robustsnn.training.step import BatchOutcome, optimizer_step, outcome, plain_update


def adversarial_update(
    network: Network,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    settings: Adversarial,
) -> BatchOutcome:
    """One optimizer step on adversarial images, and on the clean ones if they have a weight.

    The images are crafted in training mode, so dropout draws a mask for every pass. With a weight b
    of the clean images the loss is `b CE(clean) + (1 - b) CE(adversarial)`, the hybrid loss of DNR.

    Args:
        network: An ANN or an SNN, in training mode.
        optimizer: The optimizer of its weights, thresholds and leaks.
        images: Clean images `[batch, channel, height, width]`, in pixel units of [0, 1].
        labels: True classes, int64 `[batch]`.
        settings: Ball, step size, number of steps and start of the attack.

    Returns:
        The loss and the accuracy on the adversarial images.

    Raises:
        InputError: The loss is not finite.

    Source of the hybrid loss: Kundu et al., DNR, ASP-DAC 2021.
    """
    crafted = craft(network, images, labels, settings)
    if not settings.clean_weight:
        return plain_update(network, optimizer, crafted, labels)
    clean = F.cross_entropy(network(images), labels)
    logits = network(crafted)
    attacked = F.cross_entropy(logits, labels)
    loss = settings.clean_weight * clean + (1 - settings.clean_weight) * attacked
    optimizer_step(network, optimizer, loss)
    return outcome(attacked.detach(), logits.detach(), labels)


def craft(network: Network, images: Tensor, labels: Tensor, settings: Adversarial) -> Tensor:
    """Adversarial images `[batch, ...]`, inside the Linf ball and the pixel range.

    The arguments are those of `adversarial_update`.
    """
    bound = parse_epsilon(settings.epsilon)
    if settings.step is None:
        size = bound * (1.25 if settings.steps == 1 else 2.5 / settings.steps)
    else:
        size = parse_epsilon(settings.step)
    noise = torch.zeros_like(images)
    if settings.random_start:
        noise.uniform_(-bound, bound)
    with _frozen(network):
        for _ in range(settings.steps):
            noisy = (images + noise).clamp(0, 1).requires_grad_()
            gradient = torch.zeros_like(images)
            for _ in range(settings.draws):
                # In training mode a network that draws does so anew in every pass.
                loss = F.cross_entropy(network(noisy), labels)
                gradient += torch.autograd.grad(loss, noisy)[0]
            noise = (noise + size * gradient.sign()).clamp(-bound, bound)
    return (images + noise).clamp(0, 1)


@contextmanager
def _frozen(network: Network) -> Iterator[None]:
    """No weight asks for a gradient in here, which would cost a third of each crafting pass."""
    learned = [p for p in network.parameters() if p.requires_grad]
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
