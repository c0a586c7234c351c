"""Suites: named, versioned lists of attacks, gradient estimators and budgets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from robustsnn.common.content import files_in, folder
from robustsnn.common.epsilon import norm as norm_named
from robustsnn.common.epsilon import parse_epsilon, resolve_epsilon, size_of, sizes
from robustsnn.common.fields import first_of, said_of
from robustsnn.common.files import expanded
from robustsnn.common.kinds import BEST, NORMS
from robustsnn.common.strict_yaml import line_of, read_yaml
from robustsnn.common.wording import slug
from robustsnn.errors import InputError, unknown
from robustsnn.evaluation.digests import suite_digest
from robustsnn.evaluation.entry import (
    LONGEST_LABEL,
    NETWORKS,
    Entry,
    Epsilon,
    Strict,
    as_text,
    check_attack,
)

#: The most draws on which an image is judged, and the most entries and sizes of a suite.
MOST_DRAWS, MOST_ENTRIES, MOST_SIZES = 10_000, 1000, 1000
#: From so many sizes on, a suite is a curve unless it says otherwise.
CURVE = 3


def _epsilons(value: Any) -> Any:
    several = isinstance(value, list | tuple)
    return [as_text(v) for v in value] if several else [as_text(value)]


class Suite(Strict):
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
        curve: Whether each size keeps what the same attack found at smaller ones, so that accuracy
            cannot rise with epsilon; by default for three sizes or more outside a cascade.
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
    curve: bool = False
    draws: Annotated[int, Field(ge=1, le=MOST_DRAWS)] = 1
    energy: bool = False
    entries: Annotated[tuple[Entry, ...], Field(min_length=1, max_length=MOST_ENTRIES)]

    @model_validator(mode="before")
    @classmethod
    def _several_sizes(cls, given: Any) -> Any:
        """Several sizes make a curve, if the suite does not say whether they do."""
        if not isinstance(given, Mapping) or "curve" in given:
            return given
        sizes = given.get("epsilon")
        several = isinstance(sizes, list | tuple) and len(sizes) >= CURVE
        return {**given, "curve": several and given.get("cascade") is not True}

    @model_validator(mode="after")
    def _consistent(self) -> Suite:
        if len({size_of(e) for e in self.epsilon}) < len(self.epsilon):
            raise ValueError("epsilon: the same size is given twice: drop one")
        for kind in NETWORKS:
            entries = [e for e in self.entries if e.kinds is None or kind in e.kinds]
            slugs = [slug(label) for entry in entries for label, _ in entry.runs]
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
        if self.cascade and self.curve:
            raise ValueError("curve: a cascade attacks the survivors of each size anew: drop one")
        for place, entry in enumerate(self.entries):
            rounds = [
                name for name in ("until", "sample", "when") if getattr(entry, name) is not None
            ]
            if rounds and not self.cascade:
                raise ValueError(
                    f"entries.{place}: {rounds[0]} works in a cascade only: add cascade: true"
                )
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
            del fields["curve"]
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
        check_attack(spec)
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


def _validated(document: dict[str, Any], where: str, path: Path | None = None) -> Suite:
    try:
        return Suite.model_validate(document)
    except ValidationError as error:
        first = first_of(error)
        location = [p for p in first["loc"] if isinstance(p, str | int)]
        field = ".".join(map(str, location)) or "suite"
        line = line_of(path, location) if path is not None else ""
        raise InputError(f"{where}{line}: {field}: {said_of(error, Suite)}.") from None


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
