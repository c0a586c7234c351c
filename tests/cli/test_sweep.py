"""Sweeps through the real command line: what is refused, what fails, what goes on."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.evaluation.test_resume import same

NETS = """
import pathlib
from torch import nn

class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    def forward(self, x):
        if pathlib.Path("fail").exists():
            raise KeyError("asked to fail")
        return self.inner(x)

def build():
    import torch
    torch.manual_seed(0)
    return Fails()
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: []", "line 1: models"),
        ("suites: [quick]", "models: Field required"),
        ("models: [fashion-mnist/vgg5-ann]\nworker: 3", "line 2: worker"),
        ("models: [fashion-mnist/vgg5-ann]\nseeds: [-1]", "line 2: seeds.0"),
        ("models: [fashion-mnist/vgg5-ann]\nsuites: [nosuch]", "nosuch"),
        ("models: [fashion-mnist/vgg5-ann]\ndata: [nosuch]", "nosuch"),
        ("models: [fashion-mnist/vgg5-ann]\nsizes: [big]", "big"),
        ("models: [fashion-mnist/vgg5-ann, fashion-mnist/vgg5-ann]", "asked for twice"),
        ("models: ['nets:build']", "nets:build"),
        ("models: [fashion-mnist/vgg5-ann]\nsuites: [own.yaml]", "attack.py"),
        ("[]", "a sweep is a mapping"),
        ("models: &a [x]\nsuites: *a", "aliases"),
    ],
)
def test_a_bad_sweep_is_refused_in_one_line(warm, tmp_path, text, said):
    (tmp_path / "own.yaml").write_text(
        "name: own\nversion: 1\ndescription: own\nepsilon: 8/255\n"
        "entries:\n  - {label: Own, attack: ./attack.py}\n"
    )
    (tmp_path / "attack.py").write_text("raise SystemExit('run')\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    done = warm("sweep", written(tmp_path, text))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "sweep.yaml"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--workers", "0"], "--workers 0"),
        (["--workers", "2", "--ray", "auto"], "exclude each other"),
        (["--gpus-per-worker", "0.5"], "is for --ray"),
    ],
)
def test_bad_options_are_refused_in_one_line(warm, tmp_path, options, said):
    path = written(tmp_path, "models: [fashion-mnist/vgg5-ann]\nsamples: 4\n")
    done = warm("sweep", path, *options)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr


def test_a_dry_run_names_each_run_and_its_cost(warm, tmp_path):
    path = written(tmp_path, "models: [fashion-mnist/vgg5-ann]\nseeds: [0, 7]\nsamples: 4\n")
    done = warm("sweep", path, "--dry-run", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "fashion-mnist-vgg5-ann-quick-seed-7" in done.stdout
    assert "2 runs, 8 cells: at most" in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_what_fails_is_told_and_tried_again(cli, tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "fail").touch()
    path = written(
        tmp_path,
        "models: [fashion-mnist/vgg5-ann, 'nets:build']\n"
        "suites: quick\ndata: fashion-mnist\nsamples: 8\n",
    )
    command = ("sweep", path, "--allow-code", "--output", "out", "--workers", "2")
    first = cli(*command)
    assert first.returncode == 2, first.stderr
    assert "nets-build-quick-seed-0-fashion-mnist failed" in first.stderr
    assert "1 of 2 runs failed" in first.stderr and "Traceback" not in first.stderr
    (tmp_path / "fail").unlink()
    second = cli(*command)
    assert second.returncode == 0, second.stderr
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert table["run"].nunique() == 2 and (tmp_path / "out" / "index.html").is_file()
    alone = cli(
        "evaluate", "fashion-mnist/vgg5-ann", "--suite", "quick", "--samples", "8",
        "--data", "fashion-mnist", "--threads", "1", "--output", "alone",
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    run = tmp_path / "out" / "runs" / "fashion-mnist-vgg5-ann-quick-seed-0-fashion-mnist"
    same(tmp_path / "alone", run)
    other = written(tmp_path, "models: [fashion-mnist/vgg5-ann]\nsamples: 8\n")
    done = cli("sweep", other, "--output", "out")
    assert done.returncode == 2 and "holds another sweep" in done.stderr
