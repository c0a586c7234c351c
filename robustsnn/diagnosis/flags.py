"""Records to flags: what speaks against believing a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from robustsnn.common import wording as formats
from robustsnn.common.epsilon import parse_epsilon
from robustsnn.diagnosis.finding import Finding, plain
from robustsnn.diagnosis.stages import Stage
from robustsnn.records.schema import CLEAN, WORST_CASE, Condition

#: Fraction of backward passes that may be all zero.
MOST_ZERO_GRADIENTS = 0.05
#: Accuracy by which an attack may be beaten by a weaker one before it is said.
MARGIN = 0.005
#: L-inf size at which an attack that works leaves nothing.
LARGE = 32 / 255
#: Checks that a number survives with a footnote.
CAUTIONS = ("ties", "neuron-modes")
#: What concerns attacks by one gradient only, and a number that stands on several less.
OF_ONE = ("zero-gradient", "nonfinite-gradient", "gradient-fidelity")


@dataclass(frozen=True)
class Flag:
    """What speaks against a number.

    Args:
        flag: Its slug.
        severity: `invalid`: the number should not be quoted; `caution`: it needs a footnote.
        sentence: For readers.
        evidence: The number behind it.
        rows: The (attack, norm, epsilon) it concerns, none for all.
        id: Of the diagnostic: `D1` to `D14`, `I1` to `I6`, or `AA`.
        details: More numbers, ready for JSON.
    """

    flag: str
    severity: str
    sentence: str
    evidence: float
    rows: tuple[Condition, ...] = field(default=())
    id: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """As it stands in `manifest.json`."""
        found = asdict(self)
        found["rows"] = [list(key) for key in self.rows]
        found["evidence"] = plain(self.evidence)
        found["details"] = plain(dict(self.details))
        return found


def diagnose(
    records: pd.DataFrame,
    results: pd.DataFrame,
    kinds: Mapping[str, str],
    classes: int,
    preflight: Sequence[Mapping[str, Any]] = (),
    stochastic: bool = False,
    cascade: bool = False,
    stages: Sequence[Stage] = (),
    findings: Sequence[tuple[Condition | None, Finding]] = (),
    draws: int = 1,
) -> list[Flag]:
    """Every flag of one run.

    Args:
        records: One row per image and threat.
        results: Their summary, one row per threat.
        kinds: The kind of each attack by its slug: `noise`, `fixed-epsilon`, `transfer`, ...
        classes: Number of classes; chance is one over it.
        preflight: The checks made before.
        stochastic: Whether the network draws.
        cascade: Whether each attack saw only what the ones before it left: its accuracy then
            includes what they broke, and says nothing of whether it is the stronger one.
        stages: What the attacks were, as far as it is known.
        findings: Of the probe and of the stages, with the row that each is about: None for all,
            an empty attack for all of that norm and size.
        draws: What the attacks average a stochastic network over.
    """
    several = len({s.estimator for s in stages if s.white}) > 1
    flags = []
    for check in preflight:
        if not check["passed"]:
            slug = str(check["check"])
            flags.append(
                Flag(
                    slug,
                    "caution" if slug in CAUTIONS or (several and slug in OF_ONE) else "invalid",
                    str(check["sentence"]),
                    float(check["evidence"]),
                    id=str(check.get("id") or ""),
                    details=check.get("details") or {},
                )
            )
    if stochastic and draws == 1:
        flags.append(_not_averaged())
    for about, finding in findings:
        if finding.flagged and finding.severity != "note":
            flags.append(_flag(finding, _rows_about(about, results), several))
    attacks = results[~results["attack"].isin([CLEAN, WORST_CASE])]
    flags += _per_attack(records, stages, cascade)
    if not cascade:
        flags += _sanity_order(attacks, kinds)
    flags += _curve(attacks, kinds, classes)
    return flags


def _not_averaged() -> Flag:
    return Flag(
        "stochastic",
        "caution",
        "The network draws at every pass and the attacks do not average over draws: a stronger "
        "attack would.",
        1.0,
        id="D8",
    )


def _flag(finding: Finding, rows: tuple[Condition, ...], several: bool) -> Flag:
    severity = finding.severity
    if finding.slug in OF_ONE and not several:
        # Where nothing but this gradient was followed, its fault is that of the number.
        severity = "invalid"
    return Flag(
        finding.slug,
        severity,
        finding.sentence,
        finding.evidence,
        rows,
        finding.id,
        finding.details,
    )


def _rows_about(about: Condition | None, results: pd.DataFrame) -> tuple[Condition, ...]:
    if about is None or about[0]:
        return () if about is None else (about,)
    return tuple(key for key in _keys(results) if key[1:] == about[1:])


def by_row(flags: Sequence[Flag], results: pd.DataFrame) -> dict[Condition, list[str]]:
    """The slugs that stand in each row of `results.csv`."""
    found: dict[Condition, list[str]] = {}
    for key in _keys(results):
        about = [f.flag for f in flags if not f.rows or key in f.rows]
        found[key] = list(dict.fromkeys(about))
    return found


def _keys(frame: pd.DataFrame) -> list[Condition]:
    columns = (frame["attack"], frame["norm"], frame["epsilon"])
    return [Condition(str(a), str(n), str(e)) for a, n, e in zip(*columns, strict=True)]


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def _title(key: Condition) -> str:
    return f"{formats.attack(key[0])} at {formats.threat(key[1], key[2])}"


def _per_attack(
    records: pd.DataFrame, stages: Sequence[Stage] = (), cascade: bool = False
) -> list[Flag]:
    flags = []
    groups = list(records.groupby(["attack", "norm", "epsilon"], sort=False))
    still = {_key(group): _zero_rate(rows) for group, rows in groups}
    for group, rows in groups:
        key = _key(group)
        severity = _of_several(key, still, stages, cascade)
        zero = still[key]
        if zero is not None and zero > MOST_ZERO_GRADIENTS and severity:
            flags.append(
                Flag(
                    "zero-gradient",
                    severity,
                    f"{_title(key)}: {zero:.1%} of the gradients were all zero, so the attack "
                    "stood still; use another estimator.",
                    zero,
                    (key,),
                    "D1",
                )
            )
        bad = int(rows["nonfinite_grad"].sum())
        if bad:
            flags.append(
                Flag(
                    "nonfinite-gradient",
                    severity or "caution",
                    f"{_title(key)}: {bad} gradients held NaN or infinity, taken as zero there.",
                    float(bad),
                    (key,),
                    "D1",
                )
            )
        left = int(rows["projected"].sum())
        if left:
            flags.append(
                Flag(
                    "projected",
                    "caution",
                    f"{_title(key)}: {formats.count(left, 'proposal')} lay outside the ball or the "
                    "pixel range and were projected before they were judged.",
                    float(left),
                    (key,),
                    "D14",
                )
            )
        silent = int((rows["prediction"] < 0).sum())
        if silent:
            flags.append(
                Flag(
                    "nonfinite-logits",
                    "caution",
                    f"{_title(key)}: the logits of {formats.count(silent, 'image')} were not "
                    "finite, counted as wrong.",
                    float(silent),
                    (key,),
                    "D10",
                )
            )
    return flags


def _key(group: Any) -> Condition:
    attack, norm, epsilon = map(str, group)
    return Condition(attack, norm, epsilon)


def _zero_rate(rows: pd.DataFrame) -> float | None:
    """Share of an attack's gradients that were all zero; None if it took none."""
    backward = int(rows["backward_passes"].sum())
    return int(rows["zero_grad"].sum()) / backward if backward else None


