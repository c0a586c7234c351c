"""Suites: named, versioned lists of attacks, gradient estimators and budgets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from robustsnn.adversary.catalogue import attack_names
from robustsnn.common.content import files_in, folder
from robustsnn.common.epsilon import norm as norm_named
from robustsnn.common.epsilon import parse_epsilon, resolve_epsilon, size_of, sizes
from robustsnn.common.files import expanded
from robustsnn.common.kinds import BEST, NORMS
from robustsnn.common.strict_yaml import line_of, read_yaml
from robustsnn.common.wording import slug
from robustsnn.errors import InputError, unknown
from robustsnn.evaluation.identity import suite_digest
from robustsnn.records.schema import CLEAN, WORST_CASE

RESERVED = (CLEAN, WORST_CASE)
LONGEST_LABEL = 60
#: The most draws on which an image is judged, and the most entries and sizes of a suite.
MOST_DRAWS, MOST_ENTRIES, MOST_SIZES = 10_000, 1000, 1000
#: The kinds of networks: without spikes, and with spikes.
NETWORKS = ("ann", "snn")


def _text(value: Any) -> Any:
    # YAML reads 0.031 and 0 as numbers; epsilon is kept as text.
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _epsilons(value: Any) -> Any:
    several = isinstance(value, list | tuple)
    return [_text(v) for v in value] if several else [_text(value)]


def _valid_epsilon(text: str) -> str:
    try:
        size_of(text)
    except InputError as error:
        raise ValueError(str(error)) from None
    return text


def _valid_attack(spec: str) -> str:
    try:
        _check_attack(spec)
    except InputError as error:
        raise ValueError(str(error)) from None
    return spec


def _valid_label(label: str) -> str:
    if not slug(label) or slug(label) in RESERVED:
        raise ValueError(f"the label {label!r} is reserved or empty: choose another")
    return label


Epsilon = Annotated[str, AfterValidator(_valid_epsilon)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Entry(_Strict):
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
    """

    label: Annotated[str, Field(max_length=LONGEST_LABEL), AfterValidator(_valid_label)]
    attack: Annotated[str, AfterValidator(_valid_attack)]
    estimator: str = "bptt"
    norm: Literal["Linf", "L2"] | None = None
    epsilon: Annotated[Epsilon | None, BeforeValidator(_text)] = None
    substitute: bool = False
    probe: bool = False
    kinds: Annotated[tuple[Literal["ann", "snn"], ...] | None, Field(min_length=1)] = None
    least_classes: Annotated[int, Field(ge=2)] = 2
    deterministic: bool = False

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


