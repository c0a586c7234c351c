"""The recipe of HoSNN, small: clean training, signatures, then training on one-step attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsnn.common.epsilon import parse_epsilon
from robustsnn.data.datasets import load_training
from studies.hosnn.network import FOLLOWS, HoSNN

#: The size of the one step that networks are trained on, as published.
TRAINED_AT = "2/255"
#: The learning rates of the weights and of how thresholds follow membranes.
RATE, RATE_OF_THRESHOLDS = 2e-3, 1e-2
BATCH = 100
#: The number of training images whose membranes make the signatures.
SIGNED = 5000


def train(
    data_root: str,
    adapting: bool,
    clean_epochs: int,
    epochs: int,
    images: int | None,
    seed: int,
    say: Callable[[str], None],
) -> HoSNN:
    """A trained network.

    Args:
        data_root: The folder of Fashion-MNIST.
        adapting: Whether thresholds adapt, as in HoSNN; if not, it is the plain LIF network that
            the paper compares with, of the same training.
        clean_epochs: The number of epochs on clean images, without adapting thresholds.
        epochs: The number of epochs on one-step attacks after them.
        images: The number of training images; None for all.
        seed: The seed of weights and batches.
        say: The function that is told of every epoch.
    """
    torch.manual_seed(seed)
    data = load_training("fashion-mnist", data_root)
    x, y = data.tensor(slice(0, images)), data.targets()[:images]
    network = HoSNN()
    follows = [layer.follows for layer in network.spiking_layers().values()]
    learned = {id(one) for one in follows}
    weights = [p for p in network.parameters() if id(p) not in learned]
    plain = torch.optim.Adam(weights, lr=RATE)
    for epoch in range(clean_epochs):
        right = sum(_step(network, plain, x[at], y[at]) for at in _batches(len(x)))
        say(f"clean epoch {epoch + 1}: {right / len(x):.3f}")
    if adapting:
        network.sign(x[:SIGNED])
        for one in follows:
            one.data.fill_(FOLLOWS)
    both = torch.optim.Adam(
        [{"params": weights, "lr": RATE / 2}, {"params": follows, "lr": RATE_OF_THRESHOLDS}]
    )
    for epoch in range(epochs):
        right = 0
        for at in _batches(len(x)):
            right += _step(
                network, both if adapting else plain, crafted(network, x[at], y[at]), y[at]
            )
            with torch.no_grad():
                # A threshold follows a membrane up, as published, and never away from it.
                for one in follows:
                    one.clamp_(min=0)
        say(f"adversarial epoch {epoch + 1}: {right / len(x):.3f}")
    return network.eval().requires_grad_(False)


def crafted(network: HoSNN, images: Tensor, labels: Tensor) -> Tensor:
    """The images after one step along the published gradient, in the pixel range."""
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(leaf), labels), leaf)
    return (images + parse_epsilon(TRAINED_AT) * gradient.sign()).clamp(0, 1)


def _step(network: HoSNN, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> int:
    """One update; the number of images that were right."""
    logits = network(images)
    optimizer.zero_grad()
    F.cross_entropy(logits, labels).backward()
    optimizer.step()
    return int((logits.argmax(1) == labels).sum())


def _batches(count: int) -> Iterator[Tensor]:
    return iter(torch.randperm(count).split(BATCH))
