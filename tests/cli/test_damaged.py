"""Damaged folders, paths that cannot be used, sizes and values that cannot be: one line each."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save

from robustsnn.cli import main as cli_main
from robustsnn.errors import InputError
from robustsnn.models.checkpoint import check_neurons
from robustsnn.snn.network import Network, NetworkConfig
from tests.cli.test_bad_input import sign


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, run_warm: Any, checkpoints: Path) -> Path:
    """A small finished run."""
    root = tmp_path_factory.mktemp("finished")
    asked = ["evaluate", str(checkpoints / "snn"), "--samples", "4", "--attack", "fgsm"]
    done = run_warm([*asked, "--output", "run"], root)
    assert done.returncode == 0, done.stderr
    return root / "run"


def one_line(done: Any, *says: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("robustsnn: ")
    for part in says:
        assert part in line


def edited(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def deep(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 100_000 + "]" * 100_000)


def without(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        held = json.loads((folder / "manifest.json").read_text())
        del held[name]
        (folder / "manifest.json").write_text(json.dumps(held))

    return damage


def truncated(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def pipe(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def twice(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "records.parquet")
    names = [*table.column_names, "margin"]
    columns = [*table.columns, table.column("margin")]
    pq.write_table(pa.Table.from_arrays(columns, names), folder / "records.parquet")


def many_rows(folder: Path) -> None:
    """A few bytes that stand for a hundred million rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    one = pa.table({"image_id": pa.array(np.zeros(10_000_000, np.int8))})
    with pq.ParquetWriter(folder / "records.parquet", one.schema, compression="zstd") as file:
        for _ in range(10):
            file.write_table(one)


def texts_for_numbers(folder: Path) -> None:
    records = pd.read_parquet(folder / "records.parquet")
    records.assign(margin="large").to_parquet(folder / "records.parquet")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "no model": without("model"),
    "no data": without("data"),
    "seed of another type": lambda f: edited(f, seed="zero"),
    "entries of another type": lambda f: edited(f, entries="fgsm"),
    "entries that are none": lambda f: edited(f, entries=[{}]),
    "flags that say nothing": lambda f: edited(f, flags=[{}]),
    "a verdict of another type": lambda f: edited(f, verdict={"level": [], "because": 3}),
    "a ledger whose rows say nothing": lambda f: edited(f, ledger=[{}]),
    "energy of another type": lambda f: edited(f, energy={"ann_uj": "much"}),
    "operations that say nothing": lambda f: edited(f, operations=[{}], counts={"x": 1}),
    "deep": deep,
    "a truncated manifest": truncated("manifest.json"),
    "truncated records": truncated("records.parquet"),
    "truncated activity": truncated("activity.parquet"),
    "truncated images": truncated("examples.safetensors"),
    "a column twice": twice,
    "texts for numbers": texts_for_numbers,
    "many rows": many_rows,
    "a pipe for a manifest": pipe("manifest.json"),
    "a pipe for records": pipe("records.parquet"),
    "a pipe for results": pipe("results.csv"),
    "a pipe for images": pipe("examples.safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_ends_in_one_line(warm, finished, tmp_path, damage):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    DAMAGES[damage](folder)
    for verb in ("verify", "report"):
        done = warm(verb, "run")
        if done.returncode in (0, 1):
            # What a verb does not read cannot disturb it, and what it reads may be a plain lie.
            assert done.stderr == "", done.stderr
        else:
            one_line(done, "run")
    assert not list(tmp_path.glob("run/.report*"))


def test_paths_that_cannot_be_used_end_in_one_line(warm, finished, checkpoints, tmp_path):
    long = "x" * 300
    for arguments in (
        ("verify", long),
        ("report", long),
        ("evaluate", long),
        ("evaluate", f"{long}:make"),
        ("evaluate", checkpoints / "ann", "--suite", f"{long}.yaml"),
        ("evaluate", checkpoints / "ann", "--attack", f"{long}.py"),
        ("evaluate", checkpoints / "ann", "--data-root", long),
        ("evaluate", checkpoints / "ann", "--output", long),
        ("train", f"{long}.yaml"),
        ("zoo", "import", long, "--arch", "vgg5", "--timesteps", "4", "--output", "new"),
    ):
        one_line(warm(*arguments))
    one_line(warm("verify", b"\xff\xfe".decode("utf-8", "surrogateescape")), "not UTF-8")
    for module in ("./here:make", "..:make", "a b:c"):
        one_line(warm("evaluate", module, "--data", "fashion-mnist"))
    (tmp_path / "wrong.py").write_text("def make(:\n")
    one_line(warm("evaluate", "wrong:make", "--data", "fashion-mnist"), "failed", "mend")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["wrong.py"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission_ends_in_one_line(warm, finished, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / "records.parquet").chmod(0)
    one_line(warm("verify", "run"))
    folder.chmod(stat.S_IWUSR)
    one_line(warm("verify", "run"))
    folder.chmod(stat.S_IRWXU)


# --- sizes and values ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--threads", "100000"), "--threads 100000"),
        (("--attack", "torchattacks:PGD:steps=0"), "steps must be at least 1"),
        (("--attack", "torchattacks:PGD:alpha=0"), "alpha must be above 0"),
        (("--attack", "torchattacks:EOTPGD:eot_iter=0"), "eot_iter must be at least 1"),
        (("--attack", "torchattacks:Square:n_queries=-1"), "n_queries must be at least 1"),
        (("--attack", "transfer:torchattacks:PGD:steps=0"), "steps must be at least 1"),
        (("--attack", f"pgd:steps={10**30}"), "a whole number below 2^31"),
        (("--attack", "pgd", "--estimator", "bptt:arctan(width=1e300)"), "between 1e-6 and 1e6"),
        (("--epsilon", "1e300"), "1e300"),
    ],
)
def test_settings_without_a_meaning_are_refused(warm, checkpoints, tmp_path, arguments, says):
    one_line(warm("evaluate", checkpoints / "ann", "--samples", "4", *arguments), says)
    assert list(tmp_path.iterdir()) == []