class Suite(_Strict):
    """What is run on a model; the clean images are always part of it.

    Attributes:
        name: The name of the suite.
        version: The version of the suite.
        description: What the suite is for.
        norm: The norm, `Linf` or `L2`.
        epsilon: One size or several.
        fixed: Whether the suite refuses another norm or epsilon.
        attack_misclassified: Whether images that are wrong when clean are attacked too, as in
            papers; an attack can then turn a wrong image into a right one.
        cascade: Whether each entry attacks only the survivors of those before it, at each size
            anew.
        draws: The number of fresh draws on which each image of a stochastic network is judged.
        energy: Whether the synaptic operations of each clean image and each proposal are counted,
            so that the worst-case energy is known.
        entries: The attacks.

    Examples:
        >>> entry = {"label": "FGSM", "attack": "fgsm"}
        >>> Suite(name="mine", epsilon="8/255", entries=[entry]).epsilon
        ('8/255',)
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    version: Annotated[int, Field(ge=1, lt=2**31)] = 1
    description: str = ""
    norm: Literal["Linf", "L2"] = "Linf"
    epsilon: Annotated[
        tuple[Epsilon, ...],
        BeforeValidator(_epsilons),
        Field(min_length=1, max_length=MOST_SIZES),
    ]
    fixed: bool = False
    attack_misclassified: bool = False
    cascade: bool = False
    draws: Annotated[int, Field(ge=1, le=MOST_DRAWS)] = 1
    energy: bool = False
    entries: Annotated[tuple[Entry, ...], Field(min_length=1, max_length=MOST_ENTRIES)]

    @model_validator(mode="after")
    def _consistent(self) -> Suite:
        if len({size_of(e) for e in self.epsilon}) < len(self.epsilon):
            raise ValueError("epsilon: the same size is given twice: drop one")
        for kind in NETWORKS:
            slugs = [e.slug for e in self.entries if e.kinds is None or kind in e.kinds]
            for one in slugs:
                if slugs.count(one) > 1:
                    raise ValueError(
                        f"entries: two have the label {one!r}: give them different ones"
                    )
        if self.cascade and self.attack_misclassified:
            raise ValueError(
                "cascade: it attacks what is still right, attack_misclassified what is wrong: "
                "drop one"
            )
        for place, entry in enumerate(self.entries):
            self._check_probing(place, entry)
        return self

    def _check_probing(self, place: int, entry: Entry) -> None:
        """Refuse a probe, or the estimator `best`, that could have no effect."""
        best = entry.estimator.strip() == BEST
        where = f"entries.{place}"
        if not self.cascade and (entry.probe or best):
            asked = "probe" if entry.probe else f"estimator {BEST}"
            raise ValueError(f"{where}: {asked} works in a cascade only: add cascade: true")
        if entry.probe and (best or entry.substitute):
            what = f"the estimator {BEST}" if best else "a substitute"
            raise ValueError(
                f"{where}: a probe ranks an estimator on the network itself and cannot use {what}"
            )
        if not best:
            return
        if entry.substitute:
            raise ValueError(
                f"{where}: {BEST} is an estimator for the network itself: name one for the "
                "substitute"
            )
        for kind in entry.kinds or NETWORKS:
            before = [
                e
                for e in self.entries[:place]
                if e.probe and e.runs_on(kind, entry.least_classes, not entry.deterministic)
            ]
            probed = {key for probe in before for key in self._written(probe)}
            for norm, epsilon in self._written(entry):
                if (norm, epsilon) not in probed:
                    raise ValueError(
                        f"{where}: no probe on an {kind.upper()} at {norm} {epsilon} comes before "
                        f"it to choose the {BEST} estimator by: add an entry with probe: true"
                    )

    def _written(self, entry: Entry) -> list[tuple[str, str]]:
        """The norms and sizes of an entry, with sizes as they were written."""
        sizes = self.epsilon if entry.epsilon is None else (entry.epsilon,)
        return [(entry.norm or self.norm, epsilon) for epsilon in sizes]

    def under(self, estimator: str) -> Suite:
        """The same attacks, all with one estimator.

        The suite gets another name, because its results are not those of the original suite.

        Args:
            estimator: The specification that takes the place of each entry's estimator.

        Examples:
            >>> load_suite("quick").under("bptr").name
            'quick-under-bptr'
        """
        fields = self.model_dump()
        # A user's own file is called by its name, wherever it lies.
        parts = [Path(p).stem if p.endswith(".py") else p for p in estimator.split(":")]
        fields["name"] = _short(f"{self.name}-under-{slug(' '.join(parts))}")
        for entry in fields["entries"]:
            # There is nothing to rank any more, so a probe becomes an attack like any other.
            entry |= {"estimator": estimator, "probe": False}
        return _validated(fields, f"--estimator {estimator}")

    def files(self) -> list[Path]:
        """The Python files that the entries name, in their order, each once."""
        named = [spec for e in self.entries for spec in (e.attack, e.estimator)]
        return list(dict.fromkeys(path for spec in named for path in files_in(spec)))

    def digest(self) -> str:
        """The identity of what is run: the sha256 of the canonical JSON."""
        return suite_digest(self.model_dump(mode="json", exclude={"description"}))

    def budgets(self, entry: Entry, values: int) -> list[tuple[str, str]]:
        """The norms and sizes of an entry.

        Args:
            entry: An entry of the suite.
            values: The number d of pixel values of one image, with which `0.031*sqrt(d)` becomes a
                number.
        """
        return [(norm, resolve_epsilon(e, values)) for norm, e in self._written(entry)]

    def at(self, norm: str | float | None = None, epsilon: Any = None) -> Suite:
        """The same suite in another norm or at other sizes.

        Args:
            norm: The norm, `Linf` or `L2`, inf or 2.
            epsilon: The size, a number or a text, or several of them.

        Raises:
            InputError: The suite is fixed, there is no such norm or size, or the norm changes and
                no size for it is given.

        Examples:
            >>> load_suite("quick").at(epsilon="2/255, 4/255").epsilon
            ('2/255', '4/255')
        """
        norm, epsilon = norm_named(norm), sizes(epsilon)
        if norm is None and epsilon is None:
            return self
        if self.fixed:
            asked = "--norm" if epsilon is None else "--epsilon"
            raise InputError(
                f"the suite {self.name} fixes its threat model ({self.norm} "
                f"{', '.join(self.epsilon)}): drop {asked}, or choose another suite."
            )
        if norm is not None and norm not in NORMS:
            raise unknown("norm", norm, NORMS)
        if norm not in (None, self.norm) and epsilon is None:
            raise InputError(
                f"--norm {norm} needs an epsilon too: that of {self.name} is for {self.norm}; "
                "add --epsilon."
            )
        if epsilon is not None:
            for part in epsilon.split(","):
                parse_epsilon(part)
        fields = self.model_dump()
        fields["norm"] = norm or self.norm
        if epsilon is not None:
            fields["epsilon"] = [part.strip() for part in epsilon.split(",")]
        return _validated(fields, f"--epsilon {epsilon}")


def load_suite(name_or_path: str | Path, *, allow_code: bool = False) -> Suite:
    """A suite by name or YAML file.

    Args:
        name_or_path: The name of a suite that ships, or the path of a YAML file.
        allow_code: Whether the Python files that the YAML file names, as attacks, estimators or
            surrogates, may be run when the suite is.

    Raises:
        InputError: There is no such suite, it is malformed (the message names line and field), or
            it names Python files and `allow_code` is not set.

    Examples:
        >>> load_suite("quick").norm
        'Linf'
    """
    text = str(name_or_path)
    path = expanded(text)
    if path.suffix in (".yaml", ".yml") or "/" in text:
        if not path.is_file():
            raise InputError(
                f"no suite file {text!r}: give the path of an existing YAML file, "
                f"or one of {', '.join(suite_names())}."
            )
    else:
        path = suite_path(text)
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise InputError(f"{path}: a suite is a mapping of fields to values.")
    suite = _validated(document, str(path), path)
    if (files := suite.files()) and not allow_code:
        raise InputError(
            f"{path} names Python files that would be run ({', '.join(map(str, files))}): look at "
            "them, then add --allow-code."
        )
    return suite


def suite_of(attacks: Sequence[str], epsilon: str = "8/255", norm: str = "Linf") -> Suite:
    """A suite of attacks that are named one by one, each labelled by its own specification.

    Args:
        attacks: The specifications of the attacks.
        epsilon: The size, or several separated by commas.
        norm: The norm, `Linf` or `L2`.

    Raises:
        InputError: An attack, the norm or a size does not exist, or an attack is given twice.

    Examples:
        >>> [entry.label for entry in suite_of(["fgsm", "pgd:steps=20"]).entries]
        ['fgsm', 'pgd-20']
    """
    norm, epsilon = norm_named(norm) or "Linf", sizes(epsilon) or "8/255"
    entries = []
    for spec in attacks:
        _check_attack(spec)
        head, _, rest = spec.partition(":")
        label = slug(f"{Path(head).stem if head.endswith('.py') else head}-{rest}")
        entries.append(
            {
                "label": _short(label.replace("-steps-", "-", 1)),
                "attack": spec,
                "substitute": head == "transfer",
            }
        )
    fields = {"name": "custom", "norm": norm, "epsilon": epsilon.split(","), "entries": entries}
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    for part in epsilon.split(","):
        parse_epsilon(part)
    return _validated(fields, "--attack")


def _short(label: str) -> str:
    """A label that is short enough; it differs for different labels."""
    if len(label) <= LONGEST_LABEL:
        return label
    digest = hashlib.sha256(label.encode()).hexdigest()[:8]
    return f"{label[: LONGEST_LABEL - 9].rstrip('-.')}-{digest}"


def _check_attack(spec: str) -> None:
    """Refuse an attack that does not exist, without loading an attack that does."""
    head = spec.strip().partition(":")[0].strip()
    if head.endswith(".py") or "/" in head:
        if not Path(head).expanduser().is_file():
            raise InputError(f"no attack file {head!r}: give the path of an existing .py file.")
    elif head not in attack_names():
        raise unknown("attack", head, attack_names())


def _validated(document: dict[str, Any], where: str, path: Path | None = None) -> Suite:
    try:
        return Suite.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        location = [p for p in first["loc"] if isinstance(p, str | int)]
        field = ".".join(map(str, location)) or "suite"
        line = line_of(path, location) if path is not None else ""
        message = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
        raise InputError(f"{where}{line}: {field}: {message}.") from None


def suite_names() -> list[str]:
    """The names of the suites that ship."""
    return sorted(p.stem for p in (folder("attacks") / "suites").glob("*.yaml"))


def suite_path(name: str) -> Path:
    """The YAML file of a suite that ships.

    Raises:
        InputError: There is no suite of that name.
    """
    if name not in suite_names():
        raise unknown("suite", name, suite_names())
    return folder("attacks") / "suites" / f"{name}.yaml"