def _of_several(
    key: Condition, still: Mapping[Condition, float | None], stages: Sequence[Stage], cascade: bool
) -> str | None:
    """How much it matters that an attack's gradient fails, where others of its size move.

    In a cascade only that of the network's own derivative is worth a flag then.
    """
    about = {stage.key: stage for stage in stages}
    stage = about.get(key)
    moving = [
        k
        for k, other in about.items()
        if stage is not None
        and other.line == stage.line
        and other.white
        and (zero := still.get(k)) is not None
        and zero <= MOST_ZERO_GRADIENTS
    ]
    if not moving or key in moving:
        return "invalid"
    assert stage is not None
    return None if cascade and not stage.own else "caution"


def _sanity_order(attacks: pd.DataFrame, kinds: Mapping[str, str]) -> list[Flag]:
    """Noise must not beat one step, one step not many, black box not white box."""

    def steps(row: Mapping[str, Any]) -> int:
        return int(row["steps"]) if str(row["steps"]) else 0

    def noise(row: Mapping[str, Any]) -> bool:
        return kinds.get(row["attack"]) == "noise"

    def white(row: Mapping[str, Any]) -> bool:
        return kinds.get(row["attack"]) not in ("noise", "transfer", "none", None)

    def black(row: Mapping[str, Any]) -> bool:
        return kinds.get(row["attack"]) == "transfer"

    Test = Callable[[Mapping[str, Any]], bool]
    orders: list[tuple[str, Test, Test, str]] = [
        (
            "noise-beats-gradient",
            noise,
            lambda r: white(r) and steps(r) >= 1,
            "undirected noise hurts more than an attack that follows the gradient",
        ),
        (
            "one-step-beats-many",
            lambda r: white(r) and steps(r) == 1,
            lambda r: white(r) and steps(r) > 1,
            "one step hurts more than many",
        ),
        (
            "black-box-beats-white-box",
            black,
            lambda r: white(r) and steps(r) >= 1,
            "images made on another network hurt more than those made on this one",
        ),
    ]
    flags = []
    for (norm, epsilon), some in attacks.groupby(["norm", "epsilon"], sort=False):
        if parse_epsilon(str(epsilon)) == 0:
            continue
        rows: list[dict[str, Any]] = _rows(some)
        for slug, weaker, stronger, meaning in orders:
            for weak in (r for r in rows if weaker(r)):
                # FGSM made elsewhere is to be compared with FGSM made here.
                rivals = [
                    r for r in rows if stronger(r) and (not black(weak) or steps(r) == steps(weak))
                ]
                for strong in rivals:
                    gap = float(strong["accuracy"] - weak["accuracy"])
                    if gap > MARGIN:
                        ours = Condition(str(strong["attack"]), str(norm), str(epsilon))
                        theirs = Condition(str(weak["attack"]), str(norm), str(epsilon))
                        flags.append(
                            Flag(
                                slug,
                                "invalid",
                                f"{_title(theirs)} leaves {formats.percent(weak['accuracy'])}, "
                                f"{formats.attack(ours[0])} {formats.percent(strong['accuracy'])}: "
                                f"{meaning}, a sign of masked gradients.",
                                gap,
                                (ours,),
                                "D7" if slug == "black-box-beats-white-box" else "D6",
                            )
                        )
    return flags


