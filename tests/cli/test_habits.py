"""Small habits of the command line: listing runs, a bound for CI, hints, other packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import Cli, cli_environment
from tests.made_runs import QUICK, draw, write_run

PACKAGE = """
from dataclasses import dataclass
import robustsnn

@dataclass(frozen=True)
class Corner:
    \"\"\"To a corner of the ball.\"\"\"
    kind = "fixed-epsilon"
    steps: int = 1
    def __call__(self, victim, images, labels, threat, rng):
        found = victim.gradient(images, labels, "margin")
        return threat.project(images + threat.radius * threat.ascent(found.gradient), images)
"""
REPORT = """
def render(runs, output):
    path = output / "tables" / "sizes.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(" ".join(runs.models))
    return [path]
"""


# --- robustsnn runs list -------------------------------------------------------------------------


def test_runs_are_listed_with_accuracy_and_level(tmp_path: Path, warm: Cli) -> None:
    right = draw(QUICK, 40, 0)
    verdict = {"level": "B", "title": "upper bound", "sentence": "B.", "next": "Go."}
    write_run(tmp_path / "runs/new", right, verdict=verdict, start="2026-02-01T00:00:00Z")
    write_run(tmp_path / "runs/compare-1/one", right, suite="hire", seed=7)
    write_run(tmp_path / "runs/open", right, status="running", start="2026-03-01T00:00:00Z")
    write_run(tmp_path / "runs/bad", right)
    (tmp_path / "runs/bad/manifest.json").write_text("{")
    done = warm("runs", "list")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    worst = 100 * np.logical_and.reduce(list(right.values())).mean()
    assert f"{worst:.1f} %" in text.replace("\xa0", " ") and "unfinished" in text
    assert "hire" in text and "2026-02-01 00:00" in text
    # The oldest comes first, and what cannot be read last, with the reason on stderr.
    places = [text.index(name) for name in ("compare-1/one", "runs/new", "runs/open", "runs/bad")]
    assert places == sorted(places)
    assert done.stderr.count("\n") == 1 and "runs/bad" in done.stderr


def test_a_folder_without_runs_is_told(tmp_path: Path, warm: Cli) -> None:
    missing = warm("runs", "list")
    assert missing.returncode == 2 and "no folder runs" in missing.stderr
    (tmp_path / "runs").mkdir()
    empty = warm("runs", "list")
    assert (empty.returncode, empty.stdout) == (0, "") and "no run below runs" in empty.stderr


# --- --fail-under --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_bound_for_continuous_integration(tmp_path: Path, warm: Cli) -> None:
    asked = ("evaluate", "fashion-mnist/vgg5-ann", "--attack", "fgsm", "--samples", "8")
    first = warm(*asked, "--json", "--output", "r")
    left = min(row["accuracy"] for row in json.loads(first.stdout)["results"])
    for least, code in ((left, 0), (min(left + 0.01, 1), 1), (0, 0)):
        done = warm(*asked, "--json", "--output", "r", "--fail-under", str(least))
        assert done.returncode == code, done.stderr
        # Results are printed all the same.
        assert json.loads(done.stdout)["results"]
        assert ("is below --fail-under" in done.stderr) == (code == 1)
    for wrong in ("1.5", "-0.1", "nan"):
        done = warm(*asked, "--output", "s", "--fail-under", wrong)
        assert done.returncode == 2 and "between 0 and 1" in done.stderr
        assert not (tmp_path / "s").exists()


def test_a_number_that_is_not_reliable_does_not_pass(capsys: pytest.CaptureFixture[str]) -> None:
    from robustsnn.cli.screen import fails_under
    from robustsnn.evaluation.finished import Evaluation
    from robustsnn.records.manifest import Manifest

    def run(level: str) -> Evaluation:
        manifest = Manifest(model="m", data="d", suite="s", verdict={"level": level})
        results = pd.DataFrame({"attack": ["clean", "worst-case"], "accuracy": [1.0, 0.9]})
        return Evaluation(None, manifest, pd.DataFrame(), results, pd.DataFrame())

    assert not fails_under(0.5, [run("B")]) and not fails_under(None, [run("C")])
    assert fails_under(0.5, [run("B"), run("C")])
    assert "level C" in capsys.readouterr().err


# --- unknown fields ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "meant"),
    [
        ("name: a\nepslion: 8/255\nentries: [{label: a, attack: fgsm}]\n", 2, "'epsilon'"),
        ("name: a\nepsilon: 8/255\nentries: [{label: a, atack: fgsm}]\n", 3, "'attack'"),
        ("name: a\nepsilon: 8/255\nentries: [{label: a, attack: fgsm, zzz: 1}]\n", 3, ""),
    ],
)
def test_a_suite_with_an_unknown_field(
    tmp_path: Path, warm: Cli, text: str, line: int, meant: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    done = warm("evaluate", "fashion-mnist/vgg5-ann", "--suite", "mine.yaml", "--samples", "1")
    assert done.returncode == 2 and f"line {line}" in done.stderr
    assert "no such field" in done.stderr and "Known: " in done.stderr
    assert ("Did you mean" in done.stderr) == bool(meant) and meant in done.stderr


def test_a_recipe_with_an_unknown_field(tmp_path: Path, warm: Cli) -> None:
    shipped = Path(__file__).parents[2] / "zoo/fashion-mnist/vgg5-snn-hire/recipe.yaml"
    text = shipped.read_text(encoding="utf-8")
    assert " lr: 5.0e-3" in text
    (tmp_path / "recipe.yaml").write_text(text.replace(" lr: 5.0e-3", " lrr: 5.0e-3"))
    done = warm("train", "recipe.yaml")
    assert (
        done.returncode == 2 and "optimizer.lrr: no such field. Did you mean 'lr'?" in done.stderr
    )


# --- other packages ------------------------------------------------------------------------------


def installed(folder: Path, *, broken: bool = False) -> dict[str, str]:
    """The environment in which a small package is installed that adds an attack and a report."""
    site = folder / "site"
    (site / "corner").mkdir(parents=True)
    (site / "corner/__init__.py").write_text("import nothing_like_it\n" if broken else PACKAGE)
    (site / "corner/sizes.py").write_text(REPORT)
    about = site / "corner_attack-1.2.dist-info"
    about.mkdir()
    about.joinpath("METADATA").write_text(
        "Metadata-Version: 2.1\nName: corner-attack\nVersion: 1.2\n"
    )
    about.joinpath("entry_points.txt").write_text(
        "[robustsnn.attacks]\ncorner = corner:Corner\npgd = corner:Corner\n"
        "[robustsnn.reports]\nsizes = corner.sizes\n"
    )
    return {**cli_environment(), "PYTHONPATH": str(site)}


def run(
    arguments: str, folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "robustsnn", *arguments.split()],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_an_installed_package_adds_an_attack_and_a_report(tmp_path: Path) -> None:
    environment = installed(tmp_path)
    listed = run("attacks list", tmp_path, environment)
    assert "corner" in listed.stdout and "corner-attack 1.2" in " ".join(listed.stdout.split())
    done = run(
        "evaluate fashion-mnist/vgg5-ann --attack corner --attack fgsm:loss=margin --samples 8"
        " --output r", tmp_path, environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = pd.read_csv(tmp_path / "r/results.csv").set_index("attack")["accuracy"]
    assert results["corner"] == results["fgsm-loss-margin"]
    assert (
        json.loads((tmp_path / "r/manifest.json").read_text())["versions"]["corner-attack"] == "1.2"
    )
    assert run("report r", tmp_path, environment).returncode == 0
    assert (tmp_path / "r/tables/sizes.txt").read_text() == "vgg5-ann"
    # What ships keeps its name, and without the package the name is unknown.
    shown = run("attacks show pgd", tmp_path, environment)
    assert "Projected gradient ascent" in shown.stdout
    gone = run("attacks show corner", tmp_path, dict(os.environ))
    assert gone.returncode == 2 and "no attack or suite named 'corner'" in gone.stderr


@pytest.mark.slow
def test_a_package_that_does_not_load_is_named(tmp_path: Path) -> None:
    environment = installed(tmp_path, broken=True)
    done = run("evaluate fashion-mnist/vgg5-ann --attack corner --samples 1", tmp_path, environment)
    assert done.returncode == 2 and "corner-attack 1.2" in done.stderr
    assert len(done.stderr.splitlines()) == 1
