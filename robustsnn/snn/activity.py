"""Spiking activity: how often the neurons of each layer fire, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustsnn.snn.network import Network
from robustsnn.snn.neuron import LIF


@dataclass(frozen=True)
class LayerActivity:
    """Mean spikes per neuron and image at each time step, in [0, 1]."""

    name: str
    neurons: int
    spikes_per_step: tuple[float, ...]


@dataclass(frozen=True)
class SynapseActivity:
    """A convolution or linear layer: what it costs and how busy its inputs are.

    `macs` are multiply-accumulates of one dense pass over one image; `input_per_step` the
    fraction of its inputs that are not zero at each step (one entry for a static input);
    `feeds` the spiking layer that its output drives, if any.
    """

    name: str
    macs: int
    input_per_step: tuple[float, ...]
    feeds: str | None


@dataclass(frozen=True)
class Activity:
    """Activity of a network on some images: its spiking layers and its synapses, in order."""

    images: int
    layers: tuple[LayerActivity, ...]
    synapses: tuple[SynapseActivity, ...]


@torch.no_grad()
def record_activity(
    network: Network, images: Tensor, keys: Tensor | None = None, batch_size: int = 64
) -> Activity:
    """Run the network and record what fires.

    Args:
        network: An ANN or SNN; its mode is left as it was.
        images: `[batch, channel, height, width]`, pixel units of [0, 1].
        keys: Of a stochastic encoding; see `Network.forward`.
        batch_size: Images per forward.
    """
    spikes: dict[str, Tensor] = {}
    neurons: dict[str, int] = {}
    busy: dict[str, Tensor] = {}
    macs: dict[str, int] = {}
    feeds: dict[str, str | None] = {}
    pending: list[str] = []
    size = 0

    def spiking(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
            fired = output[0].flatten(2)
            neurons[name] = fired.shape[2]
            spikes[name] = spikes.get(name, torch.zeros(())) + fired.double().mean(2).sum(1).cpu()
            for synapse in pending:
                feeds[synapse] = name
            pending.clear()

        return hook

    def synapse(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            flat = (args[0] != 0).flatten(1).double().mean(1)
            busy[name] = busy.get(name, torch.zeros(())) + flat.view(-1, size).sum(1).cpu()
            if isinstance(module, nn.Conv2d):
                window = module.kernel_size[0] * module.kernel_size[1]
                macs[name] = window * module.in_channels * output[0].numel()
            else:
                macs[name] = args[0][0].numel() * output[0].numel()
            feeds[name] = None
            pending.append(name)

        return hook

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, LIF):
            handles.append(module.register_forward_hook(spiking(name)))
        elif isinstance(module, nn.Conv2d | nn.Linear):
            handles.append(module.register_forward_hook(synapse(name)))
    was_training = network.training
    network.eval()
    try:
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            size = len(part)
            network(part, None if keys is None else keys[start : start + batch_size])
            pending.clear()
    finally:
        for handle in handles:
            handle.remove()
        network.train(was_training)

    def mean(totals: Tensor) -> tuple[float, ...]:
        return tuple((totals / len(images)).tolist())

    return Activity(
        images=len(images),
        layers=tuple(LayerActivity(n, neurons[n], mean(spikes[n])) for n in spikes),
        synapses=tuple(SynapseActivity(n, macs[n], mean(busy[n]), feeds[n]) for n in busy),
    )
