"""Rows and tables about operations and energy, from manifests and results with known numbers."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from robustsnn.records.runs import load_runs
from robustsnn.records.schema import OPERATIONS
from robustsnn.reporting.comparison import comparison_frame, comparisons
from robustsnn.reporting.render import render
from robustsnn.reporting.sentences import headlines
from robustsnn.reporting.tables import accuracy_table, tables

RIGHT = {
    ("clean", "", ""): np.ones(20, dtype=bool),
    ("fgsm", "Linf", "8/255"): np.arange(20) > 5,
    ("energy-same-label", "Linf", "8/255"): np.ones(20, dtype=bool),
}
COUNTED = {"clean": 1.5e6, "fgsm": 1.4e6, "energy-same-label": 1.8e6, "worst-case": 1.95e6}
LAYERS = [
    {"name": "features.0", "inputs": "analog", "passes": 1, "weights": 144, "kept": 144,
     "dense": 107584.0, "synaptic": 107584.0, "bias_reads": 0.0},
    {"name": "features.3", "inputs": "pooled", "passes": 4, "weights": 4608, "kept": 461,
     "dense": 3276800.0, "synaptic": 75011.0, "bias_reads": 0.0},
]  # fmt: skip
ENERGY = {
    "ann_uj": 120.5, "snn_input_uj": 21.25, "snn_same_layer_uj": 18.0,
    "compute_fp32_uj": 47.9, "memory_fp32_uj": 1756.0,
}  # fmt: skip


@pytest.fixture
def two(make_run):
    """A run whose proposals were counted, and an older one that knows no operations."""
    counts = {"synaptic_operations": 1.5e6}
    new = make_run("new", RIGHT, model="m/new", energy=ENERGY, counts=counts, operations=LAYERS)
    results = pd.read_csv(new / "results.csv", keep_default_na=False)
    results[OPERATIONS] = results["attack"].map(COUNTED)
    results.to_csv(new / "results.csv", index=False)
    return load_runs([new, make_run("old", RIGHT, model="m/old")])


def rows_of(table):
    return {(row[0].main, row[0].detail): [cell.text for cell in row[1:]] for row in table.rows}


def test_compute_and_memory_stand_apart_in_the_model_table(two):
    rows = rows_of(accuracy_table(comparisons(two)[0]))
    assert rows["Compute, exact", "µJ per image"] == ["47.9", "–"]
    assert rows["Memory", "µJ per image"] == ["1756", "–"]
    assert rows["Operations", "million per image"] == ["1.50", "–"]
    (worst,) = [text for (main, _), text in rows.items() if main == "Worst-case operations"]
    assert worst == ["1.95 (1.300×)", "–"]
    assert rows["Energy", "µJ per image"] == ["21.2", "21.2"]


def test_each_note_stands_only_where_its_numbers_do(two):
    both, old = accuracy_table(comparisons(two)[0]), load_runs([two.runs[1].folder])
    assert any("worst-case operations" in note for note in both.notes)
    assert any("Memory is one read" in note for note in both.notes)
    alone = accuracy_table(comparisons(old)[0])
    assert not any("peration" in note and "An operation" in note for note in alone.notes)
    assert not any(row[0].main in ("Compute, exact", "Operations") for row in alone.rows)
    assert {t.name.split("-")[0] for t in tables(old)}.isdisjoint({"operations", "layers"})


def test_operations_under_each_attack_and_of_each_layer_have_tables(two):
    found = {table.name.split("-")[0]: table for table in tables(two)}
    attacks = {row[0].main: [c.text for c in row[1:]] for row in found["operations"].rows}
    assert attacks["Energy same label"] == ["1.80 (1.200×)", "–"]
    assert attacks["Worst case"] == ["1.95 (1.300×)", "–"]
    assert attacks["Clean"] == ["1.50 (1.000×)", "–"]
    layers = [[cell.main for cell in row] for row in found["layers"].rows]
    assert layers[1][1:6] == ["features.3", "pooled", "4", "4,608", "10.0\u00a0%"]


def test_the_csv_holds_the_numbers_and_the_page_the_tables(two, tmp_path):
    frame = comparison_frame(two).set_index(["model", "attack"])
    assert frame.loc[("new", "worst-case"), OPERATIONS] == 1.95e6
    assert frame.loc[("new", "clean"), "compute_uj"] == 47.9
    assert frame.loc[("new", "clean"), "memory_uj"] == 1756.0
    assert math.isnan(frame.loc[("old", "worst-case"), OPERATIONS])
    page = render(two, tmp_path / "page").read_text(encoding="utf-8")
    for text in ("Worst-case operations", "Synaptic operations under attack", "features.3"):
        assert text in page


def test_the_headline_says_the_worst_case_energy(two):
    new, old = headlines(comparisons(two)[0])
    assert "1.95 million synaptic operations, 30.0\u00a0% more than on clean images" in new.detail
    assert "synaptic" not in old.detail
