"""A small HoSNN: convolutions, synapses that filter spikes, and neurons that adapt thresholds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from robustsnn.snn.homeostasis import HomeostaticLIF
from robustsnn.snn.surrogate import Sigmoid

#: The published numbers: steps, time constants of membranes and synapses, width of the surrogate.
STEPS, MEMBRANE, SYNAPSE, WIDTH = 5, 5.0, 3.0, 0.2
#: The threshold that every neuron begins with, and by how much it follows before it is learned.
THRESHOLD, FOLLOWS = 1.0, 0.1
#: The mean and the standard deviation of Fashion-MNIST training pixels.
MEAN, STD = 0.2860, 0.3530


class HoSNN(nn.Module):
    """Logits `[batch, class]` of images `[batch, 1, 28, 28]` in [0, 1].

    Args:
        widths: The channels of the two convolutions and the neurons of the layer behind them; the
            published network for Fashion-MNIST has more.

    Source: Geng and Li, HoSNN, TMLR 2025.
    """

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 128)) -> None:
        super().__init__()
        first, second, third = widths
        self.classes, self.input_shape = 10, (1, 28, 28)
        self.synapses = nn.ModuleList(
            [
                nn.Conv2d(1, first, 5, stride=2, padding=2),
                nn.Conv2d(first, second, 5, stride=2, padding=2),
                nn.Sequential(nn.Flatten(), nn.Linear(49 * second, third)),
                nn.Linear(third, 10),
            ]
        )
        shapes: list[tuple[int, ...]] = [(first, 14, 14), (second, 7, 7), (third,)]
        self.neurons = nn.ModuleList(
            HomeostaticLIF(THRESHOLD, 1 - 1 / MEMBRANE, STEPS, shape, Sigmoid(WIDTH))
            for shape in shapes
        )

    def spiking_layers(self) -> dict[str, HomeostaticLIF]:
        """The layers that estimators reach, by name."""
        return {f"neurons.{i}": one for i, one in enumerate(self.neurons)}  # type: ignore[misc]

    def forward(self, images: Tensor) -> Tensor:
        """Logits: what reaches the classes, summed over steps."""
        x = ((images - MEAN) / STD)[None]
        for synapse, neurons in zip(self.synapses, self.neurons, strict=False):
            current = synapse(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            x = filtered(neurons(current, STEPS)[0])
        logits: Tensor = self.synapses[-1](x.flatten(0, 1)).unflatten(0, x.shape[:2]).sum(0)
        return logits

    @torch.no_grad()
    def sign(self, images: Tensor, batch: int = 250) -> None:
        """Keep the mean membranes of clean images as the signature of every neuron and step."""
        layers = self.spiking_layers()
        sums = {name: torch.zeros_like(layer.signature) for name, layer in layers.items()}

        def adding(name: str) -> Callable[..., None]:
            def add(module: HomeostaticLIF, inputs: tuple[Tensor], output: Any) -> None:
                sums[name] += torch.stack(list(module.trace(inputs[0], STEPS).membranes)).sum(1)

            return add

        handles = [one.register_forward_hook(adding(name)) for name, one in layers.items()]
        for part in images.split(batch):
            self(part)
        for handle in handles:
            handle.remove()
        for name, layer in layers.items():
            layer.signature.copy_(sums[name] / len(images))


def filtered(spikes: Tensor) -> Tensor:
    """What synapses make of spikes, `a[t] = (1 - 1/SYNAPSE) a[t-1] + s[t]`, `[time, ...]`."""
    found = [spikes[0]]
    for spike in spikes[1:]:
        found.append((1 - 1 / SYNAPSE) * found[-1] + spike)
    return torch.stack(found)


def save(network: HoSNN, path: Path) -> None:
    """Store the weights, thresholds and signatures of a network."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)


def load(path: Path) -> HoSNN:
    """The network of stored weights, frozen, in evaluation mode."""
    network = HoSNN()
    network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)
