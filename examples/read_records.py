"""Read the records of finished runs: one row for each image and attack.

`python examples/read_records.py runs/...`; without an argument a small run is made first.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import robustsnn


def survivors_by_class(folder: Path) -> None:
    """Print, for each run, which share of each class survives every attack."""
    for run in robustsnn.load_runs([folder]).runs:
        records = run.records.assign(right=run.records["margin"] < 0)
        survives = records.groupby(["label", "image_id"])["right"].all()
        share = survives.groupby("label").mean()
        print(f"{run.label}, {run.suite}, level {run.level}: {run.samples} images")
        for label, value in zip(share.index.tolist(), share, strict=True):
            name = run.class_names[label] if run.class_names else str(label)
            print(f"  {name:<12} {100 * value:5.1f} % survive")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        survivors_by_class(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / "run"
            robustsnn.evaluate("fashion-mnist/vgg5-snn", samples=50, output=made)
            survivors_by_class(made)
