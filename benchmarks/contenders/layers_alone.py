"""The convolutions, pools and linear layers alone: what a network costs without its neurons.

All time steps and images are in one call, channels last. This is not a spiking network, and its
outputs have no meaning; it is only the yardstick for the time of the arithmetic.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from robustsnn.snn.architectures.description import Residual
from robustsnn.snn.network import Network
from robustsnn.snn.neuron import LIF, FixedDropout

NAME = "layers-alone"


class LayersAlone(nn.Module):
    """Maps images `[batch, channel, height, width]`, repeated over time, to `[batch, class]`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.steps = network.time_steps
        self.layers = nn.ModuleList(
            copy.deepcopy(m)
            for m in (*network.features, *network.classifier)
            if not isinstance(m, LIF | FixedDropout)
        )
        for block in self.modules():
            if isinstance(block, Residual):
                block.inner = nn.Identity()
                block.drop = nn.Identity()
                block.outer = nn.Identity()
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """The sums over time after one call of every layer."""
        x = images.repeat(self.steps, 1, 1, 1).contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            x = layer.run(x, lambda m, y: m(y)) if isinstance(layer, Residual) else layer(x)
        return torch.unflatten(x, 0, (self.steps, -1)).sum(0)
