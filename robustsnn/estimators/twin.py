"""The ANN twin: the gradient of the network with staircases in place of spiking neurons."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.estimators.base import Estimator
from robustsnn.snn.backward_rule import spiking_layers
from robustsnn.snn.neuron import LIFOutput


@dataclass(frozen=True)
class Twin(Estimator):
    """CBA: the gradient of the ANN with the same weights, whose neurons are staircases.

    A neuron becomes `floor(L * clamp(I/V, 0, 1) + 1/2) / L` with L levels, mean current I and
    threshold V: a quantised ReLU of one step, whose floor is differentiated straight through. The
    activation of a neuron that may spike more than once in a step has no upper end. The logits of
    the network itself take another pass.

    Args:
        levels: The number of levels L, at least 1.

    Source: Sharmin et al., ECCV 2020; the activation: Bu et al., QCFS, ICLR 2022.

    Examples:
        >>> Twin().name
        'twin'
    """

    kind: ClassVar[str] = "twin"
    faithful = False
    levels: int = 8

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise InputError("twin: levels must be at least 1.")

    @contextmanager
    def applied(self, network: nn.Module, rows: Tensor | None = None) -> Iterator[None]:
        """Replace every spiking layer by a quantised ReLU of its mean current, over one step."""
        layers = spiking_layers(network)
        try:
            for layer in layers.values():
                layer.forward = partial(_activation, layer, self.levels)
            yield
        finally:
            for layer in layers.values():
                del layer.forward


class _Quantised(torch.autograd.Function):
    """A clamped staircase whose steps are differentiated straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int, most: float) -> Tensor:
        ctx.save_for_backward((x >= 0) & (x <= most))
        return (x.clamp(0, most) * levels + 0.5).floor() / levels

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None


def _activation(
    layer: Any,
    levels: int,
    current: Tensor,
    steps: int,
    initial: Tensor | None = None,
    pool: bool = False,
) -> LIFOutput:
    """The forward pass in place of a layer's own.

    It returns the activation, `[1, batch, ...]`, and a membrane of zeros.
    """
    mean = current.mean(0, keepdim=True)
    most = math.inf if getattr(layer, "graded", False) else 1.0
    out: Tensor = _Quantised.apply(mean / layer.threshold.detach(), levels, most)
    return LIFOutput(out, torch.zeros_like(mean[0]))


ESTIMATOR = Twin
