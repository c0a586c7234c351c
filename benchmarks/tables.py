"""From measurements to one tidy table; nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.timing import Spread, paired_ratios
from robustsnn.common.files import write_atomically

OURS = "robustsnn"
WHOLE = "robustsnn-whole"
SPIKINGJELLY = "spikingjelly"
COMPILED = "spikingjelly-compiled"
PEER_ATTACK = "torchattacks"
#: The end of the name of a measure that was taken in a process with default settings.
DEFAULT = ", default process"
LONG = "peak-memory, recomputed"
TITLES = {
    OURS: "RobustSNN",
    WHOLE: "RobustSNN, whole batch",
    "snntorch": "snnTorch",
    SPIKINGJELLY: "SpikingJelly",
    COMPILED: "SpikingJelly, compiled",
    "hire-loop": "HIRE's loop",
    "layers-alone": "layers alone",
}
COLUMNS = (
    *("measure", "architecture", "steps", "batch", "library", "rounds", "value", "unit"),
    *("lower_quartile", "upper_quartile", "least", "most"),
    *("ratio_to_ours", "ratio_least", "ratio_most"),
)


def tidy(
    cells: Sequence[dict[str, Any]],
    memory: Sequence[dict[str, Any]] = (),
    attack: dict[str, Any] | None = None,
    default_process: Sequence[dict[str, Any]] = (),
    long: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """One row for each measure, network, size and library.

    Times are seconds of one call: the median with its quartiles and extremes. `ratio_to_ours` is
    the quotient of the medians; its least and most values are over the rounds, where each run of a
    library is compared with ours in the same round. Memory is in bytes, and robust accuracy is a
    fraction. The names of measures in a process with default settings end in `DEFAULT`.

    Args:
        cells: The speed cells.
        memory: The peak memory of each library and size.
        attack: The PGD evaluation.
        default_process: The cells of the aims in a process with default settings.
        long: The peak memory of a long sequence.
    """
    rows = [row for one in cells for row in _cell_rows(one)]
    rows += [row for one in default_process for row in _cell_rows(one, DEFAULT)]
    rows += _memory_rows(memory, long)
    if attack is not None:
        rows += _attack_rows(attack)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _cell_rows(measured: dict[str, Any], suffix: str = "") -> list[dict[str, Any]]:
    cell, seconds = measured["cell"], measured["seconds"]
    rows = []
    for library, values in seconds.items():
        spread = Spread.of(values)
        ratios = paired_ratios(values, seconds[OURS])
        rows.append(
            {
                "measure": cell["task"] + suffix,
                "architecture": cell["architecture"],
                "steps": cell["steps"],
                "batch": cell["batch"],
                "library": library,
                "rounds": len(values),
                "value": spread.median,
                "unit": "s",
                "lower_quartile": spread.lower,
                "upper_quartile": spread.upper,
                "least": spread.least,
                "most": spread.most,
                "ratio_to_ours": spread.median / Spread.of(seconds[OURS]).median,
                "ratio_least": min(ratios),
                "ratio_most": max(ratios),
            }
        )
    return rows


def _memory_rows(
    memory: Sequence[dict[str, Any]], long: dict[str, Any] | None
) -> list[dict[str, Any]]:
    rows = []
    bytes_of = {(m["steps"], m["batch"], m["library"]): m["bytes"] for m in memory}
    for m in memory:
        ours = bytes_of.get((m["steps"], m["batch"], OURS))
        rows.append(
            {
                "measure": "peak-memory",
                **{name: m[name] for name in ("architecture", "steps", "batch", "library")},
                "rounds": 1,
                "value": m["bytes"],
                "unit": "B",
                "ratio_to_ours": m["bytes"] / ours if ours else None,
            }
        )
    if long is not None:
        rows.append(
            {
                "measure": LONG,
                **{name: long[name] for name in ("architecture", "steps", "batch", "library")},
                "rounds": 1,
                "value": long["bytes"],
                "unit": "B",
            }
        )
    return rows


def _attack_rows(attack: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for library, key in ((OURS, "ours"), (PEER_ATTACK, "theirs")):
        for measure, field, unit in (
            ("pgd-50", "seconds", "s"),
            ("robust-accuracy", "robust_accuracy", "1"),
        ):
            ours = attack["ours"][field]
            value = attack[key][field]
            rows.append(
                {
                    "measure": measure,
                    "architecture": attack["model"],
                    "batch": attack["samples"],
                    "library": library,
                    "rounds": 1,
                    "value": value,
                    "unit": unit,
                    "ratio_to_ours": value / ours if ours else None,
                }
            )
    return rows


def profile_csv(profile: dict[str, Any]) -> pd.DataFrame:
    """The table `profile.csv`, with the milliseconds and the share of each part."""
    rows = [
        (name, spent, spent / profile["total"]) for name, spent in profile["milliseconds"].items()
    ]
    return pd.DataFrame(rows, columns=["part", "milliseconds", "share"])


def write(path: Path, text: str) -> None:
    """Write a text file, which then is there as a whole or not at all."""
    write_atomically(path, text.encode())
