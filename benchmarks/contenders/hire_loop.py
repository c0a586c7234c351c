"""The way in which the published HIRE-SNN network computes, in code of our own.

There is a loop over time steps with a loop over layers inside it. Every layer keeps its membrane,
and every convolution runs at every step. The spike is an autograd function of `U/V - 1`. Dropout
is a mask that multiplies at every step. Thresholds and leaks are learned. The published code also
counts spikes and keeps the time of the last one; this is omitted here, in its favour.

Source: Kundu et al., HIRE-SNN, ICCV 2021, section 3 and its published model.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.snn.architectures.description import Residual
from robustsnn.snn.network import Network
from robustsnn.snn.neuron import LIF, FixedDropout
from robustsnn.snn.surrogate import Triangle

NAME = "hire-loop"


class Spike(torch.autograd.Function):
    """The step function of `z = U/V - 1` with a triangle for its derivative."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, width: float, amplitude: float) -> Tensor:
        """1 where z > 0."""
        ctx.save_for_backward(z)
        ctx.width, ctx.amplitude = width, amplitude
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient, multiplied by the triangle."""
        (z,) = ctx.saved_tensors
        triangle = ctx.amplitude * (1 - z.abs() / ctx.width).clamp(min=0)
        return gradients[0] * triangle, None, None


class HireLoop(nn.Module):
    """Maps images `[batch, channel, height, width]` in [0, 1] to logits `[batch, class]`."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.steps = network.time_steps
        self.average = network.config.readout == "mean"
        self.register_buffer("mean", network.mean.clone())
        self.register_buffer("std", network.std.clone())
        self.layers = nn.ModuleList(
            copy.deepcopy(m) for m in (*network.features, *network.classifier)
        )
        for lif in self.modules():
            if isinstance(lif, LIF) and not isinstance(lif.surrogate, Triangle):
                raise InputError("the HIRE loop is given triangles only.")

    def forward(self, images: Tensor) -> Tensor:
        """The logits after all steps, one after the other."""
        x = (images - self.mean) / self.std
        membranes: dict[nn.Module, Tensor] = {}
        masks: dict[nn.Module, Tensor] = {}

        def one_step(module: nn.Module, y: Tensor) -> Tensor:
            if isinstance(module, LIF):
                u = module.leak * membranes.get(module, torch.zeros_like(y)) + y
                z = u / module.threshold - 1
                shape = module.surrogate
                spikes: Tensor = Spike.apply(z, shape.width, shape.amplitude)
                membranes[module] = u - module.threshold * (z > 0).to(u.dtype)
                return spikes
            if isinstance(module, FixedDropout):
                if module not in masks:
                    ones = torch.ones_like(y, requires_grad=False)
                    masks[module] = nn.functional.dropout(ones, module.p, module.training)
                return y * masks[module]
            if isinstance(module, Residual):
                return module.run(y, one_step)
            out: Tensor = module(y)
            return out

        logits: Tensor | None = None
        for _ in range(self.steps):
            y = x
            for module in self.layers:
                y = one_step(module, y)
            logits = y if logits is None else logits + y
        assert logits is not None
        return logits / self.steps if self.average else logits
