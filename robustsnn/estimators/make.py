"""Gradient estimators: how an attacker differentiates through spikes.

An estimator is independent of the attack that uses it, is applied only inside the victim's own
calls, and its name is in every record. Those that follow spikes work on every network whose
method `spiking_layers()` names layers that can trace themselves, see `robustsnn.snn.backward_rule`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from robustsnn.common.epsilon import parse_epsilon
from robustsnn.errors import InputError, unknown
from robustsnn.rules import (
    Adaptive,
    MeanOverTime,
    PotentialDependent,
    RateOfMeanCurrent,
    ThroughRate,
    ThroughTime,
)
from robustsnn.snn.backward_rule import Rule
from robustsnn.snn.neuron import LIFOutput
from robustsnn.snn.surrogate import Surrogate, describe, make_surrogate

Average = Literal["gradients", "logits"]


class Estimator(Protocol):
    """A way to differentiate a network."""

    @property
    def name(self) -> str:
        """What records call it; `make_estimator` of it gives the same estimator."""

    @property
    def faithful(self) -> bool:
        """Whether logits are the network's own in its context; else the victim asks twice."""

    def applied(
        self, network: nn.Module, rows: Tensor | None = None
    ) -> AbstractContextManager[None]:
        """A context in which the network differentiates that way; nothing outlives it.

        Args:
            network: What is differentiated.
            rows: int64 `[batch]`, which image each one of the next forward is.
        """

    def forget(self, rows: Tensor) -> None:
        """Start anew with those images, where anything about them is remembered."""


class _Stateless:
    """What most estimators share."""

    @property
    def faithful(self) -> bool:
        """Yes."""
        return True

    def forget(self, rows: Tensor) -> None:
        """Nothing is remembered."""


@dataclass(frozen=True)
class Backprop(_Stateless):
    """Plain backpropagation: exact for a network without spikes."""

    @property
    def name(self) -> str:
        """`backprop`."""
        return "backprop"

    @contextmanager
    def applied(self, network: nn.Module, rows: Tensor | None = None) -> Iterator[None]:
        """The network as it is."""
        yield


@dataclass(frozen=True)
class Bptt(_Stateless):
    """Backpropagation through time, the spike's derivative replaced by a surrogate.

    An attack on a spiking network can look weak for no other reason than its surrogate.

    Args:
        surrogate: None keeps each layer's own, the one that the network was trained with.
        reset: Whether the reset's spike is differentiated too (`attached`) or held fixed
            (`detached`); None as the model does.
        cut: Time steps after which the membrane's gradient is dropped; None for never.

    Source: Neftci et al., IEEE Signal Processing Magazine 2019.
    """

    surrogate: Surrogate | None = None
    reset: Literal["attached", "detached"] | None = None
    cut: int | None = None

    def __post_init__(self) -> None:
        if self.reset not in (None, "attached", "detached"):
            raise InputError(f"bptt: reset must be attached or detached, not {self.reset!r}.")
        if self.cut is not None and self.cut < 1:
            raise InputError("bptt: cut must be at least 1 time step.")

    @property
    def name(self) -> str:
        """`bptt`, or such as `bptt:arctan(width=0.5,amplitude=1):reset=attached`."""
        options = [f"{key}={value}" for key, value in (("reset", self.reset), ("cut", self.cut))]
        return ":".join(
            [
                "bptt",
                *([] if self.surrogate is None else [describe(self.surrogate)]),
                *([given] if (given := ",".join(o for o in options if "None" not in o)) else []),
            ]
        )

    @contextmanager
    def applied(self, network: nn.Module, rows: Tensor | None = None) -> Iterator[None]:
        """Every spiking layer differentiated so."""
        layers = spiking_layers(network)
        if self.cut is not None:
            attached = None if self.reset is None else self.reset == "attached"
            with _ruled(network, lambda _: ThroughTime(self.surrogate, attached, self.cut)):
                yield
            return
        if self.reset is not None:
            # Layers of other libraries may not let their reset be chosen: a rule can do it.
            if not all(hasattr(layer, "detach_reset") for layer in layers.values()):
                with _ruled(
                    network, lambda _: ThroughTime(self.surrogate, self.reset == "attached")
                ):
                    yield
                return
            changed = {"detach_reset": self.reset == "detached"}
        else:
            changed = {}
        if self.surrogate is not None:
            changed["surrogate"] = self.surrogate  # type: ignore[assignment]
        own = [{key: getattr(layer, key) for key in changed} for layer in layers.values()]
        try:
            for layer in layers.values():
                for key, value in changed.items():
                    setattr(layer, key, value)
            yield
        finally:
            for layer, before in zip(layers.values(), own, strict=True):
                for key, value in before.items():
                    setattr(layer, key, value)


