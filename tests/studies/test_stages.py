"""The study of stages: the order of what each stage adds, from tables made by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from studies.stages import study as stages
from studies.stages.page import greedy, write


def test_stages_are_ordered_by_what_each_adds(tmp_path: Path):
    def stage(name: str, survivors: str) -> dict[str, object]:
        return {
            "model": "m", "samples": 10, "clean": 1.0, "probed": 0.6, "stage": name,
            "estimator": "bptt", "broken": 6 - len(survivors.split()), "passes": 10.0,
            "seconds": 1.0, "standing": survivors,
        }  # fmt: skip

    # Of images 1 to 6 two survive one stage, three another, and the last stage breaks none.
    rows = [stage("half", "4 5 6"), stage("most", "1 2"), stage("none", "1 2 3 4 5 6")]
    table = pd.DataFrame(rows, columns=stages.COLUMNS)
    assert greedy(table) == [("most", 4), ("half", 2)]
    write([table], tmp_path, "a command")
    text = (tmp_path / "stages.md").read_text(encoding="utf-8")
    assert "the probes leave 6 images, all candidates together 0" in text
    # Only one stage breaks images 4 to 6, and only the other breaks 1 and 2.
    assert "| most | 4 | 3 |" in text and "| half | 3 | 2 |" in text


def test_a_table_without_new_rows_is_written_again_as_it_was(tmp_path: Path):
    row = {
        "model": "m", "samples": 10, "clean": 1.0, "probed": 0.6, "stage": "a", "estimator": "bptt",
        "broken": 5, "passes": 1000.0, "seconds": 26.4746, "standing": "3",
    }  # fmt: skip
    rows = [row, {**row, "stage": "b", "passes": 412.25, "standing": ""}]
    write([pd.DataFrame(rows, columns=stages.COLUMNS)], tmp_path, "a command")
    before = [(tmp_path / name).read_bytes() for name in ("stages.csv", "stages.md")]
    write([pd.DataFrame(columns=stages.COLUMNS)], tmp_path, "a command")
    assert [(tmp_path / name).read_bytes() for name in ("stages.csv", "stages.md")] == before


def test_a_candidate_breaks_what_ties_and_what_has_no_number():
    records = pd.DataFrame(
        {
            "image_id": [5, 7, 8, 5, 7, 8],
            "label": 1,
            "attack": ["clean"] * 3 + ["pgd"] * 3,
            "estimator": "bptt",
            "prediction": 1,
            "margin": [-1.0, -1.0, -1.0, -0.2, 0.0, float("nan")],
            "forward_passes": 2,
            "backward_passes": 1,
            "seconds": 0.5,
        }
    )
    (row,) = stages._rows(records)
    assert (row["stage"], row["broken"], row["standing"], row["passes"]) == ("pgd", 2, "5", 3.0)
