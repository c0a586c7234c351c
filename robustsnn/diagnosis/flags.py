"""The flags of a run: the findings that speak against believing its numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from robustsnn.common import wording
from robustsnn.common.epsilon import parse_epsilon
from robustsnn.common.kinds import ENERGY
from robustsnn.common.statistics import binomial_tail
from robustsnn.diagnosis.finding import MARGIN, MOST_ZERO_GRADIENTS, Finding, Severity
from robustsnn.diagnosis.stages import Stage
from robustsnn.records.schema import CLEAN, CONDITION, WORST_CASE, Condition

#: The Linf size at which no image survives an attack that works, in pixel units.
LARGE = 32 / 255
#: The level of the test whether a curve rises, below which it is not noise.
NOISE_LEVEL = 0.05
#: The flags about a single gradient. They matter less for a number that rests on several.
OF_ONE = ("zero-gradient", "nonfinite-gradient", "gradient-fidelity")


def flags_of(
    records: pd.DataFrame,
    results: pd.DataFrame,
    kinds: Mapping[str, str],
    classes: int,
    checks: Sequence[Finding] = (),
    stochastic: bool = False,
    cascade: bool = False,
    stages: Sequence[Stage] = (),
    findings: Sequence[Finding] = (),
    draws: int = 1,
) -> list[Finding]:
    """Every flag of one run.

    Args:
        records: The records, one row for each image and condition; in a cascade, only those that
            an attack made itself.
        results: Their summary, one row for each condition.
        kinds: The kind of each attack by its slug: `noise`, `fixed-epsilon`, `transfer`, ...
        classes: The number of classes; the accuracy of chance is one over it.
        checks: The findings of the preflight.
        stochastic: Whether the network draws.
        cascade: Whether each attack saw only the survivors of those before it. Its accuracy then
            includes what they broke, and does not say which attack is stronger.
        stages: The attacks of the run, as far as they are known.
        findings: The findings of the probe and on the stages, each with the rows that it concerns.
        draws: The draws that the attacks average a stochastic network over.
    """
    several = len({s.estimator for s in stages if s.white}) > 1
    flags = [_of_check(check, several) for check in checks]
    if stochastic and draws == 1:
        flags.append(_not_averaged())
    for finding in findings:
        if finding.severity != "note":
            flags.append(_of_measure(finding.about(*_rows_about(finding, results)), several))
    attacks = results[~results["attack"].isin([CLEAN, WORST_CASE])]
    flags += _per_attack(records, stages, cascade)
    if not cascade:
        flags += _sanity_order(attacks, kinds)
    flags += _curve(attacks, kinds, classes, records, cascade)
    return [flag for flag in flags if flag.flagged]


def _not_averaged() -> Finding:
    return Finding(
        "D8",
        "stochastic",
        True,
        "caution",
        "The network draws at every pass and the attacks do not average over draws: a stronger "
        "attack would.",
        1.0,
    )


def _of_check(check: Finding, several: bool) -> Finding:
    """The check; one about a single gradient is a caution if attacks follow others too."""
    footnote = several and check.slug in OF_ONE
    return dataclasses.replace(check, severity="caution") if footnote else check


def _of_measure(finding: Finding, several: bool) -> Finding:
    """The finding; one about a single gradient is invalid if attacks follow no other."""
    alone = not several and finding.slug in OF_ONE
    return dataclasses.replace(finding, severity="invalid") if alone else finding


def _flag(
    id: str,
    slug: str,
    severity: Severity,
    sentence: str,
    evidence: float,
    rows: tuple[Condition, ...],
) -> Finding:
    return Finding(id, slug, True, severity, sentence, evidence, rows=rows)


def _rows_about(finding: Finding, results: pd.DataFrame) -> tuple[Condition, ...]:
    """The conditions in `results.csv` that a finding concerns; empty for all of them."""
    if not finding.rows or finding.rows[0].attack:
        return finding.rows
    (about,) = finding.rows
    return tuple(key for key in _conditions(results) if key[1:] == about[1:])


def by_row(flags: Sequence[Finding], results: pd.DataFrame) -> dict[Condition, list[str]]:
    """The slugs of the flags in each row of `results.csv`.

    Args:
        flags: The flags of the run.
        results: The rows, with their `attack`, `norm` and `epsilon`.
    """
    found: dict[Condition, list[str]] = {}
    for key in _conditions(results):
        about = [f.slug for f in flags if not f.rows or key in f.rows]
        found[key] = list(dict.fromkeys(about))
    return found


def _conditions(frame: pd.DataFrame) -> list[Condition]:
    columns = (frame["attack"], frame["norm"], frame["epsilon"])
    return [Condition(str(a), str(n), str(e)) for a, n, e in zip(*columns, strict=True)]


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def _title(key: Condition) -> str:
    return f"{wording.attack(key[0])} at {wording.threat(key[1], key[2])}"


def _per_attack(
    records: pd.DataFrame, stages: Sequence[Stage] = (), cascade: bool = False
) -> list[Finding]:
    flags = []
    groups = list(records.groupby(CONDITION, sort=False))
    still = {_key(group): _zero_rate(rows) for group, rows in groups}
    for group, rows in groups:
        key = _key(group)
        severity = _of_several(key, still, stages, cascade)
        zero = still[key]
        if zero is not None and zero > MOST_ZERO_GRADIENTS and severity:
            flags.append(
                _flag(
                    "D1",
                    "zero-gradient",
                    severity,
                    f"{_title(key)}: {zero:.1%} of the gradients were all zero, so the attack "
                    "stood still; use another estimator.",
                    zero,
                    (key,),
                )
            )
        bad = int(rows["nonfinite_grad"].sum())
        if bad:
            flags.append(
                _flag(
                    "D1",
                    "nonfinite-gradient",
                    severity or "caution",
                    f"{_title(key)}: {bad} gradients held NaN or infinity, taken as zero there.",
                    float(bad),
                    (key,),
                )
            )
        outside = int(rows["projected"].sum())
        if outside:
            flags.append(
                _flag(
                    "D14",
                    "projected",
                    "caution",
                    f"{_title(key)}: {wording.count(outside, 'proposal')} lay outside the ball or "
                    "the pixel range and were projected before they were judged.",
                    float(outside),
                    (key,),
                )
            )
        silent = int((rows["prediction"] < 0).sum())
        if silent:
            flags.append(
                _flag(
                    "D10",
                    "nonfinite-logits",
                    "caution",
                    f"{_title(key)}: the logits of {wording.count(silent, 'image')} were not "
                    "finite, counted as wrong.",
                    float(silent),
                    (key,),
                )
            )
    return flags


def _key(group: Any) -> Condition:
    attack, norm, epsilon = map(str, group)
    return Condition(attack, norm, epsilon)


def _zero_rate(rows: pd.DataFrame) -> float | None:
    """The share of an attack's gradients that were all zero; None if it took none."""
    backward = int(rows["backward_passes"].sum())
    return int(rows["zero_grad"].sum()) / backward if backward else None


