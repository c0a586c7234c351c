"""The attacks of torchattacks that declare a norm and an epsilon, by name."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torchattacks
from torch import Tensor, nn

from robustsnn.errors import InputError, unknown
from robustsnn.randomness import Rng
from robustsnn.registry import parse_fields, parse_value
from robustsnn.threat import NORMS, ThreatModel
from robustsnn.victim import Victim

# What torchattacks states in prose only; its other attacks take the norm as an argument.
_LINF = (
    "BIM DIFGSM EOTPGD FFGSM FGSM Jitter MIFGSM NIFGSM PGD PGDRS RFGSM SINIFGSM SPSA TIFGSM TPGD "
    "UPGD VMIFGSM VNIFGSM"
).split()
_L2 = ("PGDL2", "PGDRSL2")
# Set from the victim, the threat model and the randomness, never by the user.
_GIVEN = ("model", "eps", "norm", "seed", "n_classes")


@dataclass(frozen=True)
class Torchattacks:
    """One attack of torchattacks.

    Step sizes (`alpha`) that are not given keep the library's ratio to epsilon and steps, so
    that 10 steps of 2/255 at 8/255 become 20 steps of 4/255 at 32/255. Draws happen under a
    forked generator seeded from (seed, image ids). An attack that draws runs one image at a
    time, so that what it draws belongs to the image and not to the batch.

    Args:
        name: As torchattacks spells it, such as `MIFGSM`.
        options: Its other arguments and their values as written.

    Raises:
        InputError: No such attack, one without an epsilon or a norm, or a wrong option.

    Source: Kim, Torchattacks, arXiv 2010.01950.
    """

    kind: ClassVar[str] = "fixed-epsilon"
    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        self._arguments()

    @classmethod
    def from_spec(cls, text: str) -> Torchattacks:
        """From what follows `torchattacks:`, such as `MIFGSM:steps=5`."""
        name, _, rest = text.partition(":")
        if not name:
            raise InputError(
                f"torchattacks needs the name of an attack: torchattacks:MIFGSM, "
                f"or one of {', '.join(accepted())}."
            )
        return cls(name.strip(), tuple(parse_fields(rest, f"torchattacks:{name}").items()))

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms it can work in."""
        return _norms(self.name)

    @property
    def steps(self) -> int | None:
        """Number of steps, where it has one."""
        steps = self._arguments().get("steps")
        if steps is None and "steps" in _parameters(self.name):
            steps = _parameters(self.name)["steps"].default
        return None if steps is None else int(steps)

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, ...]`.

        Raises:
            InputError: The threat model has another norm or pixel range than the attack.
        """
        if threat.norm not in self.norms:
            raise InputError(
                f"torchattacks:{self.name} works in {' and '.join(self.norms)} only, not in "
                f"{threat.norm}: choose another attack or norm."
            )
        if (threat.low, threat.high) != (0.0, 1.0):
            raise InputError("torchattacks' attacks keep pixels in [0, 1] only.")
        if len(images) == 0 or threat.radius == 0:
            return images.clone()
        batch = list(range(len(images)))
        if not _draws(self.name, self.options):
            return self._run(victim, images, labels, threat, rng, batch)
        return torch.cat([self._run(victim, images, labels, threat, rng, [i]) for i in batch])

    def _run(
        self,
        victim: Victim,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        rng: Rng,
        rows: list[int],
    ) -> Tensor:
        """Proposals for some of the images."""
        # Padding one image to a whole micro-batch would cost a micro-batch.
        some = victim.select(rows, micro_batch=1 if len(rows) == 1 else None)
        seed = rng.select(rows).derive(self.name)
        arguments = {**self._defaults(some.classes, threat, seed), **self._arguments()}
        try:
            with _forked(seed), contextlib.redirect_stdout(io.StringIO()):
                attack = getattr(torchattacks, self.name)(some.network, **arguments)
                found: Tensor = attack(images[rows].clone(), labels[rows].clone())
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            raise InputError(
                f"torchattacks:{self.name} cannot attack images {list(images.shape[1:])}: {error}."
            ) from error
        return found.detach().to(images.dtype).clone()

    def _defaults(self, classes: int | None, threat: ThreatModel, seed: int) -> dict[str, Any]:
        parameters = _parameters(self.name)
        values: dict[str, Any] = {"eps": threat.radius}
        if "norm" in parameters:
            values["norm"] = threat.norm
        if "seed" in parameters:
            values["seed"] = seed
        if "n_classes" in parameters and classes is not None:
            values["n_classes"] = classes
        if "alpha" in parameters:
            scale = threat.radius / parameters["eps"].default
            if "steps" in parameters and self.steps:
                scale *= parameters["steps"].default / self.steps
            values["alpha"] = parameters["alpha"].default * scale
        return values

    def _arguments(self) -> dict[str, Any]:
        """The options that were given, as the types of the library's own defaults."""
        owner = f"torchattacks:{self.name}"
        if self.name not in accepted():
            if self.name in torchattacks.__all__:
                raise InputError(
                    f"{owner} declares no norm and epsilon of its own, so it cannot be held to "
                    f"one: use one of {', '.join(accepted())}."
                )
            raise unknown("attack of torchattacks", self.name, accepted())
        parameters = _parameters(self.name)
        free = [p for p in parameters if p not in _GIVEN]
        values = {}
        for option, text in self.options:
            if option in _GIVEN:
                raise InputError(f"{owner}: {option} comes from the evaluation, drop it.")
            if option not in free:
                raise unknown(f"field of {owner}", option, free)
            default = parameters[option].default
            kind = str if default is None else type(default)
            values[option] = parse_value(text, kind, f"{owner}: {option}")
        return values


def accepted() -> list[str]:
    """The attacks of torchattacks that this adapter takes."""
    return sorted(n for n in torchattacks.__all__ if "eps" in _parameters(n) and _norms(n))


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(getattr(torchattacks, name).__init__).parameters)
    parameters.pop("self")
    return parameters


def _norms(name: str) -> tuple[str, ...]:
    if "norm" in _parameters(name):
        return NORMS
    return ("Linf",) if name in _LINF else ("L2",) if name in _L2 else ()


@functools.cache
def _draws(name: str, options: tuple[tuple[str, str], ...]) -> bool:
    """Whether an attack draws random numbers, seen on a linear network of three classes."""
    attack = Torchattacks(name, options)
    if "seed" in _parameters(name):
        return True
    with _forked(0):
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
        image = torch.rand(1, 3, 32, 32)
        label = network(image).argmax(1)
        threat = ThreatModel(_norms(name)[0], "8/255")
        arguments = {**attack._defaults(3, threat, 0), **attack._arguments()}
        _seed(0)
        getattr(torchattacks, name)(network, **arguments)(image, label)
        after = _next_draws()
        _seed(0)
        return after != _next_draws()


@contextlib.contextmanager
def _forked(seed: int) -> Iterator[None]:
    """Every global generator seeded inside, and afterwards as it was."""
    kept_numpy, kept_python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        _seed(seed)
        try:
            yield
        finally:
            np.random.set_state(kept_numpy)
            random.setstate(kept_python)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _next_draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), np.random.random(), random.random()


ATTACK = Torchattacks