@dataclass(frozen=True)
class Ruled(_Stateless):
    """One of the stateless rules of `robustsnn.rules` at every spiking layer."""

    name: str
    rule: Rule

    @contextmanager
    def applied(self, network: nn.Module, rows: Tensor | None = None) -> Iterator[None]:
        """Every spiking layer differentiated by the rule."""
        with _ruled(network, lambda _: self.rule):
            yield


@dataclass(frozen=True)
class Assg:
    """Adaptive sharpness, remembered for each image over the iterations of an attack."""

    vanishing: float = 0.425
    rule: Adaptive = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.vanishing < 0.5:
            raise InputError("assg: vanishing must lie between 0 and 0.5.")
        object.__setattr__(self, "rule", Adaptive(self.vanishing))

    @property
    def name(self) -> str:
        """Such as `assg:vanishing=0.425`."""
        return f"assg:vanishing={self.vanishing:g}"

    @property
    def faithful(self) -> bool:
        """Yes."""
        return True

    @contextmanager
    def applied(self, network: nn.Module, rows: Tensor | None = None) -> Iterator[None]:
        """Every spiking layer differentiated so; without `rows` the batch's own positions."""

        def rule_of(name: str) -> Rule:
            def rule(grad: Tensor, trace: Any) -> Tensor:
                which = torch.arange(grad.shape[1]) if rows is None else rows
                return self.rule(grad, trace, name, which)

            return rule

        with _ruled(network, rule_of):
            yield

    def forget(self, rows: Tensor) -> None:
        """Start anew with those images."""
        self.rule.forget(rows)


@dataclass(frozen=True)
class Twin(_Stateless):
    """CBA: the gradient of the network's ANN twin, its neurons quantised ReLUs of one step.

    `floor(L * clamp(I/V, 0, 1) + 1/2) / L` with L levels, the floor straight through; what a
    network gives for its own image is asked for separately.

    Source: Sharmin et al., ECCV 2020; the activation: Bu et al., QCFS, ICLR 2022.
    """

    levels: int = 8

    @property
    def name(self) -> str:
        """`twin`."""
        return "twin"

    @property
    def faithful(self) -> bool:
        """No: the twin's logits are others."""
        return False

    @contextmanager
    def applied(self, network: nn.Module, rows: Tensor | None = None) -> Iterator[None]:
        """Every spiking layer a quantised ReLU of its mean current, over one time step."""
        layers = spiking_layers(network)
        try:
            for layer in layers.values():
                layer.forward = partial(_activation, layer, self.levels)
            yield
        finally:
            for layer in layers.values():
                del layer.forward


@dataclass(frozen=True)
class Spsa:
    """Simultaneous perturbation: differences along random signs, no derivative of anything.

    `1/N sum (L(x + sigma v) - L(x - sigma v)) / (2 sigma) v` with v in {-1, 1}. Spikes make the
    loss piecewise constant: a sigma below a grey level sees zeros.

    Args:
        pairs: N; costs 2 N forward passes.
        sigma: As written, pixel units.

    Source: Spall 1992; Uesato et al., ICML 2018.
    """

    pairs: int = 64
    sigma: str = "2/255"

    def __post_init__(self) -> None:
        if self.pairs < 1 or self.length <= 0:
            raise InputError("spsa: pairs must be at least 1 and sigma above 0.")

    @property
    def length(self) -> float:
        """Sigma as a number."""
        return parse_epsilon(self.sigma, "sigma")

    @property
    def name(self) -> str:
        """Such as `spsa:pairs=64,sigma=2/255`."""
        return f"spsa:pairs={self.pairs},sigma={self.sigma}"

    @property
    def faithful(self) -> bool:
        """Yes: nothing is changed."""
        return True

    @contextmanager
    def applied(self, network: nn.Module, rows: Tensor | None = None) -> Iterator[None]:
        """The network as it is; the victim takes the differences."""
        yield

    def forget(self, rows: Tensor) -> None:
        """Nothing is remembered."""