def _of_several(
    key: Condition, still: Mapping[Condition, float | None], stages: Sequence[Stage], cascade: bool
) -> Severity | None:
    """The severity of a failed gradient of an attack; None if it is not worth a flag.

    The number is invalid unless another attack of that norm and size has a gradient that is not
    all zero. If one has, the failure is a caution; in a cascade then, it is one only for the
    network's own derivative. It is a caution too for an attack that aims at no class.
    """
    about = {stage.condition: stage for stage in stages}
    stage = about.get(key)
    if stage is not None and stage.kind == ENERGY:
        return "caution"
    moving = [
        k
        for k, other in about.items()
        if stage is not None
        and other.size == stage.size
        and other.white
        and (zero := still.get(k)) is not None
        and zero <= MOST_ZERO_GRADIENTS
    ]
    if not moving or key in moving:
        return "invalid"
    assert stage is not None
    return None if cascade and not stage.own else "caution"


def _sanity_order(attacks: pd.DataFrame, kinds: Mapping[str, str]) -> list[Finding]:
    """D6 and D7: noise must not beat one step, one step not many, nor a black box a white box."""

    def steps(row: Mapping[str, Any]) -> int:
        return int(row["steps"]) if str(row["steps"]) else 0

    def noise(row: Mapping[str, Any]) -> bool:
        return kinds.get(row["attack"]) == "noise"

    def white(row: Mapping[str, Any]) -> bool:
        return kinds.get(row["attack"]) not in ("noise", "transfer", "none", ENERGY, None)

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
                # FGSM crafted on another network is compared with FGSM crafted on this one.
                rivals = [
                    r for r in rows if stronger(r) and (not black(weak) or steps(r) == steps(weak))
                ]
                for strong in rivals:
                    gap = float(strong["accuracy"] - weak["accuracy"])
                    if gap > MARGIN:
                        ours = Condition(str(strong["attack"]), str(norm), str(epsilon))
                        theirs = Condition(str(weak["attack"]), str(norm), str(epsilon))
                        flags.append(
                            _flag(
                                "D7" if slug == "black-box-beats-white-box" else "D6",
                                slug,
                                "invalid",
                                f"{_title(theirs)} leaves {wording.percent(weak['accuracy'])}, "
                                f"{wording.attack(ours[0])} {wording.percent(strong['accuracy'])}: "
                                f"{meaning}, a sign of masked gradients.",
                                gap,
                                (ours,),
                            )
                        )
    return flags


