"""Networks of known truth that fool a naive evaluation: they look more robust than they are.

Each is built from a network that ships, the honest one, and classifies clean images about as
well. What is wrong with it is told in its sentence; what it is worth is known because the honest
network hides nothing. A sound evaluation breaks what can be broken and flags the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsnn.data.datasets import load_dataset
from robustsnn.models.checkpoint import load_network, read_checkpoint
from robustsnn.snn.network import Network, NetworkConfig, State
from robustsnn.snn.neuron import LIF, FixedDropout
from robustsnn.snn.surrogate import Triangle

HONEST = "fashion-mnist/vgg5-snn"
NORM = "Linf"
EPSILON = "16/255"
IMAGES = 64

NARROW_WIDTH = 1e-3
#: Share of the neuron-steps that the support of the own surrogate is left with.
SUPPORT = 0.02
#: A power of two, so that every prediction stays what it was, bit for bit.
SATURATION = 2.0**14
#: Current that one spike of a counted class stands for.
COUNTED = 0.5
#: So few that one draw of the input says little.
RATE_STEPS = 4


@dataclass(frozen=True)
class Trap:
    """A network of known truth.

    Attributes:
        name: Of the trap.
        network: The trap, in evaluation mode and frozen; made afresh for each trap.
        truth: The network without the trap. Attacks on it show what the trap is worth.
        robust_accuracy_at_most: Accuracy that a plain attack on the truth leaves of the trap, on
            `trap_images` at `EPSILON` and with some slack: a tie at the top is an error, and each
            batch of a network with a memory starts afresh. Not more is there to be found.
        expected_flags: Checks and findings, by slug, that must each speak against it.
        sentence: How it fools.
    """

    name: str
    network: nn.Module = field(repr=False)
    truth: nn.Module = field(repr=False)
    robust_accuracy_at_most: float
    expected_flags: tuple[str, ...]
    sentence: str


def trap_images(count: int = IMAGES) -> tuple[Tensor, Tensor]:
    """The first images `[n, 1, 28, 28]` in [0, 1] of the bundled sample, and their labels."""
    data = load_dataset("fashion-mnist", None, samples=count)
    return data.tensor(), data.targets()


def honest() -> Network:
    """A new copy of the network that the traps are built from."""
    return load_network(_checkpoint())


@cache
def _checkpoint() -> Any:
    return read_checkpoint(HONEST)


def narrow() -> Trap:
    """Own surrogate far too narrow for any membrane to lie in its support."""
    network = honest()
    for layer in network.spiking_layers().values():
        layer.surrogate = Triangle(width=NARROW_WIDTH)
    return Trap(
        "narrow",
        network,
        honest(),
        0.1,
        ("zero-gradient", "out-of-support"),
        f"Its own surrogate is a triangle of width {NARROW_WIDTH:g}: the gradient it was given to "
        "be attacked with is zero nearly everywhere.",
    )


class _SwappedNeuron(nn.Module):
    """Integrate-and-fire over `[time, batch, ...]`: a surrogate in training, bare in evaluation."""

    def __init__(self, threshold: float, leak: float, steps: int) -> None:
        super().__init__()
        self.threshold, self.leak, self.steps = threshold, leak, steps

    def forward(self, current: Tensor) -> Tensor:
        post = torch.zeros_like(current[0])
        fired = []
        for t in range(self.steps):
            u = self.leak * post + current[min(t, len(current) - 1)]
            over = u / self.threshold - 1
            spike = (over > 0).to(u.dtype)
            if self.training:
                soft = torch.sigmoid(4 * over)
                spike = spike + (soft - soft.detach())
            fired.append(spike)
            post = u - self.threshold * spike
        return torch.stack(fired)


class EvalSwap(nn.Module):
    """The honest network from plain modules, as a user of another library would bring it."""

    mean: Tensor
    std: Tensor

    def __init__(self, source: Network) -> None:
        super().__init__()
        self.classes, self.input_shape = source.classes, source.input_shape
        self.register_buffer("mean", source.mean.clone())
        self.register_buffer("std", source.std.clone())
        self.layers = nn.ModuleList(
            _SwappedNeuron(m.threshold.item(), m.leak.item(), source.time_steps)
            if isinstance(m, LIF)
            else copy.deepcopy(m)
            for m in (*source.features, *source.classifier)
            if not isinstance(m, FixedDropout)
        )

    def forward(self, images: Tensor) -> Tensor:
        x = ((images - self.mean) / self.std)[None]
        for layer in self.layers:
            if isinstance(layer, _SwappedNeuron):
                x = layer(x)
            else:
                x = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return x.sum(0)


def eval_swap() -> Trap:
    """Evaluation mode replaces the spike function by a step without derivative."""
    source = honest()
    return Trap(
        "eval-swap",
        EvalSwap(source).eval().requires_grad_(False),
        source,
        0.1,
        ("no-gradient", "zero-gradient"),
        "It has a surrogate in training mode only: in evaluation mode spikes are bare comparisons "
        "and every gradient is cut.",
    )


class LeakyState(Network):
    """Every forward starts from the membranes that the one before left in each row."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.left: State = {}

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        rows = torch.arange(len(images))
        before = {n: m[rows % len(m)].to(images) for n, m in self.left.items()}
        logits, final = self.run(images, state=before, keys=keys)
        self.left = {n: m.detach() for n, m in final.items()}
        return logits


