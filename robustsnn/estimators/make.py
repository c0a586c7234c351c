"""Estimators by name or by file: those that ship here, and a user's own.

The name of an estimator is the name of its file here, which ends with `ESTIMATOR = Class`, so that
a new estimator takes no more than a new file. A user's own file is used in the same way, by its
path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from robustsnn.common.content import object_named
from robustsnn.common.spec import build, parse_fields, parse_value
from robustsnn.errors import InputError
from robustsnn.estimators.base import Estimator
from robustsnn.estimators.catalogue import estimator_modules
from robustsnn.estimators.eot import Average, Eot
from robustsnn.snn.backward_rule import spiking_layers

#: The settings that every estimator takes, for averages over draws of a stochastic network.
_DRAWS = re.compile(r"(?:(?<=^)|(?<=[:,]))\s*(draws|average)\s*=\s*([^,:()]*)")


def estimator_class(name: str) -> type[Estimator]:
    """The class of the estimator of that name, or of the estimator in that file.

    Raises:
        InputError: There is no such estimator, or the file does not define one.

    Examples:
        >>> estimator_class("hart").__name__
        'Hart'
    """
    modules = estimator_modules()
    kind: Any = object_named(name, "estimators", modules, "ESTIMATOR", "gradient estimator")
    if not (isinstance(kind, type) and issubclass(kind, Estimator)):
        raise InputError(
            f"{name} does not define an estimator: derive its class from robustsnn.Estimator and "
            "end the file with a line ESTIMATOR = YourClass."
        )
    return kind


def make_estimator(text: str, network: nn.Module) -> Estimator:
    """The estimator that a specification describes, for a network.

    Args:
        text: The specification, `NAME[:field=value,...]`, or a FILE.py in place of the name:
            `bptt` (the network's own surrogates; for a network without spikes, `backprop`),
            `bptt:arctan`, `bptt:triangle:width=0.5`,
            `bptt:arctan(width=0.5,amplitude=1):reset=attached,cut=1`, `bptr`, `rga`,
            `hart:width=0.5`, `pdsg`, `assg:vanishing=0.425`, `twin`,
            `spsa:pairs=64,sigma=2/255`, `backprop`. With `draws=20,average=logits`, gradients are
            averaged over draws.
        network: The network that will be attacked.

    Raises:
        InputError: There is no such estimator or surrogate, a value is malformed, or the estimator
            does not fit the network.

    Examples:
        >>> make_estimator("bptt", nn.Linear(2, 2)).name
        'backprop'
    """
    estimator, draws = parse_estimator(text)
    inner = estimator.on(bool(spiking_layers(network)))
    return inner if draws is None else Eot(inner, *draws)


def parse_estimator(text: str) -> tuple[Estimator, tuple[int, Average] | None]:
    """The estimator that a specification describes, and the draws it is averaged over, if any.

    Raises:
        InputError: There is no such estimator or field, or a value is malformed.

    Examples:
        >>> parse_estimator("bptr:draws=4")[1]
        (4, 'gradients')
    """
    name, _, rest = (part.strip() for part in text.strip().partition(":"))
    kind: Any = estimator_class(name)
    settings: dict[str, str] = {}
    for field, value in _DRAWS.findall(rest):
        if field in settings:
            raise InputError(f"gradient estimator {text!r}: {field} is given twice.")
        settings[field] = value.strip()
    rest = _DRAWS.sub("", rest)
    from_spec = getattr(kind, "from_spec", None)
    made: Estimator = (
        build(kind, name, parse_fields(rest, name)) if from_spec is None else from_spec(rest)
    )
    if "draws" not in settings:
        if settings:
            raise InputError(f"gradient estimator {text!r}: average needs draws too.")
        return made, None
    if name == "spsa":
        raise InputError(
            f"gradient estimator {text!r}: spsa draws anew for every pair anyway, drop draws."
        )
    draws: int = parse_value(settings["draws"], int, f"gradient estimator {text!r}: draws")
    if draws < 1:
        raise InputError(f"gradient estimator {text!r}: draws must be at least 1.")
    average: Average = parse_value(
        settings.get("average", "gradients"), Average, f"gradient estimator {text!r}: average"
    )
    return made, (draws, average)


def draws_of(estimators: Sequence[str]) -> int:
    """The largest number of draws that any of some specifications asks for; 1 if none does.

    Examples:
        >>> draws_of(["bptt", "hart:width=0.5,draws=20,average=logits"])
        20
    """
    found = [value for name in estimators for field, value in _DRAWS.findall(name)]
    return max([1, *(int(value) for value in found if value.strip().isdigit())])
