"""Transfer: images are crafted on a substitute network, and the victim only judges (black box)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError


@dataclass(frozen=True)
class Transfer:
    """An attack that runs entirely on `victim.substitute`, with the estimator of the substitute.

    Args:
        attack: The specification of the attack that runs there, such as
            `pgd:steps=7,step_size=0.01`.

    Raises:
        InputError: There is no such attack, it needs no network, or it is a transfer itself.

    Source: Papernot et al., AsiaCCS 2017.
    """

    kind: ClassVar[str] = "transfer"
    attack: str = "pgd"

    def __post_init__(self) -> None:
        kind = load_attack(self.attack).kind
        if kind not in ("fixed-epsilon", "minimum-norm"):
            raise InputError(f"transfer: {self.attack!r} is of kind {kind}: use one such as pgd.")

    @classmethod
    def from_spec(cls, text: str) -> Transfer:
        """The attack of the text after `transfer:`, such as `pgd:steps=7`; PGD by default."""
        return cls(text.removeprefix("attack=")) if text else cls()

    @property
    def steps(self) -> int | None:
        """The number of steps of the attack that runs."""
        return getattr(load_attack(self.attack), "steps", None)

    @property
    def warm(self) -> bool:
        """Whether the attack that runs starts where earlier attacks of a cascade stopped."""
        return bool(getattr(load_attack(self.attack), "warm", False))

    @property
    def restarts(self) -> int | None:
        """The number of restarts of the attack that runs."""
        return getattr(load_attack(self.attack), "restarts", None)

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, ...]`; the victim itself is never called.

        Raises:
            InputError: There is no substitute.
        """
        if victim.substitute is None:
            raise InputError("transfer needs a substitute network: name one with --substitute.")
        return load_attack(self.attack)(victim.substitute, images, labels, threat, rng)


ATTACK = Transfer