def leaky_state() -> Trap:
    """Membranes are never reset between batches."""
    source = honest()
    return Trap(
        "leaky-state",
        _copied(source, LeakyState(source.config)),
        source,
        0.1,
        ("repeatable", "alone-as-in-batch", "state-leak"),
        "Its membranes are not reset between batches, so what it says of an image depends on what "
        "came before, and an attack is aimed at a network that is gone by the next pass.",
    )


def _rate_coded(steps: int) -> Network:
    """The honest network with signed rate coding: the same current on average, but for borders."""
    source = honest()
    grey = {"encoding": "poisson", "mean": (0.5,), "std": (0.5,), "time_steps": steps}
    network: Network = _copied(source, Network(source.config.model_copy(update=grey)))
    first = network.features[0]
    assert isinstance(first, nn.Conv2d)
    with torch.no_grad():
        shift = (0.5 - source.mean) / source.std
        first.bias = nn.Parameter(shift.flatten() * first.weight.sum((1, 2, 3)))
        first.weight.mul_(0.5 / source.std)
    return network.requires_grad_(False)


def poisson() -> Trap:
    """Declared rate coding: an attack that does not average over draws follows noise."""
    network = _rate_coded(RATE_STEPS)
    return Trap(
        "poisson",
        network,
        network,
        0.2,
        ("stochastic",),
        "It draws its input spikes afresh at every pass: a gradient of one draw is mostly noise, "
        "and an attack has to average.",
    )


class HiddenDraws(nn.Module):
    """A rate-coded network that does not declare its draws: fresh ones at every pass."""

    def __init__(self, source: Network) -> None:
        super().__init__()
        self.source = source
        self.classes, self.input_shape = source.classes, source.input_shape
        self.passes = 0

    def spiking_layers(self) -> dict[str, LIF]:
        return self.source.spiking_layers()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.source(images, _draws(self, len(images)))
        return logits


def hidden_draws() -> Trap:
    """Rate coding that the network does not own up to."""
    network = _rate_coded(RATE_STEPS)
    return Trap(
        "hidden-draws",
        HiddenDraws(network).eval(),
        network,
        0.2,
        ("repeatable", "randomised"),
        "It draws its input spikes at every pass and does not say so: what an attack found may "
        "fail at the next pass.",
    )


class WrongEncoder(Network):
    """Logits from the image itself, gradients from random spikes drawn from it."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.passes = 0
        grey = {"encoding": "poisson", "mean": (0.5,), "std": (0.5,), "time_steps": 1}
        self.rate = Network(config.model_copy(update=grey))

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        logits = super().forward(images)
        if not (torch.is_grad_enabled() and images.requires_grad):
            return logits
        other: Tensor = self.rate(images, _draws(self, len(images)))
        return logits.detach() + (other - other.detach())


def wrong_encoder() -> Trap:
    """The gradient takes another way into the network than the image does."""
    source = honest()
    network = WrongEncoder(source.config)
    _copied(source, network.rate)
    return Trap(
        "wrong-encoder",
        _copied(source, network),
        source,
        0.1,
        ("gradient-draws",),
        "Its logits come from the image, its gradients from random spikes drawn from it: they "
        "belong to another function.",
    )


def saturated() -> Trap:
    """Logits so large that the cross-entropy of a right answer is exactly zero in float32."""
    network = honest()
    with torch.no_grad():
        last = network.classifier[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(SATURATION)
    return Trap(
        "saturated",
        network,
        honest(),
        0.1,
        ("zero-gradient", "saturated"),
        f"Its logits are {SATURATION:g} times too large: the cross-entropy of whatever is "
        "classified right is zero in float32, and so is its gradient.",
    )


def tied() -> Trap:
    """Logits are spike counts of few time steps, so classes tie."""
    network = honest()
    counter = LIF(threshold=COUNTED, surrogate=network.config.surrogate.make())
    network.classifier.append(counter)
    _rename(network)
    return Trap(
        "tied",
        network.eval().requires_grad_(False),
        honest(),
        0.1,
        ("ties", "zero-gradient"),
        "Its logits are spike counts of a few time steps: classes tie at the top, and a counter "
        "that fires at every step passes no gradient.",
    )


def out_of_support() -> Trap:
    """Membranes kept out of the support of each layer's own surrogate."""
    network = honest()
    images, _ = trap_images()
    for name, distance in membrane_distances(network, images).items():
        width = float(torch.quantile(distance, SUPPORT))
        network.spiking_layers()[name].surrogate = Triangle(width=width)
    return Trap(
        "out-of-support",
        network,
        honest(),
        0.1,
        ("out-of-support",),
        f"All but {SUPPORT:.0%} of its membranes lie outside the support of its own surrogate: "
        "the gradient is not zero, but sees next to nothing.",
    )


