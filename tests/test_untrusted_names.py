"""Names that come from files are zoo names or folders, never code: a tracer sees what runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

TRACER = """
from pathlib import Path
from torch import nn

MARK = Path({mark!r})
MARK.write_text(MARK.read_text() + "imported " if MARK.exists() else "imported ")


def build():
    MARK.write_text(MARK.read_text() + "called ")
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
"""
NAMED = "robustsnn_tracer:build"


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that appears once the tracer, importable from the working folder, has run."""
    mark = tmp_path / "traces"
    (tmp_path / "robustsnn_tracer.py").write_text(TRACER.format(mark=str(mark)))
    return mark


def edited(path: Path, **changes: Any) -> None:
    """A JSON file with other values."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_tracer_sees_what_a_user_types(warm, mark, tmp_path):
    done = warm(
        *("evaluate", NAMED, "--data", "fashion-mnist", "--samples", "10"),
        *("--attack", "fgsm", "--output", "run"),
    )
    assert done.returncode == 0, done.stderr
    assert mark.read_text().split() == ["imported", "called"]


@pytest.mark.parametrize("fields", [("origin",), ("model",), ("origin", "model")])
def test_verify_imports_nothing_that_a_manifest_names(warm, mark, checkpoints, tmp_path, fields):
    done = warm(
        *("evaluate", checkpoints / "ann", "--samples", "10", "--attack", "fgsm"),
        *("--output", "run"),
    )
    assert done.returncode == 0, done.stderr
    gone = {"origin": str(tmp_path / "gone")} if fields == ("model",) else {}
    edited(tmp_path / "run" / "manifest.json", **gone, **dict.fromkeys(fields, NAMED))
    said = warm("verify", "run")
    if "model" in fields:
        assert said.returncode == 2 and said.stdout == ""
        assert len(said.stderr.splitlines()) == 1 and "--model" in said.stderr
    else:
        # The other name is that of a folder, which is read and compared by its sha256.
        assert said.returncode == 0, said.stderr
    # Weights alone do not make the name the user's.
    assert warm("verify", "run", "--weights", "any.pt").returncode == 2
    assert warm("report", "run").returncode == 0
    assert not mark.exists()


@pytest.mark.parametrize("verb", ["evaluate", "compare"])
def test_no_substitute_is_imported_that_a_checkpoint_names(warm, mark, checkpoints, tmp_path, verb):
    shutil.copytree(checkpoints / "ann", tmp_path / "sent")
    edited(tmp_path / "sent" / "model.json", substitute=NAMED)
    said = warm(verb, "sent", "--samples", "10", "--attack", "transfer:fgsm")
    assert said.returncode == 2, said.stderr
    assert len(said.stderr.splitlines()) == 1 and "--substitute" in said.stderr
    assert not mark.exists() and not (tmp_path / "runs").exists()


def test_a_substitute_that_the_user_types_may_be_code(warm, mark, checkpoints, tmp_path):
    done = warm(
        *("evaluate", checkpoints / "ann", "--samples", "10", "--attack", "transfer:fgsm"),
        *("--substitute", NAMED, "--output", "run"),
    )
    assert done.returncode == 0, done.stderr
    assert "called" in mark.read_text()
