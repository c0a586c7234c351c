"""What is timed: the same three calls of every library, on the same network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsnn.adversary.victim import Victim
from robustsnn.estimators.bptt import Bptt
from robustsnn.snn.network import Network
from robustsnn.training.step import plain_update

TASKS = ("input-gradient", "training-step", "inference")


class Contender(Protocol):
    """A library that has the network."""

    name: str

    def prepare(self, task: str) -> None:
        """Get ready for a task; it is called once and not timed."""

    def logits(self, images: Tensor) -> Tensor:
        """The logits `[batch, class]`, without a gradient."""

    def gradient(self, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient of the cross-entropy of each image, shaped like the images."""

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Take an SGD step on the mean cross-entropy, with learning rate 0 to keep the weights."""

    def weight_gradients(self) -> list[Tensor]:
        """The gradients of convolutions and linear layers after a step, in order."""


class Ours:
    """This package, with the calls that its attacks and its training make.

    Args:
        network: The network, which is copied.
        whole: Whether to run a batch at once instead of in the micro-batches of a victim.
    """

    def __init__(self, network: Network, whole: bool = False) -> None:
        self.name = "robustsnn-whole" if whole else "robustsnn"
        self.whole = whole
        self.network = copy.deepcopy(network)
        self.network.time_steps = network.time_steps
        self.optimizer: torch.optim.Optimizer | None = None
        self._victims: dict[int, Victim] = {}

    def prepare(self, task: str) -> None:
        """Freeze the network, or train everything that the recipes train."""
        self._victims.clear()
        _prepare(self.network, task)
        if task == "training-step":
            self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.0)

    def logits(self, images: Tensor) -> Tensor:
        """The logits of a victim, as attacks ask for them."""
        return self._victim(len(images)).logits(images)

    def gradient(self, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient of a victim, as attacks ask for it."""
        return self._victim(len(images)).gradient(images, labels).gradient

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Take a step of weights, thresholds and leaks."""
        assert self.optimizer is not None
        plain_update(self.network, self.optimizer, images, labels)

    def weight_gradients(self) -> list[Tensor]:
        """The gradients of convolutions and linear layers."""
        return list(weight_gradients(self.network))

    def _victim(self, batch: int) -> Victim:
        # An attack, too, uses one victim for all its steps.
        if batch not in self._victims:
            victim = Victim(self.network, Bptt(), range(batch))
            if self.whole or victim.micro_batch > batch:
                victim = Victim(self.network, Bptt(), range(batch), micro_batch=batch)
            self._victims[batch] = victim
        return self._victims[batch]


class ModuleContender:
    """Another library: a module that maps images in [0, 1] to logits."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module
        self.optimizer: torch.optim.Optimizer | None = None

    def prepare(self, task: str) -> None:
        """Freeze the weights unless they are trained, which is the fastest for the library."""
        _prepare(self.module, task, training=True)
        if task == "training-step":
            self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.0)

    def logits(self, images: Tensor) -> Tensor:
        """The logits of a forward pass."""
        with torch.no_grad():
            out: Tensor = self.module(images)
        return out

    def gradient(self, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient of a forward and a backward pass, to the input only."""
        x = images.detach().clone().requires_grad_()
        loss = F.cross_entropy(self.module(x), labels, reduction="sum")
        return torch.autograd.grad(loss, x)[0]

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Take a step of everything that the library trains."""
        assert self.optimizer is not None
        loss = F.cross_entropy(self.module(images), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def weight_gradients(self) -> list[Tensor]:
        """The gradients of convolutions and linear layers."""
        return list(weight_gradients(self.module))


def weight_gradients(module: nn.Module) -> Iterator[Tensor]:
    """The gradients of the convolutions and linear layers of a module, in their order."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert layer.weight.grad is not None
            yield layer.weight.grad


def run(contender: Contender, task: str, images: Tensor, labels: Tensor) -> Callable[[], object]:
    """The call that a task times, without arguments."""
    if task == "input-gradient":
        return lambda: contender.gradient(images, labels)
    if task == "training-step":
        return lambda: contender.step(images, labels)
    return lambda: contender.logits(images)


def _prepare(module: nn.Module, task: str, training: bool = False) -> None:
    # The networks here have neither dropout nor normalisation over batches, so the mode does not
    # change a number. But some neurons of SpikingJelly cut the gradient in evaluation mode.
    module.train(training or task == "training-step")
    for parameter in module.parameters():
        parameter.requires_grad_(task == "training-step")
