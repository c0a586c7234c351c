"""The study that writes the board of the zoo, on one model and a suite cut short."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from robustsnn.evaluation import request
from robustsnn.evaluation.suites import load_suite
from robustsnn.models.checkpoint import read_checkpoint
from studies.board import study

NAME = "fashion-mnist/resnet12-ann"


def test_runs_are_made_found_again_and_ranked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = load_suite("standard")
    entry = whole.entries[0].model_copy(update={"attack": "pgd:steps=2", "estimator": "bptt"})
    short = whole.model_copy(update={"entries": (entry,)})
    monkeypatch.setattr(request, "load_suite", lambda name, **_: short)
    # Verification compares a suite with the one that ships under its name.
    monkeypatch.setattr("robustsnn.workflows.verify.asked.load_suite", lambda name: short)
    runs, said = tmp_path / "runs", list[str]()
    assert study.runs_of([NAME], runs, samples=8, finished_only=True) == []
    found = study.runs_of([NAME], runs, samples=8, say=said.append)
    assert said == [f"{NAME}, 8 images, standard"]
    assert study.runs_of([NAME], runs, samples=8, say=said.append, finished_only=True) == found
    study.write(found, tmp_path / "board", tmp_path / "measured.csv", said.append)
    (entry_of,) = json.loads((tmp_path / "board" / "board.json").read_text())["entries"]
    assert entry_of["verified"] and entry_of["model"] == NAME
    (row,) = csv.DictReader((tmp_path / "measured.csv").read_text().splitlines())
    assert tuple(row) == study.COLUMNS
    assert row["sha256"] == read_checkpoint(NAME).sha256 and row["samples"] == "8"
    assert float(row["accuracy"]) == pytest.approx(entry_of["accuracy"], abs=1e-5)
    assert float(row["clean"]) == pytest.approx(entry_of["clean"], abs=1e-5)
