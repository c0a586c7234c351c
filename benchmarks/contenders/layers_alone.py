"""The convolutions, pools and linear layers alone: what a network costs without its neurons.

All time steps and images in one call, channels last, from random input of the network's shape.
It is no spiking network and its numbers mean nothing; it is the yardstick of the arithmetic.
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
    """Images `[batch, channel, height, width]`, repeated over time, to sums `[batch, class]`."""

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
        """One call of every layer."""
        x = images.repeat(self.steps, 1, 1, 1).contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            x = layer.run(x, lambda m, y: m(y)) if isinstance(layer, Residual) else layer(x)
        return torch.unflatten(x, 0, (self.steps, -1)).sum(0)
