"""BPTT: backpropagation through time, the spike's derivative replaced by a surrogate."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from robustsnn.common.content import is_file_name, users_object
from robustsnn.common.spec import build, parse_fields
from robustsnn.errors import InputError
from robustsnn.estimators.backprop import Backprop
from robustsnn.estimators.base import Estimator, ruled_layers
from robustsnn.snn.backward_rule import (
    Trace,
    spiking_layers,
    surrogate_derivative,
    through_time,
)
from robustsnn.snn.neuron import LIF
from robustsnn.snn.surrogate import SURROGATES, Surrogate, describe, make_surrogate

#: The settings of `bptt` itself; other settings after a surrogate are those of the surrogate.
_OPTIONS = ("reset", "cut")
#: A surrogate by name or file, with its settings in brackets or after a colon, then other settings.
_SPEC = re.compile(r"(?:([^:=,()]+\.py|[A-Za-z][\w-]*)(?:\(([^()]*)\))?(?::|$))?(.*)")


@dataclass(frozen=True)
class Bptt(Estimator):
    """Backpropagation through time.

    An attack on a spiking network can look weak for no other reason than its surrogate.

    Args:
        surrogate: The surrogate that takes the place of the derivative of the spike; None keeps
            each layer's own, with which the network was trained.
        reset: Whether the spike in the reset is differentiated too (`attached`) or held fixed
            (`detached`); None keeps the model's choice.
        cut: The number of time steps after which the gradient of the membrane is dropped; None for
            never.

    Source: Neftci et al., IEEE Signal Processing Magazine 2019.

    Examples:
        >>> Bptt.from_spec("arctan:width=0.5,reset=attached").name
        'bptt:arctan(width=0.5,amplitude=1):reset=attached'
    """

    kind: ClassVar[str] = "bptt"
    surrogate: Surrogate | None = None
    reset: Literal["attached", "detached"] | None = None
    cut: int | None = None

    def __post_init__(self) -> None:
        if self.reset not in (None, "attached", "detached"):
            raise InputError(f"bptt: reset must be attached or detached, not {self.reset!r}.")
        if self.cut is not None and self.cut < 1:
            raise InputError("bptt: cut must be at least 1 time step.")

    @classmethod
    def from_spec(cls, text: str) -> Bptt:
        """The estimator of the text after `bptt:`.

        Args:
            text: `[SURROGATE][:field=value,...]`, where the surrogate is a name or a FILE.py. Its
                own fields, `width` and `amplitude`, are in brackets or among the others.

        Raises:
            InputError: There is no such surrogate or field, or a value is malformed.
        """
        match = _SPEC.fullmatch(text.strip())
        name, inside, after = match.groups() if match is not None else (None, None, text)
        if name is None and "(" in text:
            raise InputError(f"bptt:{text} is malformed: write bptt:arctan:width=0.5.")
        fields = parse_fields(f"{inside or ''},{after}", "bptt")
        if name is None:
            surrogate = None
        else:
            own = {key: value for key, value in fields.items() if key not in _OPTIONS}
            fields = {key: value for key, value in fields.items() if key in _OPTIONS}
            surrogate = _surrogate(name, own)
        settings: _Settings = build(_Settings, "bptt", fields)
        return cls(surrogate, settings.reset, settings.cut)

    @property
    def name(self) -> str:
        """The name, such as `bptt` or `bptt:arctan(width=0.5,amplitude=1):reset=attached`."""
        given = [("reset", self.reset), ("cut", self.cut)]
        options = ",".join(f"{key}={value}" for key, value in given if value is not None)
        surrogate = None if self.surrogate is None else describe(self.surrogate)
        return ":".join(part for part in ("bptt", surrogate, options) if part)

    def on(self, spiking: bool) -> Estimator:
        """The estimator for such a network; without spikes and settings it is `backprop`.

        Raises:
            InputError: A surrogate or a setting was asked for and there are no spikes.
        """
        return Backprop() if not spiking and self == Bptt() else super().on(spiking)

    @contextmanager
    def applied(self, network: nn.Module, rows: Tensor | None = None) -> Iterator[None]:
        """Differentiate every spiking layer with that surrogate, reset and cut."""
        layers = spiking_layers(network)
        attached = None if self.reset is None else self.reset == "attached"
        # Layers of other libraries may not offer a choice of the reset; a rule can make it.
        chosen = all(hasattr(layer, "detach_reset") for layer in layers.values())
        # A layer of another kind may put a surrogate where spikes do not flip; a rule does not.
        placed = all(map(_placed, layers.values()))
        ruled = self.surrogate is not None and not placed
        if self.cut is not None or (attached is not None and not chosen) or ruled:
            with ruled_layers(network, lambda _: ThroughTime(self.surrogate, attached, self.cut)):
                yield
            return
        changed: dict[str, Any] = {}
        if attached is not None:
            changed["detach_reset"] = not attached
        if self.surrogate is not None:
            changed["surrogate"] = self.surrogate
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


def _placed(layer: Any) -> bool:
    """Whether a layer is known to differentiate a surrogate that is set where its spikes flip.

    Layers of other libraries, which have a `library`, do it by the trace that a rule is given.
    """
    return type(layer) is LIF or hasattr(layer, "library")


@dataclass(frozen=True)
class _Settings:
    """The fields of `Bptt` that are read like those of an attack."""

    reset: Literal["attached", "detached"] | None = None
    cut: int | None = None


def _surrogate(name: str, fields: dict[str, str]) -> Surrogate:
    """A surrogate by name, or a user's own by its file."""
    if is_file_name(name):
        kind: Any = users_object(name, "SURROGATE", "surrogate")
        made: Surrogate = build(kind, name, fields)
        parts = ("name", "width", "amplitude", "derivative", "primitive")
        if missing := [part for part in parts if not hasattr(made, part)]:
            raise InputError(f"{name}: a surrogate needs {', '.join(missing)}: see docs/adding.md.")
        return made
    if name in SURROGATES:
        return make_surrogate(name, **_numbers(name, fields))
    return make_surrogate(name)


def _numbers(name: str, fields: dict[str, str]) -> dict[str, float]:
    built = build(SURROGATES[name], f"surrogate {name}", fields)
    return {key: getattr(built, key) for key in fields}


@dataclass(frozen=True)
class ThroughTime:
    """Backpropagation through time with a surrogate.

    Args:
        surrogate: The surrogate; None keeps the layer's own.
        attached: Whether the spike in the reset is differentiated too; None keeps the model's
            choice.
        cut: The number of steps after which the gradient of the membrane is dropped, or None.
    """

    surrogate: Surrogate | None = None
    attached: bool | None = None
    cut: int | None = None

    def __call__(self, grad: Tensor, trace: Trace) -> Tensor:
        """The gradient of the current of a layer; see `through_time`."""
        surrogate = trace.surrogate if self.surrogate is None else self.surrogate
        derivative = surrogate_derivative(trace, surrogate)
        return through_time(grad, trace, derivative, self.attached, self.cut)


ESTIMATOR = Bptt
