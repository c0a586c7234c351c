"""Published accuracies, which reports show next to ours."""

from __future__ import annotations

import csv
from importlib import resources
from typing import NamedTuple

from robustsnn.records.runs import Run
from robustsnn.records.schema import CLEAN, Condition


class Published(NamedTuple):
    """A published accuracy in [0, 1], its source, and a note such as "derived"."""

    accuracy: float
    source: str
    note: str


def method(run: Run) -> str:
    """The training method of a model: "ann", "traditional" or "hire"; empty if it is not known.

    It is read from the header of the run. If the header does not name it, only the names of the
    models of the zoo tell the method. A network of another encoding than direct input is none of
    these three.
    """
    if run.manifest.encoding not in ("", "direct"):
        return ""
    if named := run.manifest.method:
        return {"snn": "traditional", "hybrid": "traditional"}.get(named, named)
    stem = run.model.rstrip("/").rsplit("/", 1)[-1].removesuffix("-b")
    known = {"-ann": "ann", "-snn": "traditional", "-snn-hire": "hire"}
    return next((m for end, m in known.items() if stem == run.architecture + end), "")


def published(run: Run, condition: Condition, data: str | None = None) -> Published | None:
    """The published accuracy of a model of this architecture and training, or None.

    Args:
        run: The run to compare with.
        condition: The attack; the published one must have the same name, norm and size.
        data: The data set to look up; None stands for the data set of the run.
    """
    key = (data or run.data, run.architecture, method(run), condition.attack)
    for row in rows():
        if key != (row["data"], row["architecture"], row["method"], row["attack"]):
            continue
        if condition.attack == CLEAN or (
            condition.norm == row["norm"] and condition.epsilon in row["epsilon"].split()
        ):
            return Published(float(row["accuracy"]), row["source"], row["note"])
    return None


def rows() -> list[dict[str, str]]:
    """The published accuracies, one row each, as `reports/published.csv` holds them."""
    file = resources.files("robustsnn.reports") / "published.csv"
    with file.open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))
