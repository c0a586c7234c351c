"""The stability study: what it varies, and what it makes of tables made by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import stability
from robustsnn.datasets import load_dataset
from robustsnn.registry import load_attack
from robustsnn.suites import Suite, load_suite

ANN = "fashion-mnist/vgg5-ann"


@pytest.mark.parametrize("factor", [0.5, 2])
def test_every_budget_is_scaled_and_nothing_else(factor):
    suite = load_suite("standard")
    other = stability.scaled(suite, factor)
    assert len(other.entries) == len(suite.entries) and other.digest() != suite.digest()
    for before, after in zip(suite.entries, other.entries, strict=True):
        was, now = load_attack(before.attack), load_attack(after.attack)
        budget = "queries" if hasattr(was, "queries") else "steps"
        assert getattr(now, budget) == factor * getattr(was, budget)
        assert dataclasses.replace(now, **{budget: getattr(was, budget)}) == was
        assert after.model_copy(update={"attack": before.attack}) == before


def test_images_turned_round_keep_their_ids():
    images = load_dataset("fashion-mnist", None, samples=5)
    turned = stability.backwards(images)
    assert turned.ids.tolist() == images.ids.tolist()[::-1]
    assert turned.labels.tolist() == images.labels.tolist()[::-1]
    assert torch.equal(turned.tensor(slice(0, 1)), images.tensor(slice(4, 5)))
    assert turned.fingerprint != images.fingerprint


def test_a_tie_does_not_stand():
    records = pd.DataFrame({"image_id": [9, 9, 2, 2, 5], "margin": [-1.0, 0.0, -1.0, -0.1, 0.3]})
    assert stability.standing(records).to_dict() == {2: True, 5: False, 9: False}


def test_parts_run_resume_and_are_kept(tmp_path: Path, monkeypatch):
    # What is asked of the parts does not hang on how many draws or stages there are.
    monkeypatch.setattr(stability, "DRAWS", 3)
    small = Suite.model_validate(
        {
            "name": "standard", "epsilon": ["8/255"], "cascade": True,
            "entries": [{"label": "APGD", "attack": "apgd:steps=3,loss=margin"}],
        }
    )  # fmt: skip
    monkeypatch.setattr(stability, "load_suite", lambda name: small)
    said: list[str] = []
    asked = [
        stability.study(part, ANN, tmp_path / "runs", 6, say=said.append)
        for part in ("noise", "epsilon", "batches", "budgets")
    ]
    table = stability.write(asked, tmp_path / "out", "a command")
    assert table["variant"].tolist() == [
        "as it is", "halved", "doubled", "epsilon 0.5", "FGSM", "3 draws of noise",
        "100 a pass", "7 a pass", "1 a pass", "reversed",
    ]  # fmt: skip
    records = pd.read_parquet(
        tmp_path / "runs/fashion-mnist-vgg5-ann-6/noise/3-draws-of-noise/records.parquet"
    )
    draws = records[records["attack"] != "clean"].pivot(index="attack", columns="image_id")
    # Each draw is another one.
    assert len(np.unique(draws["margin"].to_numpy(), axis=0)) == 3
    # What is gone is kept from the table.
    again = stability.write(
        [stability.study("noise", ANN, tmp_path / "gone", 6, finished_only=True)],
        tmp_path / "out",
        "a command",
    )
    pd.testing.assert_frame_equal(again, table, rtol=1e-4)


def rows(part: str, **columns: list[object]) -> pd.DataFrame:
    count = len(next(iter(columns.values())))
    common = {
        "model": ANN, "part": part, "samples": 200, "variant": "v", "accuracy": 0.5,
        "ci_low": 0.4, "ci_high": 0.6, "lost": 0, "gained": 0, "forward_passes": 1.0,
        "backward_passes": 1.0, "seconds": 1.0, "level": "B", "classes": 10, "images": "",
    }  # fmt: skip
    return pd.DataFrame({**{k: [v] * count for k, v in common.items()}, **columns})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (rows("batches", lost=[0, 0, 1, 0], gained=[0, 0, 0, 1]), "within half a percent"),
        (rows("batches", lost=[0, 0, 1, 0], gained=[0, 0, 1, 0]), "MORE than half a percent"),
        (rows("noise", accuracy=[0.5, 0.5]), "does not beat"),
        (rows("noise", accuracy=[0.5, 0.49]), "BEATS"),
        (rows("epsilon", accuracy=[0.1]), "at or below chance"),
        (rows("epsilon", accuracy=[0.11]), "ABOVE chance"),
        (
            rows("budgets", variant=["as it is", "doubled"], accuracy=[0.5, 0.496]),
            "less than half a point; its level is B",
        ),
        (
            rows("budgets", variant=["as it is", "doubled"], accuracy=[0.5, 0.494]),
            "half a point or more; its level is B",
        ),
    ],
)
def test_what_is_said_follows_the_table(table, said):
    (sentence,) = stability.verdicts(table)
    assert said in sentence
