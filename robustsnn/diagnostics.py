"""Records to flags: what speaks against believing a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from robustsnn import formats
from robustsnn.epsilon import parse_epsilon
from robustsnn.formats import CLEAN, WORST_CASE

#: Fraction of backward passes that may be all zero.
MOST_ZERO_GRADIENTS = 0.05
#: Accuracy by which an attack may be beaten by a weaker one before it is said.
MARGIN = 0.005
#: L-inf size at which an attack that works leaves nothing.
LARGE = 32 / 255

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Flag:
    """One finding; `rows` are the (attack, norm, epsilon) it concerns, none for all."""

    flag: str
    severity: str
    sentence: str
    evidence: float
    rows: tuple[Key, ...] = field(default=())

    def row(self) -> dict[str, Any]:
        """As it stands in `manifest.json`."""
        found = asdict(self)
        found["rows"] = [list(key) for key in self.rows]
        return found


def diagnose(
    records: pd.DataFrame,
    results: pd.DataFrame,
    kinds: Mapping[str, str],
    classes: int,
    preflight: Sequence[Mapping[str, Any]] = (),
    stochastic: bool = False,
) -> list[Flag]:
    """Every finding about one run.

    Args:
        records: One row per image and threat.
        results: Their summary, one row per threat.
        kinds: The kind of each attack by its slug: `noise`, `fixed-epsilon`, `transfer`, ...
        classes: Number of classes; chance is one over it.
        preflight: The checks made before.
        stochastic: Whether the network draws.
    """
    flags = [
        Flag(str(check["check"]), "invalid", str(check["sentence"]), float(check["evidence"]))
        for check in preflight
        if not check["passed"]
    ]
    if stochastic:
        flags.append(
            Flag(
                "stochastic",
                "caution",
                "The network draws at every pass and the attacks do not average over draws: a "
                "stronger attack would.",
                1.0,
            )
        )
    attacks = results[~results["attack"].isin([CLEAN, WORST_CASE])]
    flags += _per_attack(records)
    flags += _sanity_order(attacks, kinds)
    flags += _curve(attacks, kinds, classes)
    return flags


def by_row(flags: Sequence[Flag], results: pd.DataFrame) -> dict[Key, list[str]]:
    """The slugs that stand in each row of `results.csv`."""
    found: dict[Key, list[str]] = {}
    for key in _keys(results):
        about = [f.flag for f in flags if not f.rows or key in f.rows]
        found[key] = list(dict.fromkeys(about))
    return found


def _keys(frame: pd.DataFrame) -> list[Key]:
    columns = (frame["attack"], frame["norm"], frame["epsilon"])
    return [(str(a), str(n), str(e)) for a, n, e in zip(*columns, strict=True)]


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def _title(key: Key) -> str:
    return f"{formats.attack(key[0])} at {formats.threat(key[1], key[2])}"


def _per_attack(records: pd.DataFrame) -> list[Flag]:
    flags = []
    for group, rows in records.groupby(["attack", "norm", "epsilon"], sort=False):
        attack, norm, epsilon = map(str, group)
        key = (attack, norm, epsilon)
        backward = int(rows["backward_passes"].sum())
        zero = int(rows["zero_grad"].sum()) / backward if backward else 0.0
        if zero > MOST_ZERO_GRADIENTS:
            flags.append(
                Flag(
                    "zero-gradient",
                    "invalid",
                    f"{_title(key)}: {zero:.1%} of the gradients were all zero, so the attack "
                    "stood still; use another estimator.",
                    zero,
                    (key,),
                )
            )
        bad = int(rows["nonfinite_grad"].sum())
        if bad:
            flags.append(
                Flag(
                    "nonfinite-gradient",
                    "invalid",
                    f"{_title(key)}: {bad} gradients held NaN or infinity, taken as zero there.",
                    float(bad),
                    (key,),
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
                )
            )
    return flags


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
                        ours = (str(strong["attack"]), str(norm), str(epsilon))
                        theirs = (str(weak["attack"]), str(norm), str(epsilon))
                        flags.append(
                            Flag(
                                slug,
                                "invalid",
                                f"{_title(theirs)} leaves {formats.percent(weak['accuracy'])}, "
                                f"{formats.attack(ours[0])} {formats.percent(strong['accuracy'])}: "
                                f"{meaning}, a sign of masked gradients.",
                                gap,
                                (ours,),
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
        keys = [(str(attack), str(norm), str(r["epsilon"])) for r in rows]
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
                )
            )
    return flags
