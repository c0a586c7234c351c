"""What a message advises works: mended code goes on in its folder, and nothing is half-made.

All of it through the command line, as users run it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from robustsnn.data.datasets import SAMPLE
from robustsnn.records.folder import RunFolder
from robustsnn.training.recipe import load_recipe
from tests.conftest import cli_environment
from tests.evaluation.test_resume import same
from tests.models.test_checkpoint import official

ATTACK = """
from robustsnn.attacks.fgsm import FGSM


class Mine(FGSM):
    def __call__(self, victim, images, labels, threat, rng):
        {line}
        return super().__call__(victim, images, labels, threat, rng)


ATTACK = Mine
"""
BROKEN = ATTACK.format(line="raise KeyError('mine')")
MENDED = ATTACK.format(line="victim.gradient(images, labels, 'margin')")
SUITE = """
name: mine
epsilon: [4/255, 8/255]
cascade: {cascade}
entries:
- {{label: FGSM, attack: fgsm}}
- {{label: Mine, attack: mine.py}}
- {{label: PGD, attack: "pgd:steps=2"}}
"""


def one_line(done, *says):
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = (
        one for one in done.stderr.splitlines() if "suite runs" not in one and "%" not in one
    )
    assert line.startswith("robustsnn: ")
    for part in says:
        assert part in line, line


@pytest.mark.parametrize("cascade", ["false", "true"])
def test_a_mended_attack_goes_on_in_its_folder(warm, checkpoints, tmp_path, cascade):
    (tmp_path / "suite.yaml").write_text(SUITE.format(cascade=cascade))
    (tmp_path / "mine.py").write_text(BROKEN)
    asked = ["evaluate", checkpoints / "snn", "--suite", "suite.yaml", "--samples", "12",
             "--allow-code", "--output"]  # fmt: skip
    one_line(warm(*asked, "run"), "mine.py", "'mine'", "mend it and run the same command again")
    before = RunFolder(tmp_path / "run").read_part("attack-000", 0)
    (tmp_path / "mine.py").write_text(MENDED)
    done = warm(*asked, "run")
    assert done.returncode == 0, done.stderr
    assert warm(*asked, "whole").returncode == 0
    same(tmp_path / "whole", tmp_path / "run")
    records = RunFolder(tmp_path / "run").records()
    kept = records[(records["attack"] == "fgsm") & (records["epsilon"] == "4/255")]
    if cascade == "false":
        # To the digits of a clock, these rows were not computed again.
        assert kept["seconds"].tolist() == before["seconds"].tolist()
    manifests = [json.loads((tmp_path / n / "manifest.json").read_text()) for n in ("run", "whole")]
    for name in ("identity", "files", "stages", "verdict", "flags"):
        assert manifests[0][name] == manifests[1][name], name
    assert warm("verify", "run").returncode in (0, 3)
    # A finished run is never taken over.
    (tmp_path / "mine.py").write_text(MENDED + "\n")
    one_line(warm(*asked, "run"), "holds another run", "name another --output")


def test_what_ran_after_the_mended_attack_is_run_again(warm, checkpoints, tmp_path):
    (tmp_path / "suite.yaml").write_text(
        SUITE.format(cascade="false").replace('attack: "pgd:steps=2"', "attack: other.py")
    )
    (tmp_path / "mine.py").write_text(MENDED)
    (tmp_path / "other.py").write_text(BROKEN)
    asked = ["evaluate", checkpoints / "ann", "--suite", "suite.yaml", "--samples", "12",
             "--allow-code", "--output"]  # fmt: skip
    one_line(warm(*asked, "run"), "other.py")
    # The first file is edited too: what it computed may not be kept.
    (tmp_path / "mine.py").write_text(ATTACK.format(line="return images"))
    (tmp_path / "other.py").write_text(MENDED)
    assert warm(*asked, "run").returncode == 0
    assert warm(*asked, "whole").returncode == 0
    same(tmp_path / "whole", tmp_path / "run")
    records = RunFolder(tmp_path / "run").records()
    assert (records.loc[records["attack"] == "mine", "linf"] == 0).all()


NETWORK = """
import torch
from torch import nn