def _rose(
    records: pd.DataFrame, smaller: Condition, larger: Condition, net: int, cascade: bool
) -> bool:
    """Whether more images are right at a larger size than noise explains, by a sign test.

    An attack that draws may lose an image at a larger size and find it at a smaller one. What
    counts are the images that are right at one size alone; of two of a hundred nothing follows.

    Args:
        records: The records of the attack.
        smaller: The smaller size.
        larger: The larger size.
        net: By how many images more are right at the larger size.
        cascade: Whether the records lack images that other attacks broke; all that rose then
            counts, as if no image had fallen at the larger size alone.
    """
    if cascade:
        return binomial_tail(net, net, 0.5) < NOISE_LEVEL

    def right(condition: Condition) -> pd.Series[bool]:
        same = (records[CONDITION].astype(str) == list(condition)).all(axis=1)
        rows = records[same].set_index("image_id")
        return rows["prediction"] == rows["label"]

    both = pd.DataFrame({"smaller": right(smaller), "larger": right(larger)}).dropna().astype(bool)
    gained = int((both["larger"] & ~both["smaller"]).sum())
    lost = int((both["smaller"] & ~both["larger"]).sum())
    return gained > 0 and binomial_tail(gained, gained + lost, 0.5) < NOISE_LEVEL


def _net(before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
    """By how many images more are right in one row of results than in another."""
    return round(float(after["accuracy"] - before["accuracy"]) * int(after["samples"]))


def _curve(
    attacks: pd.DataFrame,
    kinds: Mapping[str, str],
    classes: int,
    records: pd.DataFrame,
    cascade: bool,
) -> list[Finding]:
    flags = []
    for (attack, norm), some in attacks.groupby(["attack", "norm"], sort=False):
        if some["epsilon"].nunique() < 3 or kinds.get(str(attack)) in ("noise", ENERGY):
            continue
        some = some.assign(radius=[parse_epsilon(str(e)) for e in some["epsilon"]])
        rows = _rows(some.sort_values("radius"))
        keys = [Condition(str(attack), str(norm), str(r["epsilon"])) for r in rows]
        rises = [
            (float(after["accuracy"] - before["accuracy"]), key)
            for before, after, last, key in zip(rows, rows[1:], keys, keys[1:], strict=False)
            if after["accuracy"] - before["accuracy"] > MARGIN
            and _rose(records, last, key, _net(before, after), cascade)
        ]
        if rises:
            largest, key = max(rises)
            flags.append(
                _flag(
                    "D6",
                    "curve-not-monotone",
                    "invalid",
                    f"{_title(key)} leaves {100 * largest:.1f} points more than the next smaller "
                    "size: the attack does not find what is in its ball.",
                    largest,
                    tuple(key for _, key in rises),
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
                _flag(
                    "D6",
                    "curve-above-chance",
                    "invalid" if large else "caution",
                    f"{_title(keys[-1])} still leaves {wording.percent(last['accuracy'])}, above "
                    f"chance ({wording.percent(1 / classes)}): {meaning}.",
                    float(last["accuracy"]),
                    (keys[-1],),
                )
            )
    return flags
