"""Gradient estimators: how an attacker differentiates through spikes.

An estimator is independent of the attack that uses it, is applied only inside the victim's own
calls, and its name is in every record.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from robustsnn.errors import InputError, unknown
from robustsnn.snn.surrogate import Surrogate, describe, make_surrogate

ESTIMATORS = ("backprop", "bptt")


class Estimator(Protocol):
    """A way to differentiate a network."""

    @property
    def name(self) -> str:
        """What records call it; `make_estimator` of it gives the same estimator."""

    def applied(self, network: nn.Module) -> AbstractContextManager[None]:
        """A context in which the network differentiates that way; nothing outlives it."""


@dataclass(frozen=True)
class Backprop:
    """Plain backpropagation: exact for a network without spikes."""

    @property
    def name(self) -> str:
        """`backprop`."""
        return "backprop"

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """The network as it is."""
        yield


@dataclass(frozen=True)
class Bptt:
    """Backpropagation through time, the spike's derivative replaced by a surrogate.

    `surrogate` None keeps each layer's own, the one that the network was trained with. An attack
    on a spiking network can look weak for no other reason than its surrogate.

    Source: Neftci et al., IEEE Signal Processing Magazine 2019.
    """

    surrogate: Surrogate | None = None

    @property
    def name(self) -> str:
        """`bptt`, or such as `bptt:arctan(width=0.5,amplitude=1)`."""
        return "bptt" if self.surrogate is None else f"bptt:{describe(self.surrogate)}"

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Every spiking layer with this surrogate."""
        layers = list(_spiking_layers(network).values()) if self.surrogate is not None else []
        own = [layer.surrogate for layer in layers]
        try:
            for layer in layers:
                layer.surrogate = self.surrogate
            yield
        finally:
            for layer, surrogate in zip(layers, own, strict=True):
                layer.surrogate = surrogate


def make_estimator(text: str, network: nn.Module) -> Estimator:
    """The estimator that a user or a suite wrote, for a network.

    Args:
        text: `bptt` (the network's own surrogates; on a network without spikes that is
            `backprop`), `bptt:arctan`, `bptt:triangle:width=0.5`,
            `bptt:arctan(width=0.5,amplitude=1)`, or `backprop`.
        network: What will be attacked.

    Raises:
        InputError: No such estimator or surrogate, a malformed value, or one that the network
            cannot use.
    """
    kind, _, rest = text.strip().partition(":")
    if kind not in ESTIMATORS:
        raise unknown("gradient estimator", kind, ESTIMATORS)
    spiking = bool(_spiking_layers(network))
    if kind == "backprop":
        if rest:
            raise InputError(
                f"gradient estimator {text!r}: backprop has no settings, drop {rest!r}."
            )
        if spiking:
            raise InputError(
                "backprop cannot differentiate spikes: use bptt for a spiking network."
            )
        return Backprop()
    if not rest:
        return Bptt() if spiking else Backprop()
    if not spiking:
        raise InputError(
            f"gradient estimator {text!r} needs spiking layers and this network has none: use bptt."
        )
    return Bptt(_surrogate(rest, text))


def _surrogate(rest: str, text: str) -> Surrogate:
    match = re.fullmatch(r"([\w-]+)(?:\((.*)\)|:(.*))?", rest)
    if match is None:
        raise InputError(f"gradient estimator {text!r} is malformed: write bptt:arctan:width=0.5.")
    values: dict[str, float] = {}
    for part in (match[2] or match[3] or "").split(","):
        if not part.strip():
            continue
        field, _, value = (p.strip() for p in part.partition("="))
        if field not in ("width", "amplitude"):
            raise unknown("setting of a surrogate", field, ("width", "amplitude"))
        try:
            values[field] = float(value)
        except ValueError:
            raise InputError(
                f"gradient estimator {text!r}: {field} must be a number, not {value!r}."
            ) from None
    return make_surrogate(match[1], **values)


def _spiking_layers(network: nn.Module) -> dict[str, Any]:
    """The layers with a settable surrogate; none in a module that is not ours."""
    layers = getattr(network, "spiking_layers", None)
    return dict(layers()) if callable(layers) else {}
