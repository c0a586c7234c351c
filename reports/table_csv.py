"""The tables as CSV: one row per result, the comparison, the spikes and weights of each layer."""

from __future__ import annotations

from pathlib import Path

from robustsnn.records.runs import Runs
from robustsnn.reporting.comparison import comparison_frame


def render(runs: Runs, output: Path) -> list[Path]:
    """Write `results.csv`, `comparison.csv`, and `spikes.csv` and `densities.csv` where they apply.

    The spikes are those of models with spikes; the densities of all layers are written if some
    model is sparse.
    """
    folder = output / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"results": runs.results, "comparison": comparison_frame(runs)}
    if len(runs.activity):
        activity = runs.activity
        front = ["model", *(name for name in activity.columns if name != "model")]
        tables["spikes"] = activity[front]
    if any(run.sparse for run in runs.runs):
        tables["densities"] = runs.densities
    written = []
    for name, table in tables.items():
        path = folder / f"{name}.csv"
        table.to_csv(path, index=False, lineterminator="\n")
        written.append(path)
    return written
