"""Models that are Python files: an edit makes another run, and a mistake in them is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustsnn.errors import InputError
from robustsnn.models.factory import from_factory
from tests.conftest import Cli

NETS = """
from pathlib import Path

import torch
from torch import nn

import helper

SCALE = 1.0


class Net(nn.Module):
    def __init__(self, gain=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(784, 10)
        self.gain = gain

    def forward(self, x, shift=0.0):
        size = float(Path("size.txt").read_text())
        return helper.shaped(self.linear(x.flatten(1)) * SCALE * self.gain + shift) * size


def build(gain=1.0):
    return Net(gain)
"""
HELPER = """
import deeper


def shaped(x):
    return x.clamp(max=1e6) + deeper.bent(x)
"""
DEEPER = """
def bent(x):
    return 0 * x
"""
SIZE = "1.0"
EVALUATE = ("evaluate", "nets:build", "--data", "fashion-mnist", "--samples", "6")
EDITS = [
    ("nets.py", "SCALE = 1.0", "SCALE = 1.5"),
    ("nets.py", "shift=0.0", "shift=0.5"),
    ("nets.py", "build(gain=1.0)", "build(gain=2.0)"),
    ("nets.py", "x.flatten(1)", "x.flatten(1).relu()"),
    ("helper.py", "max=1e6", "max=1e5"),
    ("deeper.py", "0 * x", "0.1 * x"),
    ("size.txt", "1.0", "2.0"),
]


def write(folder: Path) -> None:
    for name, text in (
        ("nets.py", NETS),
        ("helper.py", HELPER),
        ("deeper.py", DEEPER),
        ("size.txt", SIZE),
    ):
        (folder / name).write_text(text)


@pytest.mark.slow
def test_an_edited_model_is_never_reprinted(warm: Cli, tmp_path: Path) -> None:
    write(tmp_path)

    def run(*more: str) -> tuple[str, str]:
        done = warm(*EVALUATE, "--attack", "fgsm", "--json", *more)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["output"], done.stderr

    first, said = run()
    assert "not computed again" not in said
    folders = {first}
    for name, old, new in EDITS:
        path = tmp_path / name
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
        folder, said = run()
        assert folder not in folders and "not computed again" not in said, (name, new)
        folders.add(folder)
        path.write_text(text)
    folder, said = run("--threads", "3", "--batch-size", "7")
    assert folder == first
    manifest = json.loads((tmp_path / first / "manifest.json").read_text())
    assert f"made on {manifest['start'][:10]} at" in said
    assert f"by RobustSNN {manifest['versions']['robustsnn']} with torch" in said
    assert f"--threads 3 was not used, it was {manifest['threads']}" in said
    assert f"--batch-size 7 was not used, it was {manifest['batch_size']}" in said
    for name in ("contents", "logits", "gradient"):
        assert len(manifest["function"][name]) == 64

    kept = tmp_path / "run"
    run("--output", "run")
    (tmp_path / "helper.py").write_text(HELPER.replace("max=1e6", "max=1e5"))
    before = (kept / "results.csv").read_bytes()
    done = warm(*EVALUATE, "--attack", "fgsm", "--output", "run")
    assert done.returncode == 2 and done.stdout == ""
    assert "had other weights or other code: name another --output" in done.stderr
    assert done.stderr.count("\n") == 1 and (kept / "results.csv").read_bytes() == before


HEAD = "import sys\nimport torch\nfrom torch import nn\n"
MISTAKES = [
    ("def broken(:\n", "SyntaxError", 1),
    ("import no_such_module_anywhere\n", "ModuleNotFoundError", 1),
    ("\nsys = 1 / 0\n", "ZeroDivisionError", 2),
    ("import sys\nsys.exit(3)\n", "SystemExit: 3", 2),
    ("from json import nothing_of_that_name\n", "ImportError", 1),
    (HEAD + "def build():\n    return nn.Linear('a', 2)\n", "TypeError", 5),
    (HEAD + "def build():\n    sys.exit('usage')\n", "SystemExit: usage", 5),
    (HEAD + "def build(width):\n    return nn.Linear(width, 2)\n", "TypeError: build", None),
    (
        HEAD + "class Net(nn.Module):\n    def __init__(self):\n        self.a = nn.Linear(1, 1)\n"
        "build = Net\n",
        "AttributeError",
        6,
    ),
    (
        HEAD + "class Net(nn.Flatten):\n    def forward(self, x):\n        return x.sigh()\n"
        "build = Net\n",
        "AttributeError",
        6,
    ),
    (
        HEAD + "class Net(nn.Flatten):\n    def forward(self, x):\n        sys.exit(7)\n"
        "build = Net\n",
        "SystemExit: 7",
        6,
    ),
    (
        HEAD + "class Net(nn.Flatten):\n    def eval(self):\n        raise IndexError('mode')\n"
        "build = Net\n",
        "IndexError: mode",
        6,
    ),
    ("", "has no attribute 'build'", None),
]


@pytest.mark.parametrize(("text", "reason", "line"), MISTAKES)
def test_a_mistake_in_a_model_is_one_line(
    warm: Cli, tmp_path: Path, text: str, reason: str, line: int | None
) -> None:
    (tmp_path / "nets.py").write_text(text)
    done = warm(*EVALUATE, "--attack", "fgsm")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("robustsnn: ")
    assert reason in done.stderr
    if line is not None:
        assert f"{tmp_path / 'nets.py'}, line {line}" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_module_that_is_missing_is_told_from_one_that_it_imports(
    warm: Cli, tmp_path: Path
) -> None:
    done = warm(*EVALUATE)
    assert done.returncode == 2
    assert "cannot find 'nets:build' (No module named 'nets')" in done.stderr


@pytest.mark.parametrize(
    ("given", "meant"), [("nets.py:Net", "nets:Net"), ("./sub/nets.py:Net", "sub.nets:Net")]
)
def test_a_file_in_place_of_a_module_is_told_how_it_is_written(given: str, meant: str) -> None:
    with pytest.raises(InputError, match=rf"names a file: write {meant}, without \.py"):
        from_factory(given)