def described(folder: Path, **changes: Any) -> None:
    path = folder / "model.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, "network": {**held["network"], **changes}}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mean": [1e300]}, "network.mean"),
        ({"std": [1e-300]}, "network.std"),
        ({"std": [1e300]}, "network.std"),
        ({"time_steps": 10**9}, "network.time_steps"),
        ({"image": [1, 10**6, 10**6]}, "network.image"),
        ({"classes": 10**9}, "network.classes"),
        ({"widths": [10**9, 4, 4]}, "network.widths"),
        ({"classifier": [4] * 1000}, "network.classifier"),
        ({"widths": [65536, 65536, 65536]}, "weights, more than"),
        ({"surrogate": {"name": "triangle", "width": 1e300}}, "network.surrogate.width"),
    ],
)
def test_descriptions_without_a_meaning_are_refused(warm, checkpoints, tmp_path, changes, says):
    folder = Path(shutil.copytree(checkpoints / "snn", tmp_path / "sent"))
    described(folder, **changes)
    one_line(warm("evaluate", "sent", "--samples", "4"), says)


@pytest.mark.parametrize(
    ("ending", "value", "says"),
    [
        (".threshold", np.float32(0), "the threshold of"),
        (".threshold", np.float32(-1), "the threshold of"),
        (".leak", np.float32(1.5), "the leak of"),
        (".leak", np.float32(-0.1), "the leak of"),
        (".weight", None, "weights are real floats"),
    ],
)
def test_weights_without_a_meaning_are_refused(warm, checkpoints, tmp_path, ending, value, says):
    folder = Path(shutil.copytree(checkpoints / "snn", tmp_path / "sent"))
    tensors = dict(load_file(folder / "model.safetensors"))
    name = next(name for name in tensors if name.endswith(ending))
    tensors[name] = tensors[name].astype(np.int64) if value is None else np.asarray(value)
    sign(folder, save(tensors))
    one_line(warm("evaluate", "sent", "--samples", "4"), says)


def test_neurons_of_other_checkpoints_are_held_to_the_same():
    config = {"architecture": "vgg5", "kind": "snn", "classes": 2, "image": (1, 8, 8),
              "widths": (2, 2, 2), "classifier": (4,), "mean": (0.5,), "std": (0.5,)}  # fmt: skip
    network = Network(NetworkConfig.model_validate(config))
    check_neurons(network, "it")
    with torch.no_grad():
        next(iter(network.spiking_layers().values())).leak.fill_(float("nan"))
    with pytest.raises(InputError, match="leak"):
        check_neurons(network, "it")


def test_an_image_is_refused_by_its_size_before_it_is_decoded(warm, checkpoints, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("L", (28, 28)).save(tmp_path / "images" / name / "0.png")
    # Some kilobytes of PNG that stand for 36 million pixels.
    Image.new("L", (6000, 6000)).save(tmp_path / "images" / "a" / "1.png")
    done = warm("evaluate", checkpoints / "ann", "--data", "folder", "--data-root", "images")
    one_line(done, "6000 x 6000", "resize")


def test_a_batch_is_never_larger_than_the_images(warm, checkpoints, tmp_path):
    """Padded to what is asked for, it would take 3 GB in the first layer alone."""
    done = warm("evaluate", checkpoints / "ann", "--samples", "4", "--attack", "fgsm",
                "--batch-size", "1000000", "--output", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["batch_size"] == 32


# --- the last resort -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyError("nobody"), 70, "a mistake of RobustSNN"),
        (RuntimeError("two\nlines"), 70, "two lines"),
        (OSError(28, "No space left on device", "/full"), 2, "No space left on device"),
        (MemoryError(), 2, "memory ran out"),
    ],
)
def test_what_nobody_foresaw_is_one_line_too(monkeypatch, capsys, error, code, says):
    def fails(**_: Any) -> None:
        raise error

    monkeypatch.setattr("robustsnn.models.zoo.zoo_folder", lambda name: fails())
    assert cli_main._main(["zoo", "show", "any"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line and (code == 2 or ("https://" in line and "ROBUSTSNN_DEBUG=1" in line))
    monkeypatch.setenv("ROBUSTSNN_DEBUG", "1")
    assert cli_main._main(["zoo", "show", "any"]) == code
    assert "Traceback" in capsys.readouterr().err