@dataclass(frozen=True)
class Eot:
    """Expectation over transformation: an average over draws of a stochastic network.

    Args:
        inner: How each draw is differentiated.
        draws: Passes of each image.
        average: `gradients` of each draw's loss, or the gradient of the loss of the mean
            `logits`, which is what a vote is decided by.

    Source: Athalye et al., ICML 2018.
    """

    inner: Estimator
    draws: int
    average: Average = "gradients"

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise InputError("draws must be at least 1.")
        if self.average not in ("gradients", "logits"):
            raise InputError(f"average must be gradients or logits, not {self.average!r}.")

    @property
    def name(self) -> str:
        """The inner one's, with `draws` and `average`."""
        head, colon, rest = self.inner.name.rpartition(":")
        own = f"draws={self.draws},average={self.average}"
        # Options stand in one list, after a surrogate if there is one.
        if colon and "=" in rest and "(" not in rest:
            return f"{head}:{rest},{own}"
        return f"{self.inner.name}:{own}"

    @property
    def faithful(self) -> bool:
        """As the inner one."""
        return self.inner.faithful

    def applied(
        self, network: nn.Module, rows: Tensor | None = None
    ) -> AbstractContextManager[None]:
        """As the inner one."""
        return self.inner.applied(network, rows)

    def forget(self, rows: Tensor) -> None:
        """As the inner one."""
        self.inner.forget(rows)


def make_estimator(text: str, network: nn.Module) -> Estimator:
    """The estimator that a user or a suite wrote, for a network.

    Args:
        text: `KIND[:SURROGATE][:key=value,...]`: `bptt` (the network's own surrogates; on a
            network without spikes that is `backprop`), `bptt:arctan`, `bptt:triangle:width=0.5`,
            `bptt:arctan(width=0.5,amplitude=1):reset=attached,cut=1`, `bptr`, `rga`,
            `hart:width=0.5`, `pdsg`, `assg:vanishing=0.425`, `twin`, `spsa:pairs=64,sigma=2/255`,
            `backprop`; with `draws=20,average=logits` averaged over draws.
        network: What will be attacked.

    Raises:
        InputError: No such estimator or surrogate, a malformed value, or one that the network
            cannot use.
    """
    kind, _, rest = (part.strip() for part in text.strip().partition(":"))
    if kind not in ESTIMATORS:
        raise unknown("gradient estimator", kind, ESTIMATORS)
    spiking = bool(spiking_layers(network))
    surrogate, options = _parsed(rest, text)
    draws, average = options.pop("draws", None), options.pop("average", None)
    if surrogate is not None and kind != "bptt":
        raise InputError(f"gradient estimator {text!r}: {kind} has no surrogate, drop it.")
    known = {*_SETTINGS[kind], *(SURROGATE_SETTINGS if surrogate is not None else ())}
    for key in options:
        if key in known:
            continue
        if not known:
            raise InputError(f"gradient estimator {text!r}: {kind} has no settings, drop {key!r}.")
        raise unknown(f"setting of {kind}", key, sorted(known))
    if kind == "backprop" and spiking:
        raise InputError("backprop cannot differentiate spikes: use bptt for a spiking network.")
    if kind == "bptt" and surrogate is None and not options and not spiking:
        inner: Estimator = Backprop()
    elif kind not in ("backprop", "spsa") and not spiking:
        raise InputError(
            f"gradient estimator {text!r} needs spiking layers and this network has none: use bptt."
        )
    else:
        inner = ESTIMATORS[kind](surrogate, options, text)
    if draws is None:
        if average is not None:
            raise InputError(f"gradient estimator {text!r}: average needs draws too.")
        return inner
    if kind == "spsa":
        raise InputError(
            f"gradient estimator {text!r}: spsa draws anew for every pair anyway, drop draws."
        )
    return Eot(inner, _number(int, "draws", draws, text), average or "gradients")  # type: ignore[arg-type]


def spiking_layers(network: nn.Module) -> dict[str, Any]:
    """The layers that an estimator can reach; none in a module that does not name them."""
    layers = getattr(network, "spiking_layers", None)
    return dict(layers()) if callable(layers) else {}


SURROGATE_SETTINGS = ("width", "amplitude")
_SETTINGS: dict[str, tuple[str, ...]] = {
    "backprop": (),
    "bptt": ("reset", "cut"),
    "bptr": ("leak",),
    "rga": ("gamma", "beta"),
    "hart": ("width",),
    "pdsg": (),
    "assg": ("vanishing",),
    "twin": (),
    "spsa": ("pairs", "sigma"),
}


def _parsed(rest: str, text: str) -> tuple[str | None, dict[str, str]]:
    """The surrogate's name, if there is one, and all settings as texts."""
    match = re.fullmatch(r"(?:([A-Za-z][\w-]*)(?:\(([^()]*)\))?(?::|$))?(.*)", rest)
    name, inside, after = match.groups() if match is not None else (None, None, rest)
    options: dict[str, str] = {}
    for part in f"{inside or ''},{after}".split(","):
        if not part.strip():
            continue
        field_name, equals, value = (p.strip() for p in part.partition("="))
        if not equals or not value or not re.fullmatch(r"\w+", field_name):
            raise InputError(
                f"gradient estimator {text!r} is malformed: write bptt:arctan:width=0.5."
            )
        if field_name in options:
            raise InputError(f"gradient estimator {text!r}: {field_name} is given twice.")
        options[field_name] = value
    return name, options


