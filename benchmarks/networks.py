"""Networks to time: random weights, scaled to be active, on a grid where sums are exact.

The time of arithmetic on dense layers does not depend on the weights. But it must be shown that
every library computes the same network. In float32 two correct libraries differ: they sum in
different orders, so a membrane near the threshold can end on either side of it, and the different
spike changes later layers. Here weights are multiples of 2^-11, pixels after normalisation are
multiples of 2^-7, and pooled spikes are multiples of 1/4. So every current is exact in float32 in
any order of summation, and the libraries agree in every spike.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from robustsnn.snn.architectures.description import Residual
from robustsnn.snn.network import Network, NetworkConfig, SurrogateConfig
from robustsnn.snn.neuron import LIF

#: Not 1, so that the leak has to be computed; it is exact in binary, and so is 1 / (1 - leak).
LEAK = 0.875
GRID = 2.0**-11
#: Not on the grid of the currents, since SpikingJelly fires at `U >= V` and the others at `U > V`.
THRESHOLD = 1 + 2.0**-20
#: Every layer is scaled to this number of spikes per neuron and step.
RATE = 0.2
CLASSES = 10
IMAGE = (3, 32, 32)
CLASSIFIER = (1024,)


def random_network(
    architecture: str,
    widths: tuple[int, ...] | None = None,
    classifier: tuple[int, ...] = CLASSIFIER,
    image: tuple[int, int, int] = IMAGE,
    time_steps: int = 8,
    seed: int = 0,
) -> Network:
    """A network of an architecture, in evaluation mode, with exact weights and active layers.

    Thresholds are `THRESHOLD`, leaks are `LEAK`, and the surrogate is a triangle of unit area,
    which every library here can express. There is no dropout.

    Args:
        architecture: The name of an architecture.
        widths: The widths of the layers; None for the published ones.
        classifier: The widths of the hidden linear layers.
        image: The shape (channel, height, width) of an image.
        time_steps: The number of time steps.
        seed: The seed of the weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Network(
            NetworkConfig(
                architecture=architecture,
                kind="snn",
                classes=CLASSES,
                image=image,
                widths=widths,
                classifier=classifier,
                mean=(0.5,) * image[0],
                std=(0.5,) * image[0],
                time_steps=time_steps,
                surrogate=SurrogateConfig(name="triangle", width=1.0, amplitude=1.0),
                dropout=0.0,
            )
        ).eval()
    with torch.no_grad():
        for lif in network.spiking_layers().values():
            lif.leak.fill_(LEAK)
            lif.threshold.fill_(THRESHOLD)
    # Rates hardly depend on the image or the number of steps, so a short run finds the scale.
    network.time_steps = min(4, time_steps)
    _activate(network, random_images(1, image, seed))
    network.time_steps = time_steps
    return network


@cache
def benchmark_network(architecture: str) -> Network:
    """The network that all cells share; copy it before you change more than `time_steps`."""
    return random_network(architecture)


def random_images(count: int, image: tuple[int, int, int] = IMAGE, seed: int = 0) -> Tensor:
    """Random images `[count, channel, height, width]`, multiples of 1/256 in [0, 1)."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(0, 256, (count, *image), generator=generator) / 256


def random_labels(count: int, seed: int = 0) -> Tensor:
    """Random classes, int64 `[count]`."""
    return torch.randint(0, CLASSES, (count,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def firing_rates(network: Network, images: Tensor) -> dict[str, float]:
    """The mean number of spikes per neuron and step, by layer."""
    rates: dict[str, float] = {}
    layers = network.spiking_layers()
    handles = [
        layer.register_forward_hook(
            lambda module, args, output, name=name: rates.__setitem__(
                name, output.spikes.mean().item()
            )
        )
        for name, layer in layers.items()
    ]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return rates


class _Reached(Exception):
    """The layer in question has run, so the rest of the network does not need to."""


@torch.no_grad()
def _activate(network: Network, images: Tensor) -> None:
    """Scale the weights before each LIF layer, in order, to `RATE`, and put them on the grid."""
    for layer, sources in _inputs_of_neurons(network):
        original = [source.weight.detach().clone() for source in sources]
        low, high = 2.0**-4, 2.0**8
        for _ in range(7):
            scale = (low * high) ** 0.5
            for source, weight in zip(sources, original, strict=True):
                source.weight.copy_(_on_grid(weight * scale))
            if _rate(network, layer, images) > RATE:
                high = scale
            else:
                low = scale
    last = network.classifier[-1]
    assert isinstance(last, nn.Linear)
    last.weight.copy_(_on_grid(last.weight))


def _inputs_of_neurons(network: Network) -> list[tuple[LIF, list[nn.Conv2d | nn.Linear]]]:
    found: list[tuple[LIF, list[nn.Conv2d | nn.Linear]]] = []
    pending: list[nn.Conv2d | nn.Linear] = []
    for module in (*network.features, *network.classifier):
        if isinstance(module, Residual):
            assert isinstance(module.inner, LIF) and isinstance(module.outer, LIF)
            assert isinstance(module.first, nn.Conv2d) and isinstance(module.second, nn.Conv2d)
            found.append((module.inner, [module.first]))
            both: list[nn.Conv2d | nn.Linear] = [module.second]
            if isinstance(module.shortcut, nn.Conv2d):
                both.append(module.shortcut)
            found.append((module.outer, both))
        elif isinstance(module, nn.Conv2d | nn.Linear):
            pending = [module]
        elif isinstance(module, LIF):
            found.append((module, pending))
    return found


def _rate(network: Network, layer: LIF, images: Tensor) -> float:
    rate = 0.0

    def stop(module: nn.Module, args: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        nonlocal rate
        rate = output[0].mean().item()
        raise _Reached

    handle = layer.register_forward_hook(stop)
    try:
        network(images)
    except _Reached:
        pass
    finally:
        handle.remove()
    return rate


def _on_grid(weight: Tensor) -> Tensor:
    return (weight / GRID).round() * GRID
