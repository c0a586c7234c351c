"""Spikes and energy of a network of another library, counted on real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustsnn.foreign.detect import own_layers
from robustsnn.foreign.replay import Pass, handled
from robustsnn.foreign.wrapped import Wrapped
from robustsnn.snn.activity import LayerActivity
from robustsnn.snn.energy import AC_PJ, MAC_PJ

#: Layers with synapses, whose operations are counted.
SYNAPSES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Counted:
    """What was counted in a network of another library.

    Args:
        layers: The spikes of the layers that estimators reach.
        energy: The energies in microjoule per image, by name; empty if some neurons were not seen.
    """

    layers: tuple[LayerActivity, ...]
    energy: dict[str, float]


@torch.no_grad()
def count(
    network: Wrapped, images: Tensor, keys: Tensor | None = None, batch_size: int = 64
) -> Counted:
    """Run a network and count its spikes and operations.

    A layer that sees the same input at every step is a layer of an analog static input: it costs
    multiply-accumulates, once. Any other layer costs an accumulate for each input that is not zero
    and each synapse that it meets, the convention `snn_input_uj` of `robustsnn.snn.energy`.

    Args:
        network: The network, in evaluation mode and checked.
        images: Images `[batch, channel, height, width]`, in [0, 1].
        keys: The keys of a network that draws.
        batch_size: The number of images in a forward pass.
    """
    counter = _Counter()
    handles = counter.hooks(network.inner)
    try:
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            given = {} if keys is None else {"keys": keys[start : start + batch_size]}
            run = Pass(network.foreign_layers())
            counter.inputs.clear()
            with handled(network.foreign_layers(), run.handler):
                network.plain(part.clone(), **given)
            for chain in run.chains:
                counter.spiked(chain.layer.name, chain.stacked(lambda call: call.spikes))
            counter.settle(len(part))
    finally:
        for handle in handles:
            handle.remove()
    layers = tuple(
        LayerActivity(name, counter.neurons[name], tuple((total / len(images)).tolist()))
        for name, total in counter.spikes.items()
        if network.reach.layers[name].why_not == ""
    )
    return Counted(layers, counter.energy(len(images)) if network.reach.complete else {})


class _Counter:
    """Totals over all images, by the name of each layer."""

    def __init__(self) -> None:
        self.spikes: dict[str, Tensor] = {}
        self.neurons: dict[str, int] = {}
        self.inputs: dict[str, list[Tensor]] = {}
        self.macs: dict[str, float] = {}
        self.entering: dict[str, float] = {}
        self.static: dict[str, bool] = {}

    def hooks(self, network: nn.Module) -> list[Any]:
        """Watch every layer with synapses, and every layer of neurons of our own."""
        handles = []
        for name, module in network.named_modules():
            if isinstance(module, SYNAPSES):
                handles.append(module.register_forward_hook(self._synapse(name)))
        for name, layer in own_layers(network).items():
            handles.append(layer.register_forward_hook(self._own(name)))
        return handles

    def _synapse(self, name: str) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, nn.Linear):
                spatial, each = 1, module.in_features * module.out_features
            else:
                spatial = output[(0,) * (output.dim() - len(module.kernel_size))].numel()
                each = spatial * module.weight.numel()
            self.macs[name] = float(each)
            # Time is in front, or joined with the batch: what is left are rows of time and batch.
            natural = 1 if isinstance(module, nn.Linear) else 1 + len(module.kernel_size)
            rows = args[0].detach().flatten(0, args[0].dim() - natural - 1)
            self.inputs.setdefault(name, []).append(rows)

        return hook

    def _own(self, name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            self.spiked(name, output[0] if isinstance(output, tuple) else output)

        return hook

    def spiked(self, name: str, spikes: Tensor) -> None:
        """Add the spikes of a layer in one pass, `[time, batch, ...]`."""
        each = spikes.flatten(2)
        self.neurons[name] = each.shape[2]
        total = each.double().mean(2).sum(1).cpu()
        self.spikes[name] = self.spikes[name] + total if name in self.spikes else total

    def settle(self, images: int) -> None:
        """Add what entered the synapses in one pass of that many images."""
        for name, calls in self.inputs.items():
            rows = torch.cat(calls)
            share = float((rows != 0).double().flatten(1).mean()) * len(rows)
            self.entering[name] = self.entering.get(name, 0.0) + share
            self.static[name] = self.static.get(name, True) and _same(rows, images)

    def energy(self, images: int) -> dict[str, float]:
        """The energies, with the names and units of `robustsnn.snn.energy.Energy`."""
        dense = sum(self.macs.values()) * MAC_PJ
        spiking = sum(
            MAC_PJ * macs if self.static[name] else AC_PJ * macs * self.entering[name] / images
            for name, macs in self.macs.items()
        )
        return {"ann_uj": dense * 1e-6, "snn_input_uj": spiking * 1e-6}


def _same(rows: Tensor, images: int) -> bool:
    """Whether rows are the same at each of their steps, in whatever order they lie."""
    steps = len(rows) // images
    by_time = rows.unflatten(0, (steps, images))
    by_image = rows.unflatten(0, (images, steps)).transpose(0, 1)
    return bool((by_time == by_time[:1]).all()) or bool((by_image == by_image[:1]).all())
