"""The tables as CSV: results, the comparison, classes, images, spikes and weights by layer."""

from __future__ import annotations

from pathlib import Path

from robustsnn.common.printable import csv_text
from robustsnn.records.runs import Runs
from robustsnn.reporting.class_tables import class_frame, confusion_frame, image_frame
from robustsnn.reporting.comparison import comparison_frame, comparisons


def render(runs: Runs, output: Path) -> list[Path]:
    """Write `results.csv` and `comparison.csv`, and the other tables where they apply.

    `classes.csv`, `confusion.csv` and `images.csv` hold the worst case at one size. The spikes are
    those of models with spikes; the densities of all layers are written if some model is sparse.
    """
    folder = output / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"results": runs.results, "comparison": comparison_frame(runs)}
    found = comparisons(runs)
    for name, frame in (
        ("classes", class_frame(found)),
        ("confusion", confusion_frame(found)),
        ("images", image_frame(found)),
    ):
        if len(frame):
            tables[name] = frame
    if len(runs.activity):
        activity = runs.activity
        front = ["model", *(name for name in activity.columns if name != "model")]
        tables["spikes"] = activity[front]
    if any(run.sparse for run in runs.runs):
        tables["densities"] = runs.densities
    written = []
    for name, table in tables.items():
        path = folder / f"{name}.csv"
        path.write_text(csv_text(table), encoding="utf-8")
        written.append(path)
    return written
