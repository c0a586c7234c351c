"""Networks to time: random weights, scaled to be active, on a grid where sums are exact.

Arithmetic on dense layers takes the same time whatever the weights. What matters is that every
library can be shown to compute the same network. In float32 two correct libraries differ: they
sum in other orders, a membrane next to the threshold then falls on the other side, and the spike
spreads. Here weights are multiples of 2^-11, pixels of 2^-7 after normalisation and pooled spikes
of 1/4, so that every current is exact in float32 in any order of summation, and libraries agree
spike for spike.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from robustsnn.snn.architectures.description import Residual
from robustsnn.snn.network import Network, NetworkConfig, SurrogateConfig
from robustsnn.snn.neuron import LIF

#: Kept away from 1 so that the leak's work is really done; exact in binary, as is 1 / (1 - leak).
LEAK = 0.875
GRID = 2.0**-11
#: Off the grid of the currents: SpikingJelly fires at `U >= V`, the others at `U > V`.
THRESHOLD = 1 + 2.0**-20
#: Spikes a neuron and step that every layer is scaled to.
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

    Thresholds are `THRESHOLD`, leaks `LEAK`, the surrogate is a triangle of unit area: what every
    library here can express. There is no dropout.

    Args:
        architecture: Name of an architecture.
        widths: The published ones if absent.
        classifier: Hidden linear layers.
        image: (channel, height, width).
        time_steps: Time steps.
        seed: Of the weights.
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
    # Rates hardly depend on the image or on the number of steps: a short run finds the scale.
    network.time_steps = min(4, time_steps)
    _activate(network, random_images(1, image, seed))
    network.time_steps = time_steps
    return network


@cache
def benchmark_network(architecture: str) -> Network:
    """The network that cells share; copy it before changing anything but `time_steps`."""
    return random_network(architecture)


def random_images(count: int, image: tuple[int, int, int] = IMAGE, seed: int = 0) -> Tensor:
    """Noise `[count, channel, height, width]`, multiples of 1/256 in [0, 1)."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(0, 256, (count, *image), generator=generator) / 256


def random_labels(count: int, seed: int = 0) -> Tensor:
    """Classes, int64 `[count]`."""
    return torch.randint(0, CLASSES, (count,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def firing_rates(network: Network, images: Tensor) -> dict[str, float]:
    """Mean spikes a neuron and step, by layer."""
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
    """The layer of interest has run; the rest of the network need not."""


@torch.no_grad()
def _activate(network: Network, images: Tensor) -> None:
    """Scale the weights before each LIF layer, in order, to about `RATE`; then put all on grid."""
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