class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x / 2

    @staticmethod
    def backward(ctx, grad):
        {line}
        return grad / 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 7840).reshape(10, 784).sin())

    def forward(self, x):
        return Half.apply(x.flatten(1)) @ self.weight.T


def make():
    return Net()
"""


def test_a_mended_network_of_which_only_clean_images_were_judged(warm, tmp_path):
    (tmp_path / "mine.py").write_text(NETWORK.format(line="raise ValueError('no way back')"))
    asked = ["evaluate", "mine:make", "--data", "fashion-mnist", "--samples", "12", "--attack",
             "fgsm", "--output", "run"]  # fmt: skip
    one_line(warm(*asked), "no way back", "run the same command again")
    (tmp_path / "mine.py").write_text(NETWORK.format(line="pass"))
    done = warm(*asked)
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(tmp_path / "run" / "results.csv")["accuracy"].notna().all()


def test_another_run_that_goes_on_keeps_its_folder(warm, checkpoints, tmp_path):
    """Another seed or other images are not a mended file."""
    (tmp_path / "mine.py").write_text(BROKEN)
    asked = ["evaluate", checkpoints / "ann", "--attack", "fgsm", "--attack", "mine.py",
             "--samples", "8", "--output", "run"]  # fmt: skip
    one_line(warm(*asked), "mend it")
    held = {p: p.read_bytes() for p in Path(tmp_path / "run").rglob("*") if p.is_file()}
    (tmp_path / "mine.py").write_text(MENDED)
    one_line(warm(*asked, "--seed", "1"), "holds another run")
    one_line(warm(*asked, "--save-images"), "holds another run")
    shutil.copytree(checkpoints / "snn", tmp_path / "ann")
    one_line(warm("evaluate", "ann", *asked[2:]), "holds another run")
    assert held == {p: p.read_bytes() for p in Path(tmp_path / "run").rglob("*") if p.is_file()}


RECIPE = {
    "name": "mine",
    "data": "fashion-mnist",
    "method": "ann",
    "network": {
        "architecture": "vgg5", "kind": "ann", "classes": 10, "image": [1, 28, 28],
        "widths": [2, 2, 2], "classifier": [8], "mean": [0.286], "std": [0.353], "dropout": 0.0,
    },
    "optimizer": {"name": "sgd", "lr": 0.0123},
    "epochs": 1,
    "batch_size": 16,
    "holdout": 20,
    "train_images": 64,
}  # fmt: skip


def network(**changes):
    return {"network": {**RECIPE["network"], **changes}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data root whose train split is the sample that ships."""
    root = tmp_path_factory.mktemp("data")
    shutil.copy(next(SAMPLE.glob("*.parquet")), root / "train-00000-of-00001.parquet")
    return root


