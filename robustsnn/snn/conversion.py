"""Conversion of a trained ANN into an SNN: same weights, thresholds calibrated on real currents.

It goes layer by layer, while the layers before are already spiking: the threshold becomes a high
percentile of the layer's input current, times a scale factor. Source: Rathi et al., ICLR 2020;
the percentile and the order of calibration are those of DIET-SNN, 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.snn.neuron import LEAST_THRESHOLD, LIF

PERCENTILE = 99.7


class _Reached(Exception):
    """The layer to calibrate has seen its current: the rest of the pass is not needed."""


def percentile(values: Tensor, q: float) -> float:
    """The value of rank `1 + round(q/100 * (n - 1))` among all n values, counted from the lowest.

    >>> percentile(torch.tensor([3.0, 1.0, 2.0]), 50)
    2.0

    Source: the `percentile` helper of HIRE-SNN and DIET-SNN.
    """
    flat = values.detach().flatten()
    rank = 1 + round(0.01 * q * (flat.numel() - 1))
    return flat.kthvalue(rank).values.item()


@torch.no_grad()
def calibrate(
    network: Network, batches: Sequence[Tensor], *, steps: int, q: float, scale: float
) -> dict[str, float]:
    """Set every threshold to `scale` times the largest percentile of the layer's current.

    The percentile is taken over all neurons and images of a batch, and the largest one over time
    steps and batches. Layers are calibrated in order of execution, so that each sees spikes from
    calibrated layers.

    Args:
        network: An SNN with the weights of the ANN; changed in place.
        batches: Training images `[batch, channel, height, width]`, in pixel units of [0, 1].
        steps: The number of time steps of calibration, which may exceed that of the network.
        q: The percentile, in [0, 100].
        scale: The factor on the percentile, which is small for few time steps.

    Returns:
        The threshold of each spiking layer, by name.
    """
    was_training = network.training
    network.eval()
    for layer in network.spiking_layers().values():
        highest = LEAST_THRESHOLD / scale

        def observe(module: nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal highest
            for now in args[0]:
                highest = max(highest, percentile(now, q))
            raise _Reached

        handle = layer.register_forward_pre_hook(observe)
        try:
            for images in batches:
                try:
                    network.run(images, steps=steps)
                except _Reached:
                    pass
        finally:
            handle.remove()
        layer.threshold.fill_(scale * highest)
    network.train(was_training)
    return {name: layer.threshold.item() for name, layer in network.spiking_layers().items()}


def convert(
    ann: Network,
    config: NetworkConfig,
    batches: Sequence[Tensor],
    *,
    scale: float,
    steps: int,
    q: float = PERCENTILE,
    leak: float = 1.0,
) -> Network:
    """The SNN twin of a trained ANN, calibrated on training images.

    Args:
        ann: A trained network of kind `ann`.
        config: The description of the SNN, with the same architecture and sizes.
        batches: Training images for `calibrate`, in pixel units of [0, 1].
        scale: The factor on the calibrated thresholds; 0.3 suits few time steps.
        steps: The number of time steps of calibration.
        q: The percentile of calibration, in [0, 100].
        leak: The initial leak of every layer; 1 is integrate-and-fire.
    """
    network = Network(config)
    weights = {n: p for n, p in ann.state_dict().items()}
    current = network.state_dict()
    current.update(weights)
    network.load_state_dict(current)
    for module in network.modules():
        if isinstance(module, LIF):
            nn.init.constant_(module.leak, leak)
    calibrate(network, batches, steps=steps, q=q, scale=scale)
    return network
