"""What an architecture is: default sizes, and the way from sizes to layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

ImageShape = tuple[int, int, int]
Activation = Callable[[], nn.Module]


@dataclass(frozen=True)
class Sizes:
    """The sizes that a network of some architecture is built with.

    `widths` are output channels, one for each convolution (VGG) or for each stage (ResNet);
    `classifier` are the sizes of the hidden linear layers; `image` is (channel, height, width).
    """

    widths: tuple[int, ...]
    classifier: tuple[int, ...]
    classes: int
    image: ImageShape
    dropout: float


@dataclass(frozen=True)
class Layers:
    """Layers in order; an activation is a slot that holds a ReLU or spiking neurons."""

    features: nn.Sequential
    classifier: nn.Sequential


@dataclass(frozen=True)
class Architecture:
    """A named architecture: its published sizes and its builder.

    `build(sizes, activation)` calls `activation()` once for every slot, in order of execution.
    """

    name: str
    widths: tuple[int, ...]
    classifier: tuple[int, ...]
    build: Callable[[Sizes, Activation], Layers]


class Residual(nn.Module):
    """Two convolutions and a shortcut in parallel, summed into the same membrane.

    The network runs it, since the activations inside work over time.
    """

    def __init__(
        self,
        first: nn.Module,
        inner: nn.Module,
        drop: nn.Module,
        second: nn.Module,
        shortcut: nn.Module,
        outer: nn.Module,
    ) -> None:
        super().__init__()
        self.first = first
        self.inner = inner
        self.drop = drop
        self.second = second
        self.shortcut = shortcut
        self.outer = outer

    def run(self, x: Tensor, step: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """The output for an input `[time, batch, ...]`; `step` runs one inner layer over time."""
        y = step(self.inner, step(self.first, x))
        y = step(self.second, step(self.drop, y))
        return step(self.outer, y + step(self.shortcut, x))


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias; its weights are drawn from N(0, sqrt(2 / (size^2 * outputs))).

    Source: `_initialize_weights2` of HIRE-SNN and DIET-SNN.
    """
    layer = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
    _draw(layer.weight, math.sqrt(2 / (size * size * outputs)))
    return layer


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer without bias; its weights are drawn from N(0, 0.01)."""
    layer = nn.Linear(inputs, outputs, bias=False)
    _draw(layer.weight, 0.01)
    return layer


def _draw(weight: Tensor, deviation: float) -> None:
    # Without memory there is nothing to draw, and PyTorch would import its compiler to do so, which
    # takes seconds.
    if not weight.is_meta:
        nn.init.normal_(weight, 0, deviation)
