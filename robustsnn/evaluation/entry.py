"""One entry of a suite: an attack, its gradient estimator, and the networks it is meant for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from robustsnn.adversary.catalogue import attack_names
from robustsnn.common.epsilon import size_of
from robustsnn.common.wording import slug
from robustsnn.errors import InputError, unknown
from robustsnn.evaluation.until import Until, rounds_of, steps_in
from robustsnn.records.schema import CLEAN, WORST_CASE

RESERVED = (CLEAN, WORST_CASE)
LONGEST_LABEL = 60
#: The kinds of networks: without spikes, and with spikes.
NETWORKS = ("ann", "snn")


def as_text(value: Any) -> Any:
    """A number as a text, since YAML reads 0.031 and 0 as numbers and epsilon is kept as text."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def check_attack(spec: str) -> None:
    """Refuse an attack that does not exist, without loading an attack that does."""
    head = spec.strip().partition(":")[0].strip()
    if head.endswith(".py") or "/" in head:
        if not Path(head).expanduser().is_file():
            raise InputError(f"no attack file {head!r}: give the path of an existing .py file.")
    elif head not in attack_names():
        raise unknown("attack", head, attack_names())


def _valid_epsilon(text: str) -> str:
    try:
        size_of(text)
    except InputError as error:
        raise ValueError(str(error)) from None
    return text


def _valid_attack(spec: str) -> str:
    try:
        check_attack(spec)
    except InputError as error:
        raise ValueError(str(error)) from None
    return spec


def _valid_label(label: str) -> str:
    if not slug(label) or slug(label) in RESERVED:
        raise ValueError(f"the label {label!r} is reserved or empty: choose another")
    return label


Epsilon = Annotated[str, AfterValidator(_valid_epsilon)]


class Strict(BaseModel):
    """A mapping of fields that are all known; it does not change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Entry(Strict):
    """One attack of a suite.

    Attributes:
        label: The label that tables show.
        attack: The specification of the attack.
        estimator: The specification of the gradient estimator. In a cascade it may be `best`: the
            estimator whose probe came closest to breaking the images that survived all probes.
        norm: The norm in place of the suite's.
        epsilon: The size in place of the suite's.
        substitute: Whether the attack crafts on a second network (black box).
        probe: Whether the entry also ranks its estimator; in a cascade only.
        kinds: The kinds of networks that the entry is meant for, `ann` or `snn`; None for both.
        least_classes: The least number of classes that such a network has.
        deterministic: Whether such a network must not draw.
        until: When the entry, repeated on its survivors with doubled length, has converged; in a
            cascade only. None for an entry that runs once.
        sample: The number of survivors that the entry attacks first, chosen by their ids; the
            others follow only if one of them broke. In a cascade only, for costly searches that
            are there to diagnose. None for an entry that attacks all survivors.
        when: `blind` for an entry that runs only where the diagnosis found that the score of the
            network is blind (D15); in a cascade only. None for an entry that always runs.
        reads: `inner` for an attack on what the last layer says whose values move, in front of
            whatever made the score blind; with `when: blind` only. It attacks nothing where no
            layer is found. None for an attack on the logits of the network.
    """

    label: Annotated[str, Field(max_length=LONGEST_LABEL), AfterValidator(_valid_label)]
    attack: Annotated[str, AfterValidator(_valid_attack)]
    estimator: str = "bptt"
    norm: Literal["Linf", "L2"] | None = None
    epsilon: Annotated[Epsilon | None, BeforeValidator(as_text)] = None
    substitute: bool = False
    probe: bool = False
    kinds: Annotated[tuple[Literal["ann", "snn"], ...] | None, Field(min_length=1)] = None
    least_classes: Annotated[int, Field(ge=2)] = 2
    deterministic: bool = False
    until: Until | None = None
    sample: Annotated[int | None, Field(ge=1)] = None
    when: Literal["blind"] | None = None
    reads: Literal["inner"] | None = None

    def runs_on(self, kind: str, classes: int, stochastic: bool) -> bool:
        """Whether the entry is meant for such a network.

        Args:
            kind: The kind of the network, `ann` or `snn`.
            classes: The number of classes.
            stochastic: Whether the network draws.
        """
        fits = self.kinds is None or kind in self.kinds
        return fits and classes >= self.least_classes and not (stochastic and self.deterministic)

    @property
    def slug(self) -> str:
        """The label in the form of the column `attack` in records."""
        return slug(self.label)

    @property
    def runs(self) -> list[tuple[str, str]]:
        """The labels and the attacks that the entry runs: one, or one for each round.

        Examples:
            >>> Entry(label="Square", attack="square", sample=64).runs
            [('Square sample', 'square'), ('Square', 'square')]
        """
        if self.until is not None:
            return rounds_of(self.label, self.attack, self.until.most)
        first = [] if self.sample is None else [(f"{self.label} sample", self.attack)]
        return [*first, (self.label, self.attack)]

    @model_validator(mode="after")
    def _conditional(self) -> Entry:
        if self.reads is not None and self.when is None:
            raise ValueError(
                "reads: the layer is looked for where it is needed only: add when: blind"
            )
        if self.when is not None and (self.probe or self.substitute):
            other = "a probe" if self.probe else "a substitute"
            raise ValueError(f"when: an entry with {other} always runs: drop one")
        return self

    @model_validator(mode="after")
    def _repeatable(self) -> Entry:
        if self.sample is not None and (self.probe or self.until is not None):
            other = "probe" if self.probe else "until"
            raise ValueError(f"sample: an entry with {other} attacks all survivors: drop one")
        if self.until is None:
            return self
        if self.probe:
            raise ValueError("until: a probe runs once: drop one")
        if steps_in(self.attack) is None:
            raise ValueError(
                f"until doubles the steps of an attack, and {self.attack} names none: "
                "write steps=400 behind its name"
            )
        return self
