"""What the benchmark should reach, and whether it does."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmarks.tables import COMPILED, OURS, PEER_ATTACK, SPIKINGJELLY, TITLES, WHOLE


@dataclass(frozen=True)
class Aim:
    """One aim and what was measured; `met` is None where nothing was."""

    what: str
    against: str
    aim: str
    measured: str
    met: bool | None


def aims(table: pd.DataFrame, headline: tuple[str, int, int]) -> list[Aim]:
    """The aims for one cell, each with what was measured.

    Args:
        table: The table of all measurements.
        headline: The architecture, time steps and batch size that the aims are about.
    """
    rows = table.to_dict("records")

    def speed(task: str, library: str, least: float) -> Aim:
        found = [
            row
            for row in rows
            if row["measure"] == task
            and (row["architecture"], row["steps"], row["batch"]) == headline
            and row["library"] == library
        ]
        what, aim = task.replace("-", " "), f"at least {least:g}x"
        if not found:
            return Aim(what, TITLES[library], aim, "not measured", None)
        ratio = float(found[0]["ratio_to_ours"])
        spread = f"{found[0]['ratio_least']:.2f} to {found[0]['ratio_most']:.2f}"
        return Aim(what, TITLES[library], aim, f"{ratio:.2f}x ({spread})", ratio >= least)

    return [
        speed("input-gradient", "snntorch", 3.2),
        speed("input-gradient", SPIKINGJELLY, 2.5),
        speed("input-gradient", COMPILED, 2.5),
        speed("input-gradient", "layers-alone", 1.0),
        speed("training-step", "snntorch", 2.5),
        speed("training-step", SPIKINGJELLY, 1.8),
        speed("training-step", COMPILED, 1.8),
        speed("inference", SPIKINGJELLY, 2.0),
        speed("inference", COMPILED, 2.0),
        *_memory_aims(rows),
        _attack_aim(rows),
    ]


def _memory_aims(rows: Sequence[Mapping[Hashable, Any]]) -> list[Aim]:
    what, peer, aim = "peak memory of an input gradient", TITLES[SPIKINGJELLY], "at most 0.5"
    bytes_of = {
        (int(row["steps"]), row["library"]): float(row["value"])
        for row in rows
        if row["measure"] == "peak-memory"
    }
    found = []
    for steps in sorted({steps for steps, _ in bytes_of}):
        theirs = bytes_of.get((steps, SPIKINGJELLY))
        for ours, how in ((OURS, ""), (WHOLE, ", whole batch")):
            mine = bytes_of.get((steps, ours))
            if mine is not None and theirs:
                share = mine / theirs
                text = f"{what}, T = {steps}{how}"
                found.append(Aim(text, peer, aim, f"{share:.2f}", share <= 0.5))
    return found or [Aim(what, peer, aim, "not measured", None)]


def _attack_aim(rows: Sequence[Mapping[Hashable, Any]]) -> Aim:
    peer = "torchattacks on SpikingJelly"
    aim = "at least 8x sooner, robust accuracy equal or lower and at most 10 %"
    seconds = {r["library"]: r for r in rows if r["measure"] == "pgd-50"}
    left = {r["library"]: float(r["value"]) for r in rows if r["measure"] == "robust-accuracy"}
    if PEER_ATTACK not in seconds:
        return Aim("PGD-50", peer, aim, "not measured", None)
    row = seconds[PEER_ATTACK]
    sooner, mine, theirs = float(row["ratio_to_ours"]), left[OURS], left[PEER_ATTACK]
    return Aim(
        f"PGD-50 on {int(row['batch'])} images",
        peer,
        aim,
        f"{sooner:.1f}x, robust accuracy {mine:.1%} against {theirs:.1%}",
        sooner >= 8 and mine <= theirs and mine <= 0.1,
    )