def _number(kind: Callable[[str], Any], name: str, value: str, text: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise InputError(
            f"gradient estimator {text!r}: {name} must be a number, not {value!r}."
        ) from None


def _bptt(surrogate: str | None, options: dict[str, str], text: str) -> Estimator:
    made = None
    if surrogate is not None:
        given = {
            key: _number(float, key, options[key], text)
            for key in SURROGATE_SETTINGS
            if key in options
        }
        made = make_surrogate(surrogate, **given)
    cut = _number(int, "cut", options["cut"], text) if "cut" in options else None
    return Bptt(made, options.get("reset"), cut)  # type: ignore[arg-type]


def _bptr(surrogate: str | None, options: dict[str, str], text: str) -> Estimator:
    leak = _number(float, "leak", options.get("leak", "0"), text)
    if not 0 <= leak <= 1:
        raise InputError(f"gradient estimator {text!r}: leak must lie in [0, 1].")
    return Ruled(f"bptr:leak={leak:g}" if leak else "bptr", ThroughRate(leak))


def _rga(surrogate: str | None, options: dict[str, str], text: str) -> Estimator:
    own = {key: _number(float, key, value, text) for key, value in options.items()}
    if own.get("beta", 2.0) <= 1 or own.get("gamma", 0.2) < 0:
        raise InputError(f"gradient estimator {text!r}: beta must be above 1, gamma at least 0.")
    said = ",".join(f"{key}={value:g}" for key, value in own.items())
    return Ruled(f"rga:{said}" if said else "rga", RateOfMeanCurrent(**own))


def _hart(surrogate: str | None, options: dict[str, str], text: str) -> Estimator:
    width = _number(float, "width", options.get("width", "0.5"), text)
    if not width > 0:
        raise InputError(f"gradient estimator {text!r}: width must be above 0.")
    return Ruled(f"hart:width={width:g}", MeanOverTime(width))


def _pdsg(surrogate: str | None, options: dict[str, str], text: str) -> Estimator:
    return Ruled("pdsg", PotentialDependent())


def _assg(surrogate: str | None, options: dict[str, str], text: str) -> Estimator:
    return Assg(_number(float, "vanishing", options.get("vanishing", "0.425"), text))


def _twin(surrogate: str | None, options: dict[str, str], text: str) -> Estimator:
    return Twin()


def _spsa(surrogate: str | None, options: dict[str, str], text: str) -> Estimator:
    pairs = _number(int, "pairs", options.get("pairs", "64"), text)
    return Spsa(pairs, options.get("sigma", "2/255"))


def _backprop(surrogate: str | None, options: dict[str, str], text: str) -> Estimator:
    return Backprop()


ESTIMATORS: dict[str, Callable[[str | None, dict[str, str], str], Estimator]] = {
    "backprop": _backprop,
    "bptt": _bptt,
    "bptr": _bptr,
    "rga": _rga,
    "hart": _hart,
    "pdsg": _pdsg,
    "assg": _assg,
    "twin": _twin,
    "spsa": _spsa,
}


@contextmanager
def _ruled(network: nn.Module, rule_of: Callable[[str], Rule]) -> Iterator[None]:
    """Every spiking layer with a rule, by its name, the whole sequence kept.

    Segments that are run again would cut what a rule sees of time.
    """
    layers = spiking_layers(network)
    segments: Any = getattr(network, "recompute", None)
    whole: Any = None
    try:
        if segments is not None:
            network.recompute = whole
        for name, layer in layers.items():
            layer.rule = rule_of(name)
        yield
    finally:
        if segments is not None:
            network.recompute = segments
        for layer in layers.values():
            layer.rule = None


class _Quantised(torch.autograd.Function):
    """A clamped staircase whose steps are straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int) -> Tensor:
        ctx.save_for_backward((x >= 0) & (x <= 1))
        return (x.clamp(0, 1) * levels + 0.5).floor() / levels

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None


def _activation(
    layer: Any,
    levels: int,
    current: Tensor,
    steps: int,
    initial: Tensor | None = None,
    pool: bool = False,
) -> LIFOutput:
    """In place of a layer's forward: activation `[1, batch, ...]`, and a membrane of zeros."""
    mean = current.mean(0, keepdim=True)
    out: Tensor = _Quantised.apply(mean / layer.threshold.detach(), levels)
    return LIFOutput(out, torch.zeros_like(mean[0]))
