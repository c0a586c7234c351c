"""The PGD of secml-torch, with its native or its foolbox backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustsnn.adversary.peers import check_norm, craft, library
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.epsilon import parse_epsilon
from robustsnn.common.kinds import NORMS
from robustsnn.common.randomness import Rng
from robustsnn.common.spec import parse_fields, parse_value
from robustsnn.errors import InputError, unknown

_PACKAGE = "secml-torch"
# The fields that a user may set, and their types.
_OPTIONS = {"num_steps": int, "step_size": str, "random_start": bool, "backend": str}
_BACKENDS = ("native", "foolbox")


@dataclass(frozen=True)
class Secml:
    """PGD of secml-torch.

    It works on a micro-batch at a time under a forked generator that is seeded from (seed, image
    ids).

    Args:
        num_steps: The number of steps, for which the library has no default.
        step_size: The size of a step in the units of epsilon, as written. The library has no
            default; here it is `2.5 * epsilon / num_steps`.
        random_start: Whether to start in the ball instead of at the image; as in the library, not
            by default.
        backend: The implementation: `native`, or `foolbox`, which secml-torch then calls.

    Raises:
        InputError: secml-torch is not installed, or a value is out of its range.

    Source: Pintor et al., SecML, SoftwareX 18 (2022).
    """

    kind: ClassVar[str] = "fixed-epsilon"
    norms: ClassVar[tuple[str, ...]] = NORMS
    num_steps: int = 100
    step_size: str | None = None
    random_start: bool = False
    backend: Literal["native", "foolbox"] = "native"

    def __post_init__(self) -> None:
        library("secmlt.adv.evasion.pgd", _PACKAGE)
        if self.num_steps < 1:
            raise InputError("secml:PGD: num_steps must be at least 1.")
        if self.step_size is not None and parse_epsilon(self.step_size, "step_size") == 0:
            raise InputError("secml:PGD: step_size must be above 0.")
        if self.backend not in _BACKENDS:
            raise unknown("backend of secml:PGD", self.backend, _BACKENDS)
        if self.backend == "foolbox":
            library("foolbox", "foolbox")

    @classmethod
    def from_spec(cls, text: str) -> Secml:
        """The attack of the text after `secml:`, such as `PGD:num_steps=40,backend=foolbox`."""
        name, _, rest = text.partition(":")
        if name.strip() != "PGD":
            raise InputError(f"secml needs the name of its attack: secml:PGD, not {name!r}.")
        values: dict[str, Any] = {}
        for option, value in parse_fields(rest, "secml:PGD").items():
            if option not in _OPTIONS:
                raise unknown("field of secml:PGD", option, _OPTIONS)
            values[option] = parse_value(value, _OPTIONS[option], f"secml:PGD: {option}")
        return cls(**values)

    @property
    def steps(self) -> int:
        """The number of steps."""
        return self.num_steps

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, ...]`.

        Raises:
            InputError: The pixel range is not that of the attack, or the attack fails on the
                network.
        """
        check_norm("secml:PGD", threat.norm, self.norms)
        wrap = library("secmlt.models.pytorch.base_pytorch_nn", _PACKAGE).BasePyTorchClassifier
        pgd = library("secmlt.adv.evasion.pgd", _PACKAGE).PGD
        step = (
            2.5 * threat.radius / self.num_steps
            if self.step_size is None
            else parse_epsilon(self.step_size, "step_size")
        )

        def run(network: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
            attack = pgd(
                perturbation_model=threat.norm.lower(),
                epsilon=threat.radius,
                num_steps=self.num_steps,
                step_size=step,
                random_start=self.random_start,
                lb=0.0,
                ub=1.0,
                backend=self.backend,
            )
            whole = DataLoader(TensorDataset(images, labels), batch_size=len(images))
            return torch.cat([found for found, _ in attack(wrap(network), whole)])

        return craft("secml:PGD", victim, images, labels, threat, rng, run)


ATTACK = Secml
