"""Spiking activity: how often the neurons of each layer fire, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from robustsnn.snn.network import Network
from robustsnn.snn.neuron import LIF


@dataclass(frozen=True)
class LayerActivity:
    """The mean spikes per neuron and image at each time step, in [0, 1], of one layer."""

    name: str
    neurons: int
    spikes_per_step: tuple[float, ...]


@dataclass(frozen=True)
class SynapseActivity:
    """A convolution or linear layer: what it costs and how busy its inputs are.

    `macs` is the number of multiply-accumulates of one dense pass over one image;
    `input_per_step` is the fraction of its inputs that are not zero at each step (one entry for a
    static input); `feeds` names the spiking layer that its output drives, if there is one.
    """

    name: str
    macs: int
    input_per_step: tuple[float, ...]
    feeds: str | None


@dataclass(frozen=True)
class Activity:
    """The activity of a network on some images: its spiking layers and its synapses, in order."""

    images: int
    layers: tuple[LayerActivity, ...]
    synapses: tuple[SynapseActivity, ...]


@torch.no_grad()
def record_activity(
    network: Network, images: Tensor, keys: Tensor | None = None, batch_size: int = 64
) -> Activity:
    """Run the network and record what fires.

    Args:
        network: An ANN or an SNN; its mode is left as it was.
        images: Images `[batch, channel, height, width]`, in pixel units of [0, 1].
        keys: The keys of a stochastic encoding; see `Network.forward`.
        batch_size: The number of images in a forward pass.
    """
    recorder = _Recorder()
    handles = recorder.hooks(network)
    was_training = network.training
    network.eval()
    try:
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            recorder.size = len(part)
            network(part, None if keys is None else keys[start : start + batch_size])
            recorder.pending.clear()
    finally:
        for handle in handles:
            handle.remove()
        network.train(was_training)
    return recorder.activity(len(images))


class _Recorder:
    """Totals over the images of all passes, by the name of each layer, filled by hooks.

    `size` is the number of images of the pass that runs; `pending` are the synapses of the pass
    whose output has not reached neurons yet.
    """

    def __init__(self) -> None:
        self.spikes: dict[str, Tensor] = {}
        self.neurons: dict[str, int] = {}
        self.busy: dict[str, Tensor] = {}
        self.macs: dict[str, int] = {}
        self.feeds: dict[str, str | None] = {}
        self.pending: list[str] = []
        self.size = 0

    def hooks(self, network: Network) -> list[RemovableHandle]:
        """Watch every spiking layer and every synapse of a network."""
        handles = []
        for name, module in network.named_modules():
            if isinstance(module, LIF):
                handles.append(module.register_forward_hook(self._spiking(name)))
            elif isinstance(module, nn.Conv2d | nn.Linear):
                handles.append(module.register_forward_hook(self._synapse(name)))
        return handles

    def _spiking(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
            fired = output[0].flatten(2)
            self.neurons[name] = fired.shape[2]
            before = self.spikes.get(name, torch.zeros(()))
            self.spikes[name] = before + fired.double().mean(2).sum(1).cpu()
            for synapse in self.pending:
                self.feeds[synapse] = name
            self.pending.clear()

        return hook

    def _synapse(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            flat = (args[0] != 0).flatten(1).double().mean(1)
            before = self.busy.get(name, torch.zeros(()))
            self.busy[name] = before + flat.view(-1, self.size).sum(1).cpu()
            if isinstance(module, nn.Conv2d):
                window = module.kernel_size[0] * module.kernel_size[1]
                self.macs[name] = window * module.in_channels * output[0].numel()
            else:
                self.macs[name] = args[0][0].numel() * output[0].numel()
            self.feeds[name] = None
            self.pending.append(name)

        return hook

    def activity(self, images: int) -> Activity:
        """The means over that many images."""

        def mean(totals: Tensor) -> tuple[float, ...]:
            return tuple((totals / images).tolist())

        return Activity(
            images=images,
            layers=tuple(
                LayerActivity(name, self.neurons[name], mean(total))
                for name, total in self.spikes.items()
            ),
            synapses=tuple(
                SynapseActivity(name, self.macs[name], mean(total), self.feeds[name])
                for name, total in self.busy.items()
            ),
        )