def _curve(attacks: pd.DataFrame, kinds: Mapping[str, str], classes: int) -> list[Flag]:
    flags = []
    for (attack, norm), some in attacks.groupby(["attack", "norm"], sort=False):
        if some["epsilon"].nunique() < 3 or kinds.get(str(attack)) == "noise":
            continue
        some = some.assign(radius=[parse_epsilon(str(e)) for e in some["epsilon"]])
        rows = _rows(some.sort_values("radius"))
        keys = [Condition(str(attack), str(norm), str(r["epsilon"])) for r in rows]
        rises = [
            (float(after["accuracy"] - before["accuracy"]), key)
            for before, after, key in zip(rows, rows[1:], keys[1:], strict=False)
            if after["accuracy"] - before["accuracy"] > MARGIN
        ]
        if rises:
            largest, key = max(rises)
            flags.append(
                Flag(
                    "curve-not-monotone",
                    "invalid",
                    f"{_title(key)} leaves {100 * largest:.1f} points more than the next smaller "
                    "size: the attack does not find what is in its ball.",
                    largest,
                    tuple(key for _, key in rises),
                    "D6",
                )
            )
        last = rows[-1]
        if float(last["ci_low"]) > 1 / classes:
            large = norm == "Linf" and float(last["radius"]) >= LARGE
            meaning = (
                "the attack is too weak or its gradients are masked"
                if large
                else "the curve ends before it says whether the attack works; add larger sizes"
            )
            flags.append(
                Flag(
                    "curve-above-chance",
                    "invalid" if large else "caution",
                    f"{_title(keys[-1])} still leaves {formats.percent(last['accuracy'])}, above "
                    f"chance ({formats.percent(1 / classes)}): {meaning}.",
                    float(last["accuracy"]),
                    (keys[-1],),
                    "D6",
                )
            )
    return flags
