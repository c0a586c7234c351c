"""The attacks of foolbox in Linf and L2, by name; `PGD` is the PGD of the norm in use."""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from robustsnn.adversary.peers import check_norm, check_option, craft, library
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.kinds import NORMS
from robustsnn.common.randomness import Rng
from robustsnn.common.spec import parse_fields, parse_value
from robustsnn.errors import InputError, unknown


@dataclass(frozen=True)
class Foolbox:
    """One attack of foolbox, with the library's own defaults.

    `LinfPGD` and `L2PGD` are attacks of one norm; a name that foolbox has with both prefixes,
    such as `PGD`, is the one of the threat model's norm. The attack works on a micro-batch at a
    time under a forked generator that is seeded from (seed, image ids), and its result, clipped
    to epsilon, is proposed. Steps are relative to epsilon in foolbox, so they need no scaling.

    Args:
        name: The name as foolbox spells it, with or without the norm.
        options: The other arguments of its class, with their values as written.

    Raises:
        InputError: foolbox is not installed, or has no such attack or argument.

    Source: Rauber et al., Foolbox Native, JOSS 5 (2020).
    """

    kind: ClassVar[str] = "fixed-epsilon"
    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for norm in self.norms:
            self._arguments(norm)

    @classmethod
    def from_spec(cls, text: str) -> Foolbox:
        """The attack of the text after `foolbox:`, such as `LinfPGD:steps=40`."""
        name, _, rest = text.partition(":")
        if not name:
            raise InputError("foolbox needs the name of an attack, such as foolbox:PGD.")
        return cls(name.strip(), tuple(parse_fields(rest, f"foolbox:{name}").items()))

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms that it can work in."""
        return tuple(_classes(self.name))

    @property
    def steps(self) -> int | None:
        """The number of steps, if the attack has one."""
        norm = self.norms[0]
        default = _parameters(_classes(self.name)[norm]).get("steps")
        given = self._arguments(norm).get("steps", default and default.default)
        return None if given is None else int(given)

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, ...]`.

        Raises:
            InputError: The threat model has a norm or a pixel range that the attack does not have,
                or the attack fails on the network.
        """
        owner = f"foolbox:{self.name}"
        check_norm(owner, threat.norm, self.norms)
        foolbox = _foolbox()

        def run(network: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
            attack = _classes(self.name)[threat.norm](**self._arguments(threat.norm))
            model = foolbox.PyTorchModel(network, bounds=(0, 1), device=images.device)
            criterion = foolbox.criteria.Misclassification(labels)
            clipped: Tensor = attack(model, images, criterion, epsilons=threat.radius)[1]
            return clipped

        return craft(owner, victim, images, labels, threat, rng, run)

    def _arguments(self, norm: str) -> dict[str, Any]:
        """The options that were given, in the types that foolbox declares."""
        owner = f"foolbox:{self.name}"
        kind = _classes(self.name)[norm]
        parameters = _parameters(kind)
        hints = typing.get_type_hints(kind.__init__)
        values = {}
        for option, text in self.options:
            if option not in parameters:
                raise unknown(f"field of {owner}", option, parameters)
            values[option] = parse_value(text, hints.get(option, str), f"{owner}: {option}")
            check_option(owner, option, values[option], parameters[option].default)
        return values


def accepted() -> list[str]:
    """The attacks of foolbox that this adapter takes, with the norm in their names."""
    attacks = vars(_foolbox().attacks)
    return sorted(name for name in attacks if _norm(attacks[name]) is not None)


def _foolbox() -> Any:
    return library("foolbox", "foolbox")


def _classes(name: str) -> dict[str, Any]:
    """The class of each norm that an attack has.

    Raises:
        InputError: There is no such attack.
    """
    attacks = _foolbox().attacks
    of_norm = {norm: getattr(attacks, f"{norm}{name}", None) for norm in NORMS}
    if all(_norm(kind) == norm for norm, kind in of_norm.items()):
        return of_norm
    kind = getattr(attacks, name, None)
    norm = _norm(kind)
    if norm is None:
        raise unknown("attack of foolbox in Linf or L2", name, ["PGD", *accepted()])
    return {norm: kind}


def _norm(kind: Any) -> str | None:
    """The norm that an attack of foolbox measures distances in, if it is one of ours."""
    if not isinstance(kind, type) or inspect.isabstract(kind):
        return None
    distances = _foolbox().distances
    known = {"Linf": distances.linf, "L2": distances.l2}
    distance = getattr(kind, "distance", None)
    return next((norm for norm, one in known.items() if distance is one), None)


def _parameters(kind: Any) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(kind.__init__).parameters)
    parameters.pop("self")
    return parameters


ATTACK = Foolbox
