"""Run folders: what rows say, and that no half file is ever there."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from robustsnn.common.files import write_atomically
from robustsnn.errors import InputError
from robustsnn.records.folder import RunFolder, open_folder, parquet
from robustsnn.records.manifest import Manifest
from robustsnn.records.schema import RECORDS, RESULTS
from robustsnn.records.summary import summarise


def record(image, attack, label, prediction, clean, margin, **changes):
    row = {
        "model": "m",
        "image_id": image,
        "label": label,
        "suite": "s",
        "attack": attack,
        "estimator": "bptt",
        "substitute": "",
        "norm": "" if attack == "clean" else "Linf",
        "epsilon": "" if attack == "clean" else "8/255",
        "seed": 0,
        "clean_prediction": clean,
        "prediction": prediction,
        "margin": margin,
        "success": clean == label and prediction != label,
        "linf": 0.0 if attack == "clean" else 0.02,
        "l2": 0.1,
        "forward_passes": 3,
        "backward_passes": 2,
        "zero_grad": 0,
        "nonfinite_grad": 0,
        "projected": 0,
        "seconds": 0.5,
        "draws_right": float(prediction == label),
    }
    return {**row, **changes}


@pytest.fixture
def records():
    """Five images: 0 robust; 1 falls to a; 2 ties under b; 3 wrong clean, mended by a; 4 NaN."""
    rows = []
    clean = [0, 1, 2, 9, 4]
    for image in range(5):
        wrong_when_clean = image == 3
        rows.append(
            record(image, "clean", image, clean[image], clean[image], 2 if wrong_when_clean else -1)
        )
    for attack, predictions, margins in (
        ("a", [0, 7, 2, 3, 4], [-1, 1, -1, -1, -1]),
        ("b", [0, 1, 2, 9, -1], [-1, -1, 0, 2, np.nan]),
    ):
        for image in range(5):
            rows.append(
                record(image, attack, image, predictions[image], clean[image], margins[image])
            )
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def test_a_single_attack_counts_its_own_images_and_the_worst_case_all(records):
    results = summarise(records, "d", {"a": (7, 1)}).set_index("attack")
    assert list(summarise(records, "d", {}).columns) == RESULTS
    assert results.loc["clean", "accuracy"] == 4 / 5
    # Image 3, wrong when clean and mended by the attack, counts as right, as papers count.
    assert results.loc["a", "accuracy"] == 4 / 5
    # A tie is right for a single attack, and no prediction is wrong.
    assert results.loc["b", "accuracy"] == 3 / 5
    # Only image 0: 1 falls, 2 ties, 3 is wrong when clean, 4 gives no logits.
    assert results.loc["worst-case", "accuracy"] == 1 / 5
    assert results.loc["a", "attack_success_rate"] == 1 / 4
    assert results.loc["worst-case", "attack_success_rate"] == 3 / 4
    assert results.loc["a", "steps"] == 7 and results.loc["b", "steps"] == ""
    assert results.loc["worst-case", "backward_passes"] == 4
    assert results.loc["a", "ci_low"] < 0.8 < results.loc["a", "ci_high"]


def test_in_a_cascade_a_tie_is_an_error_of_its_entry(records):
    results = summarise(records, "d", {}, cascade=True).set_index("attack")
    assert results.loc["clean", "accuracy"] == 4 / 5
    assert results.loc["a", "accuracy"] == 4 / 5
    # Image 2 ties under b besides.
    assert results.loc["b", "accuracy"] == 2 / 5
    assert results.loc["worst-case", "accuracy"] == 1 / 5


def test_columns_of_the_records_are_those_promised():
    assert (
        RECORDS.names
        == (
            "model image_id label suite attack estimator substitute norm epsilon seed "
            "clean_prediction prediction margin success linf l2 forward_passes backward_passes "
            "zero_grad nonfinite_grad projected seconds draws_right"
        ).split()
    )


def test_parquet_keeps_types(records, tmp_path):
    path = tmp_path / "r.parquet"
    path.write_bytes(parquet(records, RECORDS))
    back = pd.read_parquet(path)
    assert back["success"].dtype == bool and back["prediction"].dtype == np.int64


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    write_atomically(path, b"old")

    def full(self, target):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["results.csv"]


def begun() -> Manifest:
    """The manifest of a run that begins."""
    return Manifest(identity="one", status="running", model="m", data="d", suite="s")


def test_a_folder_belongs_to_one_run(tmp_path):
    open_folder(tmp_path / "run", "one", begun)
    again = open_folder(tmp_path / "run", "one", lambda: pytest.fail("made twice"))
    assert again.manifest().identity == "one"
    with pytest.raises(InputError, match="holds another run"):
        open_folder(tmp_path / "run", "two", begun)


def test_foreign_folders_and_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        open_folder(tmp_path, "one", begun)
    with pytest.raises(InputError, match="is a file"):
        open_folder(tmp_path / "notes.txt", "one", begun)
    with pytest.raises(InputError, match="cannot write"):
        open_folder(tmp_path / "notes.txt" / "run", "one", begun)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"name": "an app"}')
    with pytest.raises(InputError, match="holds no run"):
        open_folder(tmp_path / "other", "one", begun)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "other"]


def test_parts_merge_in_the_order_asked_for(records, tmp_path):
    folder = RunFolder(tmp_path)
    clean = records[records["attack"] == "clean"].sort_values("image_id")
    folder.write_part("clean", 1, clean[3:], {"clean": np.ones((2, 1, 2, 2), np.float32)})
    folder.write_part("clean", 0, clean[:3], {"clean": np.zeros((3, 1, 2, 2), np.float32)})
    merged, images = folder.merged([("clean", 0), ("clean", 1)])
    assert merged["image_id"].tolist() == [0, 1, 2, 3, 4]
    assert images["clean"].sum((1, 2, 3)).tolist() == [0, 0, 0, 4, 4]
    folder.tidy()
    assert not folder.parts.exists()


@pytest.mark.parametrize("damage", ["missing", "truncated"])
@pytest.mark.parametrize("name", ["results.csv", "records.parquet", "activity.parquet"])
def test_a_damaged_run_is_named_with_the_remedy(tmp_path, name, damage):
    folder = RunFolder(tmp_path)
    if damage == "truncated":
        (tmp_path / name).write_bytes(b"" if name.endswith("csv") else b"PAR1")
    read = {"results.csv": folder.results, "records.parquet": folder.records}
    with pytest.raises(InputError, match=rf"{name} is missing or damaged.*run again"):
        read.get(name, folder.activity)()
