"""The claims of the talk, each with what the networks show, in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from robustsnn.common import wording
from robustsnn.common.statistics import mcnemar_exact
from robustsnn.records.schema import WORST_CASE
from studies.claims.members import (
    ANN,
    CONVERTED,
    FAMILIES,
    FROM_RATE,
    GAUSSIAN,
    HIRE,
    L2,
    LINF,
    RATE,
    SEEDS,
    TRADITIONAL,
    Member,
)
from studies.claims.study import (
    CONVERSION,
    GRID,
    LONG,
    OVERHEAD,
    PUBLISHED,
    STEPS,
    STRONGEST,
    ZOO,
)
from studies.shared import survivors_in

#: The probability below which a difference between two networks is called one.
LEVEL = 0.05
#: An update that takes at most this many times as long counts as one without extra cost.
NO_COST = 1.1
HOLDS, FAILS, DEPENDS, UNKNOWN = "holds", "does not hold", "depends", "not measured"


@dataclass(frozen=True)
class Pair:
    """Two networks on the same images under the same attack.

    Args:
        first: The name of the first.
        second: The name of the second.
        images: The number of images.
        gained: The images that only the first keeps.
        lost: The images that only the second keeps.
    """

    first: str
    second: str
    images: int
    gained: int
    lost: int

    @property
    def points(self) -> float:
        """The accuracy of the first less that of the second, in points of per cent.

        >>> Pair("a", "b", 200, 30, 10).points
        10.0
        """
        return 100 * (self.gained - self.lost) / self.images

    @property
    def p(self) -> float:
        """The p-value of the exact McNemar test."""
        return mcnemar_exact(self.gained, self.lost)

    @property
    def more(self) -> bool:
        """Whether the first keeps more images than chance explains."""
        return self.points > 0 and self.p < LEVEL

    @property
    def fewer(self) -> bool:
        """Whether the first keeps fewer images than chance explains."""
        return self.points < 0 and self.p < LEVEL

    def __str__(self) -> str:
        return (
            f"{self.first} against {self.second}: {self.points:+.1f} points on {self.images} "
            f"images, p = {self.p:.2g}"
        )


def pair(table: pd.DataFrame, first: str, second: str, attack: str, part: str = ZOO) -> Pair | None:
    """Two networks under an attack of the published suite, or under the strongest attack.

    Args:
        table: The rows of the study.
        first: The name of a network.
        second: The name of another.
        attack: An attack of the published suite by its name in records, or `worst-case` for the
            strongest suite of each of the two.
        part: The part of the study that both are rows of.

    Returns:
        The pair, on the images that both were attacked on; None if one of the two was not run.
    """
    rows = [_row(table, name, attack, part) for name in (first, second)]
    one, other = rows
    if one is None or other is None:
        return None
    # Images are the first ones in a fixed order, so that a shorter run holds the first of a longer.
    last = min(int(row["last_id"]) for row in (one, other))
    images = min(int(row["samples"]) for row in (one, other))
    ours, theirs = ({i for i in survivors_in(row) if i <= last} for row in (one, other))
    return Pair(first, second, images, len(ours - theirs), len(theirs - ours))


def _row(table: pd.DataFrame, model: str, attack: str, part: str) -> pd.Series | None:
    if table.empty or "attack" not in table:
        return None
    suites = STRONGEST if attack == WORST_CASE else (PUBLISHED,)
    some = table[
        (table["part"] == part)
        & (table["model"] == model)
        & (table["attack"] == attack)
        & table["suite"].isin(suites)
    ]
    if some.empty:
        return None
    row = some.iloc[0].copy()
    row["standing"] = "" if pd.isna(row["standing"]) else row["standing"]
    return row


def verdict(found: Sequence[bool]) -> str:
    """What some comparisons say together about a claim that each of them can confirm.

    >>> verdict([True, True]), verdict([True, False]), verdict([False]), verdict([])
    ('holds', 'depends', 'does not hold', 'not measured')
    """
    if not found:
        return UNKNOWN
    return HOLDS if all(found) else DEPENDS if any(found) else FAILS


@dataclass(frozen=True)
class Claim:
    """A claim of the talk, and what was found.

    Args:
        said: What the talk claims, as a sentence without its full stop.
        published: The verdict under the published attack, or None where no attack is asked.
        standard: The verdict under the strongest attack, or the only one.
        shown: What was compared, one entry each.
    """

    said: str
    published: str | None
    standard: str
    shown: tuple[str, ...]

    @property
    def line(self) -> str:
        """The claim and its verdicts in one line of Markdown."""
        how = f"**{self.standard}**"
        if self.published is not None:
            how = f"under PGD-7 as published **{self.published}**, under `standard` **{how[2:]}"
        return f"{self.said}: {how}."


# --- the claims -----------------------------------------------------------------------------------


def claims(table: pd.DataFrame) -> list[Claim]:
    """Every claim of the talk, in its order."""
    return [
        _between(
            table,
            "Direct-input SNNs of few steps lose the robustness that rate-coded ones have",
            [(RATE, FROM_RATE)],
            published=False,
        ),
        _between(
            table,
            "Traditionally trained SNNs of few steps are less robust than the ANN",
            [(ANN, TRADITIONAL)],
        ),
        _between(table, "HIRE training is more robust than traditional", [(HIRE, TRADITIONAL)]),
        _between(table, "HIRE training is more robust than the ANN", [(HIRE, ANN)]),
        _between(
            table,
            "Crafted noise helps where Gaussian noise of the same size does not",
            [(HIRE, LINF), (HIRE, L2)],
        ),
        _between(
            table, "Gaussian noise alone does not help", [(GAUSSIAN, TRADITIONAL)], wanted=False
        ),
        _cost(table),
        _energy(table),
        _activity(table),
        _levels(table),
        _steps(table, RATE, "Fewer steps make rate-coded networks more robust"),
        _steps(
            table, FROM_RATE, "Direct-input networks gain nothing from fewer steps", wanted=False
        ),
        _grid(table),
    ]


def _pairs(
    table: pd.DataFrame, kinds: Sequence[tuple[str, str]], attack: str
) -> list[tuple[Pair, int]]:
    """The pairs that were measured, over families and seeds, each with its seed."""
    found = []
    for family in FAMILIES:
        for one, other in kinds:
            for seed in SEEDS:
                both = [Member(*family, kind, seed).name for kind in (one, other)]
                made = pair(table, both[0], both[1], attack)
                if made is not None:
                    found.append((made, seed))
    return found


def _between(
    table: pd.DataFrame,
    said: str,
    kinds: Sequence[tuple[str, str]],
    published: bool = True,
    wanted: bool = True,
) -> Claim:
    """A claim that networks of one kind keep more images than those of another, or do not."""
    results: dict[str, str] = {}
    shown: list[str] = []
    for attack in ("pgd-7", WORST_CASE) if published else (WORST_CASE,):
        found = [] if table.empty else _pairs(table, kinds, attack)
        results[attack] = verdict([one.more == wanted for one, _ in found])
        where = "PGD-7" if attack == "pgd-7" else "strongest attack"
        shown += [f"{where}: {one}{_alone(found, one)}" for one, _ in found]
    return Claim(said, results.get("pgd-7"), results[WORST_CASE], tuple(shown))


def _alone(found: Sequence[tuple[Pair, int]], one: Pair) -> str:
    """A remark on a pair of which no second seed was measured."""
    stem = one.first.removesuffix("-b"), one.second.removesuffix("-b")
    same = [
        other
        for other, _ in found
        if (other.first.removesuffix("-b"), other.second.removesuffix("-b")) == stem
    ]
    return "" if len(same) > 1 else " (one seed)"


def _cost(table: pd.DataFrame) -> Claim:
    said = "HIRE training costs nothing extra"
    if table.empty or not (table["part"] == OVERHEAD).any():
        return Claim(said, None, UNKNOWN, ())
    rows = table[table["part"] == OVERHEAD].set_index("kind")
    shown = [
        f"{kind}: {row['value']:.2f} times the time of traditional training (quartiles "
        f"{row['low']:.2f} to {row['high']:.2f} of {int(row['samples'])} rounds)"
        for kind, row in rows.iterrows()
        if kind != TRADITIONAL
    ]
    found = [bool(value <= NO_COST) for kind, value in rows["value"].items() if kind == HIRE]
    return Claim(said, None, verdict(found), tuple(shown))


def _energy(table: pd.DataFrame) -> Claim:
    """The claim on energy; the published factor does not follow from published spikes."""
    said = "Direct-input networks of few steps take less energy than rate-coded ones"
    shown: list[str] = []
    found: list[bool] = []
    for data, architecture in FAMILIES:
        direct = _clean_energy(table, data, architecture, FROM_RATE)
        for kind in (RATE, CONVERTED):
            rate = _clean_energy(table, data, architecture, kind)
            if direct is not None and rate is not None:
                found.append(direct < rate)
                shown.append(
                    f"{wording.data(data)}, {architecture}: {kind} takes {rate / direct:.1f} times "
                    "the estimated energy (published: up to 4.6 times, Kundu et al., ICCV 2021, in "
                    "a counting that differs in details)"
                )
    return Claim(said, None, verdict(found), tuple(shown))


def _clean_energy(table: pd.DataFrame, data: str, architecture: str, kind: str) -> float | None:
    """The estimated energy of an image in a network of the zoo; None if it was not run."""
    if table.empty or "energy_uj" not in table:
        return None
    some = _first_seed(table, data, architecture, kind)
    some = some[some["energy_uj"].notna()]
    return None if some.empty else float(some["energy_uj"].iloc[0])


def _first_seed(table: pd.DataFrame, data: str, architecture: str, kind: str) -> pd.DataFrame:
    """The rows about the first network of a kind as it ships, with all its steps."""
    some = table[
        (table["part"] == (CONVERSION if kind == CONVERTED else ZOO))
        & (table["data"] == data)
        & (table["architecture"] == architecture)
        & (table["kind"] == kind)
        & (table["seed"] == 1)
    ]
    if kind != CONVERTED:
        return some
    return some[some["model"].str.endswith(f" at T = {LONG[-1]}")]


def _activity(table: pd.DataFrame) -> Claim:
    said = "Direct-input networks of few steps spike more in each step than rate-coded ones"
    shown: list[str] = []
    found: list[bool] = []
    for data, architecture in FAMILIES:
        direct = spikes_by_layer(table, data, architecture, FROM_RATE)
        for kind in (RATE, CONVERTED):
            rate = spikes_by_layer(table, data, architecture, kind)
            both = [layer for layer in direct if layer in rate]
            if not both:
                continue
            higher = [layer for layer in both if direct[layer] > rate[layer]]
            found += [layer in higher for layer in both]
            shown.append(
                f"{wording.data(data)}, {kind}: direct input spikes more in {len(higher)} of "
                f"{len(both)} layers ({wording.listing(higher) or 'none'})"
            )
    return Claim(said, None, verdict(found), tuple(shown))


def spikes_by_layer(
    table: pd.DataFrame, data: str, architecture: str, kind: str
) -> dict[str, float]:
    """The spikes per neuron and step of each layer of a network of the zoo; empty if not run."""
    if table.empty or "layer" not in table:
        return {}
    some = _first_seed(table, data, architecture, kind)
    some = some[some["attack"] == "activity"].drop_duplicates("layer")
    return {str(row["layer"]): float(row["value"]) for _, row in some.iterrows()}


def _levels(table: pd.DataFrame) -> Claim:
    return _between(
        table,
        "Approximating the input makes networks more robust (N = 1 against N = 16)",
        [("quantised, N = 1", "quantised, N = 16")],
        published=False,
    )


def _steps(table: pd.DataFrame, kind: str, said: str, wanted: bool = True) -> Claim:
    """A claim on the fewest against the most steps of networks of a kind."""
    shown: list[str] = []
    found: list[bool] = []
    some = table[(table["part"] == STEPS) & (table["kind"] == kind)] if len(table) else table
    for _, rows in some.groupby("data") if len(some) else ():
        worst = rows[rows["attack"] == WORST_CASE].sort_values("steps")
        if len(worst) < 2:
            continue
        ends = [str(worst["model"].iloc[place]) for place in (0, -1)]
        made = pair(table, ends[0], ends[1], WORST_CASE, STEPS)
        if made is not None:
            found.append(made.more == wanted)
            shown.append(f"strongest attack: {made} (one seed)")
    return Claim(said, None, verdict(found), tuple(shown))


def _grid(table: pd.DataFrame) -> Claim:
    """The claim that leak and threshold decide robustness: the best against the worst of a grid."""
    said = "Thresholds and leaks decide how robust a network is"
    some = table[(table["part"] == GRID) & (table["attack"] == WORST_CASE)] if len(table) else table
    if len(some) < 2:
        return Claim(said, None, UNKNOWN, ())
    ordered = some.sort_values("accuracy")
    ends = [str(ordered["model"].iloc[place]) for place in (-1, 0)]
    made = pair(table, ends[0], ends[1], WORST_CASE, GRID)
    if made is None:
        return Claim(said, None, UNKNOWN, ())
    # The best and the worst of several differ by chance more easily than two that were named.
    pairs = len(some) * (len(some) - 1) / 2
    corrected = min(1.0, made.p * pairs)
    return Claim(
        said,
        None,
        verdict([corrected < LEVEL]),
        (f"strongest attack: {made}; {corrected:.2g} after Bonferroni over {pairs:.0f} pairs",),
    )


# --- HIRE -----------------------------------------------------------------------------------------


def gain(table: pd.DataFrame) -> list[str]:
    """How much of HIRE's gain survives `standard`, and what its controls leave of its causes."""
    lines = []
    for data, architecture in FAMILIES:
        stem = f"{data}/{architecture}-snn"
        found = {a: pair(table, f"{stem}-hire", stem, a) for a in ("pgd-7", WORST_CASE)}
        weak, strong = found["pgd-7"], found[WORST_CASE]
        if weak is None or strong is None:
            continue
        share = f", {strong.points / weak.points:.0%} of it" if weak.points > 0 else ""
        lines.append(
            f"{wording.data(data)}, {architecture}: HIRE gains {weak.points:+.1f} points on "
            f"traditional training under PGD-7 as published ({weak.images} images, p = "
            f"{weak.p:.2g}), and {strong.points:+.1f} under `standard` ({strong.images} images, p "
            f"= {strong.p:.2g}){share}."
        )
        lines += ["", *_causes(table, stem), ""]
    return lines


def _causes(table: pd.DataFrame, stem: str) -> list[str]:
    """What is left of each possible cause of the gain, under the strongest attack."""
    steps = (
        ("the periods and updates alone", f"{stem}-periods", stem),
        ("noise of that size, against none", f"{stem}-periods-linf", f"{stem}-periods"),
        ("that the noise is crafted", f"{stem}-hire", f"{stem}-periods-linf"),
    )
    found = [(what, pair(table, one, other, WORST_CASE)) for what, one, other in steps]
    return [
        f"- Of this, {what}: "
        + ("not measured." if made is None else f"{made.points:+.1f} points, p = {made.p:.2g}.")
        for what, made in found
    ]
