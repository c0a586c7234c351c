"""A run that is stopped anywhere and started again ends as one that never was."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from robustsnn.errors import InputError
from robustsnn.evaluation.run import evaluate
from robustsnn.records.folder import RunFolder, read_results
from tests.conftest import CLI, cli_environment, run_cli


def same(one: Path, other: Path) -> None:
    """Two finished runs agree in all but how long they took."""
    a, b = (read_results(p / "results.csv").drop(columns="seconds") for p in (one, other))
    pd.testing.assert_frame_equal(a, b)
    a, b = (RunFolder(p).records().drop(columns="seconds") for p in (one, other))
    pd.testing.assert_frame_equal(a, b)
    x, y = (load_file(p / "examples.safetensors") for p in (one, other))
    assert sorted(x) == sorted(y)
    assert all(np.array_equal(x[name], y[name]) for name in x)
    names = [sorted(f.name for f in p.iterdir()) for p in (one, other)]
    assert names[0] == names[1] and "parts" not in names[0]


class Stop(BaseException):
    """As an interrupt, from within."""


def test_stopped_after_every_batch(checkpoints, tmp_path):
    settings = {"samples": 60, "batch_size": 8, "save_images": True}
    evaluate(checkpoints / "snn", output=tmp_path / "whole", **settings)
    computed: list[int] = []

    def stop(what: str, done: int, total: int) -> None:
        if done > len(computed):
            computed.append(total)
            raise Stop

    total = None
    while total is None or len(computed) < total:
        with pytest.raises(Stop):
            evaluate(checkpoints / "snn", output=tmp_path / "parts", progress=stop, **settings)
        total = computed[-1]
        assert (tmp_path / "parts" / "parts").is_dir()
        assert not (tmp_path / "parts" / "results.csv").exists()
    done = evaluate(checkpoints / "snn", output=tmp_path / "parts", **settings)
    assert not done.reprinted
    same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    "stage", ["records.parquet", "activity.parquet", "examples.safetensors", "results.csv"]
)
def test_stopped_while_merging(checkpoints, tmp_path, monkeypatch, stage):
    evaluate(checkpoints / "ann", samples=20, output=tmp_path / "whole")
    from robustsnn.records import folder as records

    write = records.write_atomically

    def dying(path: Path, content: bytes) -> None:
        if path.name == stage:
            path.with_name(f".{path.name}.1.part").write_bytes(content[:10])
            raise Stop
        write(path, content)

    monkeypatch.setattr(records, "write_atomically", dying)
    with pytest.raises(Stop):
        evaluate(checkpoints / "ann", samples=20, output=tmp_path / "killed")
    monkeypatch.undo()
    evaluate(checkpoints / "ann", samples=20, output=tmp_path / "killed")
    same(tmp_path / "whole", tmp_path / "killed")


def test_a_resumed_run_keeps_the_batch_size_it_was_started_with(checkpoints, tmp_path):
    def stop(what: str, done: int, total: int) -> None:
        if done == 4:
            raise Stop

    with pytest.raises(Stop):
        evaluate(
            checkpoints / "snn", samples=50, batch_size=8, output=tmp_path / "r", progress=stop
        )
    found = evaluate(checkpoints / "snn", samples=50, batch_size=16, output=tmp_path / "r")
    assert found.manifest.batch_size == 8 and (found.results["samples"] == 50).all()


@pytest.mark.skipif(sys.platform == "win32", reason="locks are the system's")
def test_two_processes_do_not_share_a_run(checkpoints, tmp_path):
    import fcntl

    def stop(what: str, done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        evaluate(checkpoints / "ann", samples=20, output=tmp_path / "r", progress=stop)
    with (tmp_path / "lock").open("w"):
        import os

        held = os.open(tmp_path / "r", os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process"):
            evaluate(checkpoints / "ann", samples=20, output=tmp_path / "r")
        os.close(held)
    assert evaluate(checkpoints / "ann", samples=20, output=tmp_path / "r").results is not None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_at_three_random_moments(checkpoints, tmp_path):
    arguments = ["evaluate", str(checkpoints / "snn"), "--samples", "1500", "--suite", "quick"]
    arguments += ["--batch-size", "16"]
    whole = run_cli([*arguments, "--output", "whole"], tmp_path)
    assert whole.returncode == 0, whole.stderr
    parts = tmp_path / "killed" / "parts"
    rng = random.Random(0)
    finished = 0
    # Six batches of each attack: three kills leave enough for a fourth start.
    for _ in range(3):
        process = subprocess.Popen(
            [*CLI, *arguments, "--output", "killed"],
            cwd=tmp_path,
            env=cli_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        target = finished + rng.randint(2, 4)
        deadline = time.monotonic() + 240
        while process.poll() is None and len(list(parts.glob("*.parquet"))) < target:
            assert time.monotonic() < deadline
            time.sleep(rng.random() / 50)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        finished = len(list(parts.glob("*.parquet")))
        for part in parts.glob("*.parquet"):
            assert len(pd.read_parquet(part)) > 0
    again = run_cli([*arguments, "--output", "killed"], tmp_path)
    assert again.returncode == 0, again.stderr
    same(tmp_path / "whole", tmp_path / "killed")


def test_a_run_that_an_older_version_began_is_finished(checkpoints, tmp_path):
    settings = {"samples": 12, "batch_size": 4}
    whole = evaluate(checkpoints / "snn", output=tmp_path / "whole", **settings)

    def stop(what: str, done: int, total: int) -> None:
        if done > 2:
            raise Stop

    with pytest.raises(Stop):
        evaluate(checkpoints / "snn", output=tmp_path / "older", progress=stop, **settings)
    path = tmp_path / "older" / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in ("stages", "spiking", "classes", "files", "estimator"):
        del manifest[name]
    path.write_text(json.dumps(manifest))
    done = evaluate(checkpoints / "snn", output=tmp_path / "older", **settings)
    assert done.manifest.stages == whole.manifest.stages
    assert done.manifest.verdict == whole.manifest.verdict
    same(tmp_path / "whole", tmp_path / "older")


CASCADE = """
name: short-cascade
epsilon: [8/255]
cascade: true
entries:
- {label: FGSM, attack: fgsm}
"""


@pytest.mark.slow
def test_a_diagnosis_stopped_after_every_piece(checkpoints, tmp_path):
    (tmp_path / "suite.yaml").write_text(CASCADE)
    settings = {"samples": 12, "suite": tmp_path / "suite.yaml"}
    whole = evaluate(checkpoints / "snn", output=tmp_path / "whole", **settings)
    parts = tmp_path / "killed" / "parts"
    seen: list[int] = []

    def stop(what: str, done: int, total: int) -> None:
        pieces = len(list(parts.glob("probe-*")))
        if what == "diagnosis" and pieces > max([0, *seen]):
            seen.append(pieces)
            raise Stop

    done = None
    while done is None:
        try:
            done = evaluate(
                checkpoints / "snn", output=tmp_path / "killed", progress=stop, **settings
            )
        except Stop:
            assert json.loads((tmp_path / "killed" / "manifest.json").read_text())["probe"] is None
    # Each start measured one piece, and no piece twice.
    assert seen == list(range(1, len(seen) + 1)) and len(seen) > 10
    same(tmp_path / "whole", tmp_path / "killed")
    assert done.manifest.probe == whole.manifest.probe
    assert done.manifest.diagnosis == whole.manifest.diagnosis
    for name in ("forward_passes", "backward_passes"):
        assert done.manifest.probe_cost[name] == whole.manifest.probe_cost[name]


def test_a_damaged_piece_of_a_diagnosis_is_told(checkpoints, tmp_path):
    (tmp_path / "suite.yaml").write_text(CASCADE)
    settings = {"samples": 12, "suite": tmp_path / "suite.yaml", "output": tmp_path / "run"}

    def stop(what: str, done: int, total: int) -> None:
        if list((tmp_path / "run").glob("parts/probe-*")):
            raise Stop

    with pytest.raises(Stop):
        evaluate(checkpoints / "snn", progress=stop, **settings)
    (piece,) = (tmp_path / "run").glob("parts/probe-*")
    held = piece.read_bytes()
    for damaged in (held[: len(held) // 2], held[:-1] + bytes([held[-1] ^ 1]), b""):
        piece.write_bytes(damaged)
        with pytest.raises(InputError, match="remove the run folder"):
            evaluate(checkpoints / "snn", **settings)
