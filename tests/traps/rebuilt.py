"""More networks of known truth: blind scores, odd neurons, and inputs that are changed in front.

As in `networks`, each is built from the honest network, so that what it is worth is known: the
logits, the read-out, the neurons or the input are wrapped, and the truth is the same network
unwrapped, or with neurons that are differentiated exactly where they flip.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsnn.snn.homeostasis import HomeostaticLIF
from robustsnn.snn.network import Network
from robustsnn.snn.neuron import LIF, FixedDropout
from robustsnn.snn.surrogate import Triangle
from tests.traps.networks import Trap, honest, trap_images

#: By how much the winner of a hard vote depends on its class.
OFFSET = 1e-6
#: The size of the logits that one whole number stands for.
COARSE = 4.0
#: The confidence at which an early exit ends.
CONFIDENT = 0.9
#: By how much a threshold follows the membrane, and how far it begins from where it soon is: in
#: units of the honest threshold, which it has adapted to at the first step of a usual image.
FOLLOWS, BEGINS = 0.02, 2.0
#: The sharpness of a surrogate that hides a parametric neuron, and of one that does not.
SHARP, WIDE = 60.0, 4.0
LONG = 64

Make = Callable[[LIF, int, tuple[int, ...]], nn.Module]
Read = Callable[[Tensor], Tensor]


class Rebuilt(nn.Module):
    """The honest network from plain modules, with other neurons, read-out or input."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        make: Make | None = None,
        *,
        read: Read | None = None,
        front: Read | None = None,
        named: bool = False,
        steps: int | None = None,
        counter: float | None = None,
    ) -> None:
        super().__init__()
        source = honest()
        self.classes, self.input_shape = source.classes, source.input_shape
        self.register_buffer("mean", source.mean.clone())
        self.register_buffer("std", source.std.clone())
        self.steps = source.time_steps if steps is None else steps
        self.read, self.front = read, front
        shapes = shapes_of(source)
        self.layers = nn.ModuleList()
        for module in (*source.features, *source.classifier):
            if isinstance(module, FixedDropout):
                continue
            made: nn.Module = copy.deepcopy(module)
            if isinstance(module, LIF) and make is not None:
                made = make(module, self.steps, shapes[id(module)])
            self.layers.append(made)
        if counter is not None:
            self.layers.append(LIF(threshold=counter, surrogate=source.config.surrogate.make()))
        if named:
            self.spiking_layers = lambda: {
                f"layers.{i}": one for i, one in enumerate(self.layers) if neuron(one)
            }
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        x = images if self.front is None else self.front(images)
        x = ((x - self.mean) / self.std)[None]
        for layer in self.layers:
            if neuron(layer):
                out = layer(x, self.steps)
                x = out[0] if isinstance(out, tuple) else out
            else:
                x = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return x.sum(0) if self.read is None else self.read(x)


def neuron(module: nn.Module) -> bool:
    return isinstance(module, LIF | HomeostaticLIF | _Stepwise)


@torch.no_grad()
def shapes_of(source: Network) -> dict[int, tuple[int, ...]]:
    """The shape of the neurons of an image in each spiking layer, by the id of the layer."""
    return {
        id(layer): tuple(seen.shape[2:])
        for layer, seen in zip(source.spiking_layers().values(), currents_of(source), strict=True)
    }


@torch.no_grad()
def currents_of(source: Network) -> list[Tensor]:
    """The current of each spiking layer on the trap images, `[time or 1, image, ...]`."""
    seen: list[Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        for layer in source.spiking_layers().values()
    ]
    source(trap_images()[0])
    for handle in handles:
        handle.remove()
    return seen


def straight(hard: Tensor, soft: Tensor) -> Tensor:
    """The first value, with the gradient of the second."""
    return soft + (hard - soft).detach()


# --- scores that say too little -----------------------------------------------------------------


