"""Numbers of the literature, for the column next to ours."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

from robustsnn.records.runs import Run
from robustsnn.records.schema import CLEAN, Condition


class Published(NamedTuple):
    """A published accuracy in [0, 1] and where it is from."""

    accuracy: float
    source: str
    note: str


def method(run: Run) -> str:
    """How a model was trained: "ann", "traditional" or "hire"; empty if that is not known.

    The header of the run decides; without one only the names of the zoo's models do.
    """
    if named := run.manifest.method:
        return {"snn": "traditional", "hybrid": "traditional"}.get(named, named)
    stem = run.model.rstrip("/").rsplit("/", 1)[-1].removesuffix("-b")
    known = {"-ann": "ann", "-snn": "traditional", "-snn-hire": "hire"}
    return next((m for end, m in known.items() if stem == run.architecture + end), "")


def published(run: Run, condition: Condition, data: str | None = None) -> Published | None:
    """The published accuracy of a model of this architecture and training, or None.

    Args:
        run: Ours.
        condition: The attack; it must be the published one, at the published size.
        data: Look at this data set in place of the run's own.
    """
    key = (data or run.data, run.architecture, method(run), condition.attack)
    for row in _published():
        if key != (row["data"], row["architecture"], row["method"], row["attack"]):
            continue
        if condition.attack == CLEAN or (
            condition.norm == row["norm"] and condition.epsilon in row["epsilon"].split()
        ):
            return Published(float(row["accuracy"]), row["source"], row["note"])
    return None


def published_data(runs: Sequence[Run]) -> tuple[str, ...]:
    """The data sets on which the architectures of these runs have published numbers."""
    ours = {run.architecture for run in runs}
    return tuple(dict.fromkeys(r["data"] for r in _published() if r["architecture"] in ours))


def _published() -> list[dict[str, str]]:
    file = resources.files("robustsnn.reports") / "published.csv"
    with file.open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))