@torch.no_grad()
def membrane_distances(network: Network, images: Tensor, most: int = 10**6) -> dict[str, Tensor]:
    """`|U/V - 1|` of some neurons of each spiking layer at each step, flat, by layer name."""
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            assert isinstance(module, LIF)
            current, steps = args[0], args[1]
            post = torch.zeros_like(current[0])
            seen = []
            for t in range(steps):
                u = module.leak * post + current[min(t, len(current) - 1)]
                seen.append((u / module.threshold - 1).abs().flatten())
                post = u - module.threshold * (u > module.threshold).to(u.dtype)
            flat = torch.cat(seen)
            found[name] = flat[:: -(-len(flat) // most)]

        return hook

    handles = [
        layer.register_forward_pre_hook(watch(name))
        for name, layer in network.spiking_layers().items()
    ]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def batch_statistics() -> Trap:
    """Normalisation over the batch at hand."""
    network = honest()
    images, _ = trap_images()
    second = [i for i, m in enumerate(network.features) if isinstance(m, nn.Conv2d)][1]
    seen: list[Tensor] = []
    handle = network.features[second].register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        network(images)
    handle.remove()
    # Affine so that a large mixed batch goes through almost unchanged.
    layer = nn.BatchNorm2d(seen[0].shape[1], track_running_stats=False)
    layer.weight.data = seen[0].std((0, 2, 3), unbiased=False)
    layer.bias.data = seen[0].mean((0, 2, 3))
    network.features.insert(second + 1, layer)
    _rename(network)
    return Trap(
        "batch-statistics",
        network.eval().requires_grad_(False),
        honest(),
        0.125,
        ("alone-as-in-batch", "batch-statistics"),
        "It normalises by the statistics of the batch at hand: what it says of an image, and the "
        "gradient of it, depend on the other images.",
    )


def constant() -> Trap:
    """Always the same class: as robust as it is right, and no attack can tell."""
    network = Constant().eval().requires_grad_(False)
    return Trap(
        "constant",
        network,
        network,
        0.125,
        ("no-gradient", "zero-gradient"),
        "It answers the same whatever the image: no attack changes that, and no gradient exists.",
    )


class Constant(nn.Module):
    """The same logits for every image."""

    def __init__(self, classes: int = 10, chosen: int = 3) -> None:
        super().__init__()
        self.classes = classes
        self.logits = nn.Parameter(5.0 * F.one_hot(torch.tensor(chosen), classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.to(images.dtype).expand(len(images), -1)


def _copied(source: Network, target: Network) -> Any:
    """The target with the source's weights, frozen, in evaluation mode."""
    target.load_state_dict(source.state_dict(), strict=False)
    return target.eval().requires_grad_(False)


def _rename(network: Network) -> None:
    """Tell the network of layers that were added to it: state is kept by name."""
    network._names = {module: name for name, module in network.named_modules()}


def _draws(module: Any, count: int) -> Tensor:
    """Keys int64 `[count]` that no pass of this module has used before."""
    module.passes += 1
    first: int = 1_000_003 * module.passes
    return torch.arange(first, first + count)


TRAPS: dict[str, Callable[[], Trap]] = {
    "narrow": narrow,
    "eval-swap": eval_swap,
    "leaky-state": leaky_state,
    "poisson": poisson,
    "hidden-draws": hidden_draws,
    "wrong-encoder": wrong_encoder,
    "saturated": saturated,
    "tied": tied,
    "out-of-support": out_of_support,
    "batch-statistics": batch_statistics,
    "constant": constant,
}