class HardVote(nn.Module):
    """The winner alone, with a tiny offset that depends on its class; gradient straight through."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.source, self.classes = source, 10

    def forward(self, images: Tensor) -> Tensor:
        z = self.source(images)
        offset = OFFSET * torch.arange(z.shape[1]).to(z)
        return straight(F.one_hot(z.argmax(1), z.shape[1]).to(z) + offset, z)


class NamedVote(HardVote):
    """The same, and it names its spiking layers."""

    def spiking_layers(self) -> dict[str, Any]:
        layers: dict[str, Any] = self.source.spiking_layers()  # type: ignore[operator]
        return layers


def hard_vote() -> Trap:
    """A vote behind the honest network."""
    return _blind(
        "hard-vote",
        NamedVote(honest()),
        "It returns the winner of a vote: no search by score sees how near another class is, and a "
        "loss that a gradient should raise stays as it is.",
    )


def hard_vote_alone() -> Trap:
    """A vote over plain modules that name nothing."""
    return _blind(
        "hard-vote-alone",
        HardVote(Rebuilt()),
        "It returns the winner of a vote, and nobody is told where its neurons are.",
    )


def integer_logits() -> Trap:
    """Logits rounded so far that most small changes are lost."""

    def rounded(x: Tensor) -> Tensor:
        z = x.sum(0)
        return straight((z / COARSE).round(), z / COARSE)

    return _blind(
        "integer-logits",
        Rebuilt(read=rounded, named=True),
        "Its logits are rounded to a few whole numbers: small gains are lost to every search.",
    )


def winner_only() -> Trap:
    """Only the largest logit is told."""

    def winner(x: Tensor) -> Tensor:
        z = x.sum(0)
        return z * F.one_hot(z.argmax(1), z.shape[1]).to(z)

    return _blind(
        "winner-only",
        Rebuilt(read=winner, named=True),
        "It keeps the logit of the winner and says nothing of the others: how near they are cannot "
        "be seen.",
    )


def first_spike() -> Trap:
    """The class is the one whose counter fires first."""

    def first(x: Tensor) -> Tensor:
        steps = torch.arange(len(x), 0, -1).to(x).reshape(-1, 1, 1)
        return (x * steps).amax(0) + 1e-3 * x.sum(0)

    return _blind(
        "first-spike",
        Rebuilt(read=first, named=True, counter=1.0),
        "Its class is the one that spikes first: the time of a spike takes a few values only.",
        at_most=0.35,
    )


def early_exit() -> Trap:
    """It stops at the first step at which it is confident."""

    def exits(x: Tensor) -> Tensor:
        sums = x.cumsum(0)
        sure = sums.softmax(2).amax(2) >= CONFIDENT
        sure[-1] = True
        at = sure.int().argmax(0)
        return sums[at, torch.arange(x.shape[1])]

    return Trap(
        "early-exit",
        Rebuilt(read=exits, named=True),
        honest(),
        0.3,
        ("not-converged",),
        "It answers at the first step at which it is confident: the gradient of one exit says "
        "nothing of the others.",
    )


# --- neurons that estimators do not know --------------------------------------------------------


class _Stepwise(nn.Module):
    """Neurons over `[time, batch, ...]` whose spikes have the slope of a sigmoid."""

    def __init__(self, layer: LIF, slope: float = WIDE) -> None:
        super().__init__()
        self.threshold, self.leak, self.slope = layer.threshold.item(), layer.leak.item(), slope

    def spike(self, over: Tensor) -> Tensor:
        return straight((over > 0).to(over), torch.sigmoid(self.slope * over))

    def forward(self, current: Tensor, steps: int) -> Tensor:
        post, fired = torch.zeros_like(current[0]), []
        self.start(post)
        for t in range(steps):
            u = self.leak * post + current[min(t, len(current) - 1)]
            spike = self.fire(u)
            fired.append(spike)
            post = u - self.threshold * spike.detach()
        return torch.stack(fired)

    def start(self, like: Tensor) -> None:
        """Before the first step."""

    def fire(self, membrane: Tensor) -> Tensor:
        return self.spike(membrane / self.threshold - 1)


class Ternary(_Stepwise):
    """A spike of -1 far below zero."""

    def fire(self, membrane: Tensor) -> Tensor:
        z = membrane / self.threshold
        return self.spike(z - 1) - self.spike(-z / 12 - 1)


class Refractory(_Stepwise):
    """After a spike a neuron is silent for a step unless it is driven twice as hard."""

    def start(self, like: Tensor) -> None:
        self.before = torch.zeros_like(like)

    def fire(self, membrane: Tensor) -> Tensor:
        spike = self.spike(membrane / self.threshold - 1 - 0.3 * self.before)
        self.before = spike.detach()
        return spike


class Parametric(_Stepwise):
    """Parametric spiking neurons: a T x T matrix makes all membranes at once, without reset."""

    def __init__(self, layer: LIF, steps: int, slope: float) -> None:
        super().__init__(layer, slope)
        lags = torch.arange(steps)[:, None] - torch.arange(steps)
        # The charge of k steps, less the spikes that would have been taken off in k - 1 of them.
        matrix = (0.5 ** lags.clamp_min(0)) * (lags >= 0)
        self.weight = nn.Parameter(matrix.float())

    def forward(self, current: Tensor, steps: int) -> Tensor:
        current = current.expand(steps, *current.shape[1:])
        membranes = torch.einsum("ts,s...->t...", self.weight, current)
        return self.spike(membranes / self.threshold - 1)


def ternary() -> Trap:
    """Spikes of three values."""
    return _neurons("ternary", lambda layer, steps, shape: Ternary(layer), 0.3)


def refractory() -> Trap:
    """Neurons that rest after a spike."""
    return _neurons("refractory", lambda layer, steps, shape: Refractory(layer), 0.3)


def parametric() -> Trap:
    """A matrix over time, with a surrogate far too sharp."""
    return Trap(
        "parametric",
        Rebuilt(lambda layer, steps, shape: Parametric(layer, steps, SHARP)),
        Rebuilt(lambda layer, steps, shape: Parametric(layer, steps, WIDE)),
        0.3,
        ("surrogate-gap", "not-converged", "black-box-finds-more", "gradient-fidelity"),
        "A matrix over time stands for its dynamics, which no estimator knows, and its surrogate "
        "is too sharp to be followed.",
    )


def _neurons(name: str, make: Make, at_most: float) -> Trap:
    return Trap(
        name,
        Rebuilt(make),
        Rebuilt(make),
        at_most,
        ("black-box-finds-more", "not-converged"),
        "Its neurons are of a kind that no estimator knows: one gradient alone is followed.",
    )


def adaptive(place: Literal["initial", "live"], named: bool) -> Rebuilt:
    """The honest network with thresholds that follow how unusual a membrane is."""
    source = honest()
    membranes = [
        _usual(layer, current, source.time_steps)
        for layer, current in zip(
            source.spiking_layers().values(), currents_of(source), strict=True
        )
    ]
    usual = iter(membranes)

    def make(layer: LIF, steps: int, shape: tuple[int, ...]) -> nn.Module:
        threshold = layer.threshold.item()
        surrogate = Triangle(0.8 / BEGINS)
        made = HomeostaticLIF(BEGINS * threshold, layer.leak.item(), steps, shape, surrogate, place)
        made.signature.copy_(next(usual))
        made.signature[0] += (BEGINS - 1) * threshold / FOLLOWS
        made.follows.data.fill_(FOLLOWS)
        return made

    return Rebuilt(make, named=named)


@torch.no_grad()
def _usual(layer: LIF, current: Tensor, steps: int) -> Tensor:
    """The mean membrane of each neuron and step on clean images, with a hard reset."""
    hard = LIF(layer.threshold.item(), layer.leak.item(), layer.surrogate, reset="hard")
    return torch.stack([u.mean(0) for u in hard.trace(current, steps).membranes])


def adaptive_threshold() -> Trap:
    """A surrogate at the threshold that a neuron begins with."""
    return _adaptive("adaptive-threshold", named=True)


def adaptive_alone() -> Trap:
    """The same, and estimators do not reach the neurons."""
    return _adaptive("adaptive-alone", named=False)


def _adaptive(name: str, named: bool) -> Trap:
    return Trap(
        name,
        adaptive("initial", named),
        adaptive("live", named=True),
        0.3,
        ("surrogate-misplaced",),
        "Its thresholds follow the membrane, and its surrogate stays where they began: the "
        "gradient is that of another network.",
    )


def long() -> Trap:
    """So many steps that gradients through time are lost or explode."""
    return Trap(
        "long",
        Rebuilt(named=True, steps=LONG),
        honest(),
        0.3,
        ("not-converged",),
        f"It runs for {LONG} steps, through which a gradient has to come back.",
    )


# --- inputs that are changed in front -----------------------------------------------------------


def quantised() -> Trap:
    """Pixels rounded to a few levels, with no derivative."""

    def front(images: Tensor) -> Tensor:
        return (images * 8).round() / 8

    return _front("quantised", front, ("no-gradient", "zero-gradient"))


def median_filtered() -> Trap:
    """The median of each window of 3 x 3 pixels."""

    def front(images: Tensor) -> Tensor:
        windows = F.unfold(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3)
        return windows.median(1).values.reshape(images.shape)

    trap = _front("median-filtered", front, ("not-converged", "black-box-finds-more"), 0.4)
    # What the filter keeps of an image it keeps of an attack, so the filter is part of the truth.
    return dataclasses.replace(trap, truth=Rebuilt(front=front, named=True))


def hash_jittered() -> Trap:
    """Noise that every image fixes by itself, drawn anew at the smallest change."""

    def front(images: Tensor) -> Tensor:
        wide = images.detach().double().flatten(1)
        seed = (1e4 * wide @ torch.linspace(1, 2, wide.shape[1]).to(wide)).sin() * 1e4
        place = torch.arange(wide.shape[1]).to(wide)
        noise = ((seed[:, None] * (place + 1)).sin() * 1e4).frac()
        return images + 8 / 255 * noise.to(images).reshape(images.shape)

    return _front("hash-jittered", front, ("unstable-predictions", "gradient-fidelity"))


def _front(name: str, front: Read, flags: tuple[str, ...], at_most: float = 0.3) -> Trap:
    return Trap(
        name,
        Rebuilt(front=front, named=True),
        honest(),
        at_most,
        flags,
        "It changes the image before it looks at it, so that steps or queries are lost.",
    )


def _blind(name: str, network: nn.Module, sentence: str, at_most: float = 0.25) -> Trap:
    return Trap(
        name,
        network.eval().requires_grad_(False),
        honest(),
        at_most,
        ("blind-score",),
        sentence,
    )


MORE: dict[str, Callable[[], Trap]] = {
    "hard-vote": hard_vote,
    "hard-vote-alone": hard_vote_alone,
    "integer-logits": integer_logits,
    "winner-only": winner_only,
    "first-spike": first_spike,
    "early-exit": early_exit,
    "ternary": ternary,
    "refractory": refractory,
    "parametric": parametric,
    "adaptive-threshold": adaptive_threshold,
    "adaptive-alone": adaptive_alone,
    "long": long,
    "quantised": quantised,
    "median-filtered": median_filtered,
    "hash-jittered": hash_jittered,
}
