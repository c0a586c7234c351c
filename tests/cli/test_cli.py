"""The command line on what works: outputs, exit codes, and what it does not import."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

import robustsnn
from robustsnn.records.folder import read_results
from robustsnn.records.schema import RESULTS
from tests.conftest import CLI, cli_environment


def test_help_is_fast_and_imports_no_torch(tmp_path):
    code = (
        "import sys\nfrom robustsnn.cli.main import _main\n"
        "try:\n    _main(['evaluate', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    # CPU time: how long it takes on a machine that does nothing else.
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    after = os.times()
    assert done.returncode == 0, done.stderr
    assert "--save-images" in done.stdout
    spent = after.children_user + after.children_system - before.children_user
    assert spent - before.children_system < 1


def test_every_verb_has_help(cli):
    verbs = (
        "demo evaluate compare crosscheck report board verify train zoo attacks estimators".split()
    )
    text = cli("--help").stdout
    for verb in verbs:
        assert re.search(rf"^\s+{verb}\b", text, re.MULTILINE)


@pytest.mark.parametrize("group", [[], ["zoo"], ["attacks"], ["estimators"]])
def test_no_summary_of_a_command_is_cut(warm, group):
    listed = warm(*group, "--help").stdout.partition("Commands:")[2]
    lines = [line for line in listed.splitlines() if line.strip()]
    assert len(lines) >= 2
    for line in lines:
        assert line.rstrip().endswith(".") and not line.rstrip().endswith("..."), line
        assert len(line) <= 80


def test_the_version_is_that_of_the_package(warm):
    done = warm("--version")
    assert done.returncode == 0 and done.stdout.strip() == robustsnn.__version__


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("evaluate fashion-mnist/vgg5-snn-h", "fashion-mnist/vgg5-snn-hire"),
        ("evaluate x --suite stand", "standard"),
        ("evaluate x --attack hop", "hop-skip-jump"),
        ("compare x --estimator bpt", "bptt"),
        ("estimators show ass", "assg"),
        ("zoo show cifar", "cifar10/vgg5-snn"),
    ],
)
def test_the_shell_completes_names(words, offered, tmp_path):
    environment = cli_environment() | {
        "_ROBUSTSNN_COMPLETE": "complete_bash",
        "COMP_WORDS": f"robustsnn {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    code = "from robustsnn.cli.main import app; app(prog_name='robustsnn')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert offered in done.stdout.split(), done.stdout + done.stderr


def test_estimators_are_listed_and_shown(warm):
    listed = warm("estimators", "list").stdout
    for name in ("bptt", "spsa", "assg", "draws=20"):
        assert name in listed
    shown = warm("estimators", "show", "hart").stdout
    assert "width: float = 0.5" in shown and "ICLR 2024" in shown
    wrong = warm("estimators", "show", "hrt")
    assert wrong.returncode == 2 and "Did you mean 'hart'" in wrong.stderr


def test_lists_need_no_torch(tmp_path):
    lists = (["zoo", "list"], ["attacks", "list"], ["estimators", "list"])
    for arguments in (*lists, ["attacks", "show", "quick"]):
        code = (
            f"import sys\nfrom robustsnn.cli.main import _main\nassert _main({arguments!r}) == 0\n"
            "assert 'torch' not in sys.modules\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


def test_show_an_attack(warm):
    both = warm("attacks", "show", "energy")
    assert "label: Energy same label" in both.stdout and "keep_label: bool = True" in both.stdout
    done = warm("attacks", "show", "pgd")
    assert done.returncode == 0
    assert "steps: int = 20" in done.stdout and "fixed-epsilon" in done.stdout


def test_json_is_all_there_is_on_stdout(cli, warm, checkpoints, tmp_path):
    arguments = ("evaluate", checkpoints / "snn", "--samples", "20", "--json", "--attack", "fgsm")
    first = cli(*arguments, "--epsilon", "0,4/255")
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert list(pd.DataFrame(found["results"]).columns) == RESULTS
    sizes = [(row["attack"], row["epsilon"]) for row in found["results"]]
    assert sizes == [
        ("clean", ""),
        ("fgsm", "0"),
        ("fgsm", "4/255"),
        ("worst-case", "0"),
        ("worst-case", "4/255"),
    ]
    folder = tmp_path / found["output"]
    assert folder.parent == tmp_path / "runs"
    assert len(read_results(folder / "results.csv")) == 5
    again = warm(*arguments, "--epsilon", "0,4/255")
    assert json.loads(again.stdout) == found
    (line,) = again.stderr.splitlines()
    assert ": made on 20" in line and line.endswith("not computed again.")


def test_compare_writes_the_page_and_verify_agrees(cli, warm, checkpoints, tmp_path):
    done = cli(
        *("compare", checkpoints / "ann", checkpoints / "snn", "--samples", "30"),
        *("--output", "out", "--save-images"),
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert done.stdout.strip().splitlines()[-1] == "out/index.html"
    assert (out / "index.html").is_file() and list((out / "figures").glob("*.png"))
    runs = sorted(p.parent for p in out.glob("*/manifest.json"))
    assert len(runs) == 2
    assert "PGD-10" in done.stdout

    fine = cli("verify", runs[0])
    assert fine.returncode == 0, fine.stderr
    assert fine.stdout.splitlines()[-1] == "verified: all of 30 images."

    table, written = runs[0] / "results.csv", (runs[0] / "results.csv").read_text()
    for column in ("accuracy", "ci_high", "attack_success_rate", "draws_accuracy"):
        results = read_results(table)
        results.loc[results["attack"] == "worst-case", column] += 0.1
        results.to_csv(table, index=False)
        raised = warm("verify", runs[0])
        assert raised.returncode == 1, column
        assert "1 rows of results.csv do not follow" in raised.stdout, column
    read_results(table).query("attack != 'worst-case'").to_csv(table, index=False)
    assert "1 rows of results.csv" in warm("verify", runs[0]).stdout
    table.write_text(written)
    results = read_results(table)
    results.loc[0, "estimator"] = "bptt"
    results.to_csv(table, index=False)
    assert "1 rows of results.csv" in warm("verify", runs[0]).stdout
    # A run of old has no column of draws.
    old = pd.read_csv(io.StringIO(written), dtype=str, keep_default_na=False)
    old.drop(columns="draws_accuracy").to_csv(table, index=False)
    assert warm("verify", runs[0]).returncode == 0
    table.write_text(written)
    records = pd.read_parquet(runs[0] / "records.parquet")
    # Dropped from the records and the table alike.
    hard = records[records["image_id"] != records["image_id"].iloc[0]]
    hard.to_parquet(runs[0] / "records.parquet")
    assert warm("verify", runs[0]).returncode != 0
    records.to_parquet(runs[0] / "records.parquet")
    assert warm("verify", runs[0]).returncode == 0

    records = pd.read_parquet(runs[0] / "records.parquet")
    margins = records["margin"].copy()
    records.loc[records["attack"] == "fgsm", "margin"] = -1.0
    records.to_parquet(runs[0] / "records.parquet")
    lowered = warm("verify", runs[0])
    assert lowered.returncode == 1 and "margin of another prediction" in lowered.stdout
    records["margin"] = margins
    records.loc[records["attack"] == "fgsm", "prediction"] = 9
    records.to_parquet(runs[0] / "records.parquet")
    tampered = warm("verify", runs[0])
    assert tampered.returncode == 1
    assert "not verified" in tampered.stdout and "results.csv" in tampered.stdout

    page = cli("report", runs[1])
    assert page.returncode == 0, page.stderr
    assert (runs[1] / "index.html").is_file()


def test_a_users_own_model_and_weights(cli, warm, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    done = cli(
        *("evaluate", "mine:make", "--weights", "mine.pt", "--data", "fashion-mnist"),
        *("--samples", "20", "--attack", "fgsm", "--output", "run"),
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["origin"] == "mine:make"
    # Each of the 784 x 10 weights is one multiply-accumulate of 4.6 pJ.
    assert manifest["energy"]["ann_uj"] == pytest.approx(7840 * 4.6e-6)
    fine = warm("verify", "run", "--model", "mine:make", "--weights", "mine.pt")
    assert fine.returncode == 0, fine.stderr + fine.stdout
    other = warm("verify", "run", "--model", "mine:make")
    assert other.returncode == 2 and "is not the model of this run" in other.stderr


def test_import_of_an_official_state_dict(cli, warm, tmp_path):
    torch.manual_seed(0)
    shapes = {0: (4, 3, 3, 3), 3: (5, 4, 3, 3), 6: (6, 5, 3, 3)}
    tensors = {f"features.{i}.weight": torch.randn(s) for i, s in shapes.items()}
    for i, s in {0: (12, 6 * 64), 3: (9, 12), 6: (10, 9)}.items():
        tensors[f"classifier.{i}.weight"] = torch.randn(s)
    for n in (0, 3, 6, 9, 12):
        tensors[f"threshold.t{n}"] = torch.tensor(1.0)
        tensors[f"leak.l{n}"] = torch.tensor(0.9)
    torch.save(tensors, tmp_path / "official.pt")
    arguments = ("zoo", "import", "official.pt", "--arch", "vgg5", "--timesteps", "8")
    done = cli(*arguments, "--normalisation", "cifar10", "--output", "new")
    assert done.returncode == 0, done.stderr
    described = json.loads((tmp_path / "new" / "model.json").read_text())
    assert described["data"] == "cifar10" and described["network"]["time_steps"] == 8
    assert described["class_names"][0] == "airplane"
    again = warm(*arguments, "--normalisation", "cifar10", "--output", "new")
    assert again.returncode == 2 and "not empty" in again.stderr


def test_training_from_the_command_line(cli, warm, tmp_path, fashion_folders):
    (tmp_path / "recipe.yaml").write_text(
        "name: tiny\ndata: fashion-mnist\nmethod: ann\n"
        "network: {architecture: vgg5, kind: ann, classes: 10, image: [1, 28, 28],\n"
        "  widths: [2, 2, 2], classifier: [8], mean: [0.286], std: [0.353]}\n"
        "epochs: 3\nbatch_size: 16\nholdout: 20\n"
    )
    arguments = ("train", "recipe.yaml", "--data-root", fashion_folders, "--output", "t")
    done = cli(*arguments, "--set", "epochs=1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / done.stdout.strip() / "model.safetensors").is_file()
    wrong = warm(*arguments, "--set", "epochs")
    assert wrong.returncode == 2 and "field=value" in wrong.stderr


@pytest.fixture(scope="module")
def fashion_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the bundled images as class folders, to serve as training images too."""
    from PIL import Image

    from robustsnn.data.datasets import load_dataset

    root = tmp_path_factory.mktemp("folders")
    images = load_dataset("fashion-mnist", None, samples=100)
    for i, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
        place = root / str(label)
        place.mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(place / f"{i}.png")
    return root


def test_an_interrupt_exits_130_and_keeps_finished_batches(tmp_path, checkpoints):
    if sys.platform == "win32":
        pytest.skip("no signals")
    import signal

    process = subprocess.Popen(
        [*CLI, "evaluate", str(checkpoints / "snn"), "--suite", "curve", "--batch-size", "4"],
        cwd=tmp_path,
        # A test run in the background ignores interrupts, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env=cli_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("runs/*/parts/attack-*.parquet")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stdout == "" and "Traceback" not in stderr
    assert stderr.strip().splitlines()[-1].endswith("the same command resumes.")
    parts = list(tmp_path.glob("runs/*/parts/*.parquet"))
    assert parts and all(len(pd.read_parquet(p)) for p in parts)
    (manifest,) = tmp_path.glob("runs/*/manifest.json")
    assert json.loads(manifest.read_text())["status"] == "running"
