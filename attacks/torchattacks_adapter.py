"""The attacks of torchattacks that declare a norm and an epsilon, by name."""

from __future__ import annotations

import functools
import inspect
import random
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from robustsnn.adversary.peers import (
    check_norm,
    check_option,
    count_classes,
    craft,
    library,
    seeded,
)
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.kinds import NORMS
from robustsnn.common.randomness import Rng
from robustsnn.common.spec import parse_fields, parse_value
from robustsnn.errors import InputError, unknown

# torchattacks states the norm of these in prose only; its other attacks take it as an argument.
_LINF = (
    "BIM DIFGSM EOTPGD FFGSM FGSM Jitter MIFGSM NIFGSM PGD PGDRS RFGSM SINIFGSM SPSA TIFGSM TPGD "
    "UPGD VMIFGSM VNIFGSM"
).split()
_L2 = ("PGDL2", "PGDRSL2")
# These are set from the victim, the threat model and the randomness, never by the user.
_GIVEN = ("model", "eps", "norm", "seed", "n_classes")
# These attacks see logits only.
_GRADIENT_FREE = ("SPSA", "Square")
# The targeted DLR loss of these divides by the difference of the first and the fourth logit.
_TARGETED = ("APGDT", "AutoAttack")


@dataclass(frozen=True)
class Torchattacks:
    """One attack of torchattacks.

    A step size (`alpha`) that is not given keeps the library's ratio to epsilon and steps, so
    that 10 steps of 2/255 at 8/255 become 20 steps of 4/255 at 32/255. Draws are made under a
    forked generator that is seeded from (seed, image ids). An attack that draws runs one image at
    a time, so that its draws belong to the image and not to the batch.

    Two options are not torchattacks' own. `together=yes` runs an attack that draws on a
    micro-batch at a time, as its users do: that is faster, and the draws then belong to the batch.
    `steps` of AutoAttack is the number of steps of its parts, which is 10 in torchattacks and 100
    in the paper.

    Args:
        name: The name as torchattacks spells it, such as `MIFGSM`.
        options: Its other arguments, with their values as written.

    Raises:
        InputError: torchattacks is not installed or has no such attack, the attack has no epsilon
            or no norm, or an option is wrong.

    Source: Kim, Torchattacks, arXiv 2010.01950.
    """

    kind: ClassVar[str] = "fixed-epsilon"
    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        self._arguments()

    @classmethod
    def from_spec(cls, text: str) -> Torchattacks:
        """The attack of the text after `torchattacks:`, such as `MIFGSM:steps=5`."""
        name, _, rest = text.partition(":")
        if not name:
            raise InputError(
                f"torchattacks needs the name of an attack: torchattacks:MIFGSM, "
                f"or one of {', '.join(accepted())}."
            )
        return cls(name.strip(), tuple(parse_fields(rest, f"torchattacks:{name}").items()))

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms that it can work in."""
        return _norms(self.name)

    @property
    def steps(self) -> int | None:
        """The number of steps, if the attack has one."""
        steps = self._own().get("steps", self._arguments().get("steps"))
        if steps is None and "steps" in _parameters(self.name):
            steps = _parameters(self.name)["steps"].default
        return None if steps is None else int(steps)

    @property
    def gradient_free(self) -> bool:
        """Whether the attack follows no gradient."""
        return self.name in _GRADIENT_FREE

    @property
    def fewest_classes(self) -> int:
        """The fewest classes of a network that its loss can be computed for."""
        if self.name in _TARGETED:
            return 4
        return 3 if self._arguments().get("loss") == "dlr" else 2

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, ...]`.

        Raises:
            InputError: The threat model has a norm or a pixel range that the attack does not have,
                the network has too few classes, or the attack fails on it.
        """
        owner = f"torchattacks:{self.name}"
        check_norm(owner, threat.norm, self.norms)
        if len(images) == 0:
            return images.clone()
        classes = count_classes(victim, images)
        if classes < self.fewest_classes:
            raise InputError(
                f"{owner} needs at least {self.fewest_classes} classes for its DLR loss and this "
                f"network has {classes}: leave it out, or choose torchattacks:APGD:loss=ce."
            )

        def run(network: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
            arguments = {**self._defaults(classes, threat, seed), **self._arguments()}
            attack = getattr(_library(), self.name)(network, **arguments)
            if (steps := self._own().get("steps")) is not None:
                for part in attack._autoattack.attacks:
                    # Square has queries instead of steps.
                    if hasattr(part, "steps"):
                        part.steps = steps
            found: Tensor = attack(images, labels)
            return found

        alone = _draws(self.name, self.options) and not self._own().get("together", False)
        return craft(owner, victim, images, labels, threat, rng, run, alone)

    def _defaults(self, classes: int, threat: ThreatModel, seed: int) -> dict[str, Any]:
        parameters = _parameters(self.name)
        values: dict[str, Any] = {"eps": threat.radius}
        if "norm" in parameters:
            values["norm"] = threat.norm
        if "seed" in parameters:
            values["seed"] = seed
        if "n_classes" in parameters:
            values["n_classes"] = classes
        if "alpha" in parameters:
            scale = threat.radius / parameters["eps"].default
            if "steps" in parameters and self.steps:
                scale *= parameters["steps"].default / self.steps
            values["alpha"] = parameters["alpha"].default * scale
        return values

    def _own(self) -> dict[str, Any]:
        """The options that are not torchattacks' own, in their types."""
        owner = f"torchattacks:{self.name}"
        kinds = _own_options(self.name)
        return {
            option: parse_value(text, kinds[option], f"{owner}: {option}")
            for option, text in self.options
            if option in kinds
        }

    def _arguments(self) -> dict[str, Any]:
        """The options that were given, in the types of the library's own defaults."""
        owner = f"torchattacks:{self.name}"
        if self.name not in accepted():
            if self.name in _library().__all__:
                raise InputError(
                    f"{owner} declares no norm and epsilon of its own, so it cannot be held to "
                    f"one: use one of {', '.join(accepted())}."
                )
            raise unknown("attack of torchattacks", self.name, accepted())
        parameters, own = _parameters(self.name), self._own()
        if own.get("steps", 1) < 1:
            raise InputError(f"{owner}: steps must be at least 1.")
        free = [p for p in parameters if p not in _GIVEN]
        values = {}
        for option, text in self.options:
            if option in own:
                continue
            if option in _GIVEN:
                raise InputError(f"{owner}: {option} comes from the evaluation, drop it.")
            if option not in free:
                raise unknown(f"field of {owner}", option, [*free, *_own_options(self.name)])
            default = parameters[option].default
            kind = str if default is None else type(default)
            values[option] = parse_value(text, kind, f"{owner}: {option}")
            check_option(owner, option, values[option], default)
        return values


def _library() -> Any:
    """The library, which need not be installed."""
    return library("torchattacks", "torchattacks", extra="torchattacks")


def accepted() -> list[str]:
    """The attacks of torchattacks that this adapter takes."""
    return sorted(n for n in _library().__all__ if "eps" in _parameters(n) and _norms(n))


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(getattr(_library(), name).__init__).parameters)
    parameters.pop("self")
    return parameters


def _own_options(name: str) -> dict[str, type]:
    return {"together": bool, **({"steps": int} if name == "AutoAttack" else {})}


def _norms(name: str) -> tuple[str, ...]:
    if "norm" in _parameters(name):
        return NORMS
    return ("Linf",) if name in _LINF else ("L2",) if name in _L2 else ()


@functools.cache
def _draws(name: str, options: tuple[tuple[str, str], ...]) -> bool:
    """Whether an attack draws random numbers, found on a linear network of three classes."""
    attack = Torchattacks(name, options)
    if "seed" in _parameters(name):
        return True
    with seeded(0):
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
        image = torch.rand(1, 3, 32, 32)
        label = network(image).argmax(1)
        threat = ThreatModel(_norms(name)[0], "8/255")
        arguments = {**attack._defaults(3, threat, 0), **attack._arguments()}
        with seeded(0):
            getattr(_library(), name)(network, **arguments)(image, label)
            after = _next_draws()
        with seeded(0):
            return after != _next_draws()


def _next_draws() -> tuple[float, float, float]:
    """The next number of each generator that an attack may use."""
    return torch.rand(()).item(), np.random.random(), random.random()


ATTACK = Torchattacks