@pytest.mark.parametrize(
    ("changes", "more", "says"),
    [
        ({}, ("--output", "file"), "file is a file"),
        ({}, ("--output", "file/below"), "name another --output"),
        ({}, ("--output", "full"), "name another --output"),
        ({}, ("--output", "/proc/here"), "cannot write to /proc/here"),
        ({}, ("--output", "x" * 300), "cannot write to"),
        ({}, ("--output", "new", "--resume"), "nothing to resume in new"),
        ({}, ("--set", "optimizer.speed=1"), "optimizer.speed"),
        ({}, ("--set", "epochs=-1"), "epochs"),
        ({}, ("--set", "name=../../out"), "name"),
        ({"name": "/etc/out"}, (), "name"),
        (network(architecture="vgg99"), (), "no architecture named 'vgg99'"),
        (network(image=[1, 2, 2]), (), "too small for the pools"),
        (network(image=[1, 32, 32]), (), "network.image is [1, 32, 32]"),
        (network(classes=11), (), "network.classes is 11"),
        ({"data": "imagenet"}, (), "imagenet"),
        ({"init": "nowhere"}, (), "nowhere"),
        ({"init": "fashion-mnist/vgg5-ann"}, (), "its widths is"),
        ({"guidance": {"teacher": "fashion-mnist/vgg5-snn"}}, (), "name an ANN of vgg5"),
        ({}, ("--device", "cuda:99"), "cuda:99"),
    ],
)
def test_train_refuses_before_it_reads_data(warm, tmp_path, changes, more, says):
    """The data are missing, which would be told first if they were read first."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, **changes}))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    one_line(warm("train", "recipe.yaml", "--data-root", "nowhere", *more), says)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}


def test_train_leaves_nothing_where_data_are_missing(warm, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    before = sorted(tmp_path.rglob("*"))
    one_line(warm("train", "recipe.yaml", "--data-root", "nowhere", "--output", "a/b"), "nowhere")
    assert before == sorted(tmp_path.rglob("*"))


def test_train_keeps_its_recipe_and_logs_the_rate_it_used(warm, tmp_path, data):
    text = "# mine\n" + yaml.safe_dump(RECIPE)
    (tmp_path / "recipe.yaml").write_text(text)
    asked = ["train", "recipe.yaml", "--data-root", data, "--output"]
    assert warm(*asked, "one").returncode == 0
    assert (tmp_path / "one" / "recipe.yaml").read_text() == text
    log = pd.read_csv(tmp_path / "one" / "training.csv")
    assert log["lr"].tolist() == [0.0123]
    # Settings of the command line are in it, and it describes the checkpoint.
    assert warm(*asked, "two", "--set", "epochs=2", "--set", "seed=3").returncode == 0
    kept = load_recipe(tmp_path / "two" / "recipe.yaml")
    about = json.loads((tmp_path / "two" / "model.json").read_text())
    assert (kept.epochs, kept.seed) == (2, 3)
    assert kept.digest() == about["provenance"]["recipe_sha256"]
    # The rate falls along a cosine: at half of the updates it is half of what it was.
    assert pd.read_csv(tmp_path / "two" / "training.csv")["lr"].tolist() == [0.0123, 0.00615]
    # It can be trained again from there, in its own folder too, and gives the same weights.
    again = warm("train", "two/recipe.yaml", "--data-root", data, "--output", "three")
    assert again.returncode == 0, again.stderr
    assert warm("train", "two/recipe.yaml", "--data-root", data, "--output", "two").returncode == 0
    for name in ("two", "three"):
        made = json.loads((tmp_path / name / "model.json").read_text())
        assert made["sha256"] == about["sha256"]
    one_line(
        warm("train", "two/recipe.yaml", "--data-root", data, "--output", "two", "--set", "seed=4"),
        "choose another --output",
    )


def test_the_recipe_that_train_keeps_finds_what_it_started_from(warm, tmp_path, data):
    (tmp_path / "recipes").mkdir()
    recipe = {**RECIPE, "init": "../first", "guidance": {"teacher": "../first"}}
    (tmp_path / "recipes" / "first.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "recipes" / "second.yaml").write_text(yaml.safe_dump(recipe))
    for name, output in (("first", "first"), ("second", "deep/er/second")):
        done = warm("train", f"recipes/{name}.yaml", "--data-root", data, "--output", output)
        assert done.returncode == 0, done.stderr
    kept = tmp_path / "deep" / "er" / "second" / "recipe.yaml"
    assert yaml.safe_load(kept.read_text())["init"] == "../../../first"
    assert kept.read_text().startswith("# init and teacher: written as seen from this folder.")
    assert warm("train", kept, "--data-root", data, "--output", "third").returncode == 0
    weights = [
        json.loads((tmp_path / name / "model.json").read_text())["sha256"]
        for name in ("deep/er/second", "third")
    ]
    assert weights[0] == weights[1]


def test_train_replaces_no_recipe_of_the_users(warm, tmp_path, data):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.yaml").write_text("name: another\n")
    one_line(
        warm("train", "mine.yaml", "--data-root", data, "--output", "out"), "holds another recipe"
    )
    assert (tmp_path / "out" / "recipe.yaml").read_text() == "name: another\n"


@pytest.mark.exhaustive
def test_a_long_stage_says_a_line_at_least_every_half_minute(cli, checkpoints, tmp_path):
    (tmp_path / "mine.py").write_text(ATTACK.format(line="__import__('time').sleep(31)"))
    done = cli("evaluate", checkpoints / "ann", "--samples", "4", "--attack", "mine.py")
    assert done.returncode == 0, done.stderr
    lines = [one for one in done.stderr.splitlines() if one.endswith(" s so far")]
    assert any("clean: 1 of 2 batches are done" in line for line in lines)


# --- odd settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option", ["--suite", "--data", "--estimator", "--norm", "--epsilon", "--substitute"]
)
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_option_is_not_the_default(warm, checkpoints, tmp_path, option, value):
    one_line(warm("evaluate", checkpoints / "ann", "--samples", "4", option, value), option)
    assert list(tmp_path.iterdir()) == []


def test_a_column_of_the_data_that_is_there_twice(warm, checkpoints, tmp_path):
    held = pq.read_table(next(SAMPLE.glob("*.parquet")))
    (tmp_path / "data").mkdir()
    for name in ("label", "image"):
        twice = held.append_column(held.schema.field(name), held.column(name))
        pq.write_table(twice, tmp_path / "data" / "test.parquet")
        asked = ["--data", "fashion-mnist", "--data-root", "data", "--samples", "4"]
        one_line(warm("evaluate", checkpoints / "ann", *asked), f"the column '{name}' 2 times")


@pytest.mark.parametrize("backend", ["nonsense", "module://nowhere", "TkAgg"])
def test_how_figures_are_shown_elsewhere_does_not_matter(
    cli, warm, checkpoints, tmp_path, monkeypatch, backend
):
    assert (
        warm("evaluate", checkpoints / "ann", "--samples", "4", "--output", "run").returncode == 0
    )
    monkeypatch.setenv("MPLBACKEND", backend)
    done = cli("report", "run")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert list((tmp_path / "run" / "figures").iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of a process")
@pytest.mark.parametrize("room", [0, 1000])
def test_a_disk_that_is_full_while_a_model_is_imported(checkpoints, tmp_path, room):
    """A file may have so many bytes: none, or not all of the weights."""
    torch.save(official(), tmp_path / "weights.pt")
    code = (
        f"import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room})); "
        "from robustsnn.cli.main import main; main()"
    )
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", code, "zoo", "import", "weights.pt", "--arch", "vgg5",
         "--timesteps", "4", "--output", "new"],
        cwd=tmp_path, env=cli_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    one_line(done, "cannot write to new", "name another --output")
    assert sorted(tmp_path.rglob("*")) == before


# --- libraries that need not be there ------------------------------------------------------------


@pytest.fixture
def without_torchattacks(tmp_path):
    """The command line where torchattacks is not installed."""
    code = (
        "import sys; sys.modules['torchattacks'] = None; sys.argv[0] = 'robustsnn'; "
        "from robustsnn.cli.main import main; main()"
    )

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=tmp_path, env=cli_environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def test_torchattacks_need_not_be_there(without_torchattacks, warm, checkpoints, tmp_path):
    asked = ["--samples", "4", "--attack"]
    listed = without_torchattacks("attacks", "list")
    assert listed.returncode == 0 and "torchattacks" in listed.stdout, listed.stderr
    one_line(
        without_torchattacks("evaluate", checkpoints / "ann", *asked, "torchattacks:PGD"),
        "torchattacks cannot be imported here",
        "pip install -e '.[torchattacks]' in a clone of RobustSNN",
    )
    done = without_torchattacks(
        "evaluate", checkpoints / "ann", *asked, "pgd:steps=2", "--save-images", "--output", "own"
    )
    assert done.returncode == 0, done.stderr
    versions = json.loads((tmp_path / "own" / "manifest.json").read_text())["versions"]
    assert {"torch", "numpy", "pandas", "pyarrow", "pillow", "scipy"} <= versions.keys()
    # A run with its attacks is verified without it, except for what only it can say.
    done = warm(
        "evaluate", checkpoints / "ann", *asked, "torchattacks:FGSM", "--save-images", "--output",
        "theirs",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = without_torchattacks("verify", "theirs")
    assert said.returncode == 3, said.stdout + said.stderr
    assert "partly verified" in said.stdout.splitlines()[-1]
    assert "torchattacks cannot be imported here" in said.stdout.splitlines()[-1]
