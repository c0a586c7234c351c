"""The board, of runs of the real suites cut short, and of runs that were tampered with."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

import robustsnn
from robustsnn.cli.main import _main
from robustsnn.errors import InputError
from robustsnn.evaluation.suites import Suite, load_suite
from robustsnn.reporting.board import page
from robustsnn.workflows.board import board

MODELS = ("fashion-mnist/resnet12-snn", "fashion-mnist/resnet12-ann")


def short(name: str) -> Suite:
    """A suite of its first entry alone, under its own name."""
    suite = load_suite(name)
    entries = (suite.entries[0].model_copy(update={"attack": "pgd:steps=2", "estimator": "bptt"}),)
    return suite.model_copy(update={"entries": entries})


@pytest.fixture(autouse=True)
def _short_suites_ship(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification compares a suite with the one that ships under its name."""
    monkeypatch.setattr("robustsnn.workflows.verify.asked.load_suite", short)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Finished runs of two models that ship; all images of the first one were saved."""
    folder = tmp_path_factory.mktemp("runs")
    found = []
    for name in MODELS:
        output = folder / name.rpartition("/")[2]
        robustsnn.evaluate(
            name, suite=short("standard"), samples=12 if name.endswith("snn") else 40,
            output=output, save_images=name.endswith("snn"),
        )  # fmt: skip
        found.append(output)
    return found


def test_models_are_ranked_and_verified(runs: list[Path], tmp_path: Path) -> None:
    path = board(runs, tmp_path / "board")
    held = json.loads((tmp_path / "board" / "board.json").read_text())
    entries = {entry["model"]: entry for entry in held["entries"]}
    assert held["format"] == "robustsnn-board-1" and entries.keys() == set(MODELS)
    left = [entry["accuracy"] for entry in held["entries"]]
    assert left == sorted(left, reverse=True)
    whole, some = (entries[name] for name in MODELS)
    assert whole["verified"] and whole["doubt"] == ""
    # Without --save-images a run keeps few images, which cannot show that the rest is right.
    assert not some["verified"] and "were saved: run with --save-images" in some["doubt"]
    results = pd.read_csv(runs[0] / "results.csv").set_index("attack")
    assert whole["accuracy"] == pytest.approx(results.loc["worst-case", "accuracy"])
    assert whole["clean"] == pytest.approx(results.loc["clean", "accuracy"])
    assert whole["low"] < whole["accuracy"] < whole["high"] or whole["accuracy"] == 0
    text = path.read_text(encoding="utf-8")
    # It is one file, which shows the card and asks nobody else for anything.
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "SNN converted from its ANN" in text and "Reported, not verified" in text
    assert str(tmp_path) not in text


def test_a_run_that_was_changed_is_reported_and_not_verified(
    runs: list[Path], tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(runs[0], mine)
    results = pd.read_csv(mine / "results.csv")
    results.loc[results["attack"] == "worst-case", "accuracy"] = 0.99
    results.to_csv(mine / "results.csv", index=False)
    board([mine], tmp_path / "board")
    (entry,) = json.loads((tmp_path / "board" / "board.json").read_text())["entries"]
    assert not entry["verified"] and "do not follow from the records" in entry["doubt"]


def test_a_manifest_cannot_make_it_import_code(runs: list[Path], tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(runs[0], mine)
    manifest = json.loads((mine / "manifest.json").read_text())
    manifest |= {"model": "antigravity:fly", "origin": "antigravity:fly"}
    (mine / "manifest.json").write_text(json.dumps(manifest))
    board([mine], tmp_path / "board")
    (entry,) = json.loads((tmp_path / "board" / "board.json").read_text())["entries"]
    assert not entry["verified"] and "name it with --model" in entry["doubt"]
    # Its owner says where the model is, and what is left is that the manifest was edited.
    board([mine], tmp_path / "board", {str(mine): MODELS[0]})
    (entry,) = json.loads((tmp_path / "board" / "board.json").read_text())["entries"]
    assert not entry["verified"] and "--model" not in entry["doubt"], entry["doubt"]


def test_names_from_a_manifest_are_text_on_the_page(runs: list[Path], tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(runs[0], mine)
    manifest = json.loads((mine / "manifest.json").read_text())
    manifest["model"] = "<script>alert(1)</script>"
    (mine / "manifest.json").write_text(json.dumps(manifest))
    text = board([mine], tmp_path / "board").read_text(encoding="utf-8")
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_networks_that_draw_are_a_table_of_their_own() -> None:
    text = page(())
    assert "under rand" not in text and "under standard" not in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{run}", "--output", "{tmp}/b", "--model", "x"], "write RUN=MODEL"),
        (["{run}", "--output", "{tmp}/b", "--model", "x=y"], "not on the board"),
        (["{tmp}/none", "--output", "{tmp}/b"], "none"),
        (["{run}", "--output", "{run}"], "holds no run: name another"),
    ],
)
def test_mistakes_are_one_line(runs: list[Path], tmp_path: Path, arguments, says, capsys) -> None:
    given = [a.format(run=runs[0], tmp=tmp_path) for a in arguments]
    assert _main(["board", *given]) == 2
    said = capsys.readouterr().err
    assert says in said and len(said.splitlines()) == 1
    assert not (tmp_path / "b").exists()


def test_a_run_of_another_suite_is_refused(tmp_path: Path) -> None:
    robustsnn.evaluate(MODELS[1], attack=["fgsm"], samples=4, output=tmp_path / "run")
    with pytest.raises(InputError, match="the board ranks runs of"):
        board([tmp_path / "run"], tmp_path / "board")
