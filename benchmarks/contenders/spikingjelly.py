"""The network in SpikingJelly, multi-step: every layer runs over all time steps at once.

`LIFNode(decay_input=False, v_reset=None)` has the published dynamics with
`tau = 1 / (1 - leak)`, and `PiecewiseQuadratic(alpha)` is the triangle of unit area and half-width
`1 / alpha`. Two details differ: it fires at `U >= V`, where the published neuron fires at `U > V`,
and the area of its triangle is always 1.

- A triangle of another area multiplies every gradient through a layer by `amplitude * width`. In
  a chain of layers every path passes every layer once. So one factor at the logits corrects the
  input gradient at no cost, although not the gradients of the weights. In a network with shortcuts
  each layer has a factor of its own.
- With that surrogate its CPU kernel uses its fastest backward pass, which is written by hand. For
  a surrogate of our own it would use autograd over every operation.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.snn.architectures.description import Residual
from robustsnn.snn.network import Network
from robustsnn.snn.neuron import LIF, FixedDropout
from robustsnn.snn.surrogate import Triangle

NAME = "spikingjelly"


class ScaleGradient(torch.autograd.Function):
    """The identity with its gradient multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        """The same values."""
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The scaled gradient."""
        return gradients[0] * ctx.factor, None


class Scaled(nn.Module):
    """Neurons with a surrogate whose area is not 1."""

    def __init__(self, node: nn.Module, area: float) -> None:
        super().__init__()
        self.node = node
        self.area = area

    def forward(self, current: Tensor) -> Tensor:
        """The spikes `[time, batch, ...]`."""
        scaled: Tensor = ScaleGradient.apply(self.node(current), self.area)
        return scaled


class Block(nn.Module):
    """A residual block."""

    def __init__(self, block: Residual, area: float) -> None:
        super().__init__()
        self.first = _convert(block.first, area)
        self.inner = _convert(block.inner, area)
        self.second = _convert(block.second, area)
        self.shortcut = _convert(block.shortcut, area)
        self.outer = _convert(block.outer, area)

    def forward(self, x: Tensor) -> Tensor:
        """The spikes of all steps, `[time, batch, ...]`."""
        y: Tensor = self.outer(self.second(self.inner(self.first(x))) + self.shortcut(x))
        return y


class SpikingJellyNetwork(nn.Module):
    """Maps images `[batch, channel, height, width]` in [0, 1] to logits `[batch, class]`.

    Args:
        network: The network to rebuild, with its weights, thresholds, leaks and surrogates.
        channels_last: Whether input and weights of convolutions have this memory layout.

    Raises:
        InputError: The network has neurons or surrogates that the library cannot express.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network, channels_last: bool = False) -> None:
        super().__init__()
        self.steps = network.time_steps
        self.average = network.config.readout == "mean"
        self.channels_last = channels_last
        self.register_buffer("mean", network.mean.clone())
        self.register_buffer("std", network.std.clone())
        modules = [
            m for m in (*network.features, *network.classifier) if not isinstance(m, FixedDropout)
        ]
        areas = [_area(lif) for lif in network.spiking_layers().values()]
        shortcuts = any(isinstance(m, Residual) for m in modules)
        self.area = 1.0
        if not shortcuts:
            for area in areas:
                self.area *= area
        self.layers = nn.Sequential(*(_convert(m, areas[0] if shortcuts else 1.0) for m in modules))
        functional.set_step_mode(self, "m")
        if channels_last:
            self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """The logits of an image that is the input at every step, as in the library's tutorials."""
        x = (images - self.mean) / self.std
        if self.channels_last:
            x = x.repeat(self.steps, 1, 1, 1).contiguous(memory_format=torch.channels_last)
            x = x.unflatten(0, (self.steps, -1))
        else:
            x = x.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1)
        logits: Tensor = self.layers(x).sum(0)
        functional.reset_net(self)
        if self.area != 1:
            logits = ScaleGradient.apply(logits, self.area)
        return logits / self.steps if self.average else logits


def _convert(module: nn.Module, area: float) -> nn.Module:
    if isinstance(module, nn.Conv2d):
        made = layer.Conv2d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            stride=module.stride,
            padding=module.padding,
            bias=False,
        )
    elif isinstance(module, nn.Linear):
        made = layer.Linear(module.in_features, module.out_features, bias=False)
    elif isinstance(module, nn.AvgPool2d):
        return layer.AvgPool2d(module.kernel_size)  # type: ignore[no-any-return]
    elif isinstance(module, nn.Flatten):
        return layer.Flatten(1)  # type: ignore[no-any-return]
    elif isinstance(module, LIF):
        return _neurons(module, area)
    elif isinstance(module, Residual):
        return Block(module, area)
    else:
        return copy.deepcopy(module)
    with torch.no_grad():
        made.weight.copy_(module.weight)
    return made  # type: ignore[no-any-return]


def _area(lif: LIF) -> float:
    if not isinstance(lif.surrogate, Triangle):
        raise InputError(f"SpikingJelly is given triangles only, not {lif.surrogate.name}.")
    return lif.surrogate.amplitude * lif.surrogate.width


def _neurons(lif: LIF, area: float) -> nn.Module:
    _area(lif)
    if lif.reset != "soft" or not lif.detach_reset:
        raise InputError("SpikingJelly is given a detached soft reset only.")
    threshold, leak = lif.threshold.item(), lif.leak.item()
    common: dict[str, Any] = {
        "v_threshold": threshold,
        "v_reset": None,
        "surrogate_function": surrogate.PiecewiseQuadratic(1 / (threshold * lif.surrogate.width)),
        "detach_reset": True,
        "step_mode": "m",
    }
    if leak == 1:
        node = neuron.IFNode(**common)
    elif leak == 0:
        raise InputError("SpikingJelly has no LIF neuron of leak 0.")
    else:
        node = neuron.LIFNode(tau=1 / (1 - leak), decay_input=False, **common)
    return node if area == 1 else Scaled(node, area)
