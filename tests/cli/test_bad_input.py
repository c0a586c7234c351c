"""Every mistake a user can make: one line that says what and how to mend it, and nothing on disk.

Each case runs the real command line in a process of its own. Most are forked off one that has
imported everything; `started` marks those that start as a user's do: one a verb, and those about
code that must not run, code of others, and modules that are looked up.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Cli, make_checkpoint, run_cli

ROOT = "{root}"  # the folder that `world` fills; a case runs in an empty folder beside it


@dataclass(frozen=True)
class Case:
    """Arguments, and what the line must say: the thing, then the remedy."""

    name: str
    arguments: str
    says: tuple[str, ...]
    started: bool = False

    def __str__(self) -> str:
        return self.name


def case(name: str, arguments: str, *says: str) -> Case:
    return Case(name, arguments, says)


def started(name: str, arguments: str, *says: str) -> Case:
    return Case(name, arguments, says, started=True)


SNN = f"evaluate {ROOT}/snn --samples 20"
CASES = [
    # names
    case("model", "evaluate fashion-mnist/vgg5-an", "no model named 'fashion-mnist/vgg5-an'"),
    case("suite", f"{SNN} --suite quik", "no suite named 'quik'", "'quick'"),
    case("suite file", f"{SNN} --suite x/y.yaml", "no suite file 'x/y.yaml'", "existing"),
    case("from", f"{SNN} --from snntorch", "--from snntorch", "auto or none"),
    case("nir", "evaluate network.nir --data fashion-mnist", "another network", "module:factory"),
    case("attack", f"{SNN} --attack pgdd", "no attack named 'pgdd'", "'pgd'"),
    case("attack field", f"{SNN} --attack pgd:stepz=3", "'stepz'", "'steps'"),
    case("attack value", f"{SNN} --attack pgd:steps=many", "steps", "whole number"),
    case("attack file", f"{SNN} --attack x/mine.py", "x/mine.py", "existing .py file"),
    started(
        "attack of a library", f"{SNN} --attack torchattacks:CW", "torchattacks:CW", "use one of"
    ),
    case("data set", f"{SNN} --data fashion-mnits", "'fashion-mnits'", "'fashion-mnist'"),
    case("data not bundled", f"{SNN} --data cifar10", "cifar10", "data root"),
    case("data root", f"{SNN} --data-root nowhere", "nowhere", "check the path"),
    started("command", "evaluat", "evaluat", "--help"),
    case("option", f"{SNN} --epsilonn 3", "--epsilonn", "--help"),
    case("argument", "evaluate", "model", "--help"),
    case("number", "evaluate x --samples many", "--samples", "--help"),
    case("suite and attack", f"{SNN} --suite quick --attack fgsm", "--suite and --attack", "drop"),
    case("estimator", f"{SNN} --suite {ROOT}/estimator.yaml", "'bptx'", "'bptt'"),
    # checkpoints
    case("truncated", f"evaluate {ROOT}/truncated", "model.safetensors", "restore"),
    case("tampered", f"evaluate {ROOT}/tampered", "sha256", "restore"),
    case("foreign description", f"evaluate {ROOT}/foreign", "model.json", "restore"),
    case("not a checkpoint", f"evaluate {ROOT}/empty", "not a checkpoint", "model.json"),
    case("tampered description", f"evaluate {ROOT}/config", "network", "model.json"),
    started("pickle as checkpoint", f"evaluate {ROOT}/evil.pt", "evil.pt", "zoo import"),
    started("pickle as weights", f"evaluate {ROOT}/evil", "safetensors", "restore"),
    case("factory", "evaluate no_such_module:make", "no_such_module", "importable"),
    case("NaN weights", f"evaluate {ROOT}/nan", "NaN", "broken"),
    started(
        "NaN logits", "evaluate overflow:make --data fashion-mnist --samples 20", "NaN", "restore"
    ),
    started(
        "factory that fails", "evaluate overflow:fails --data fashion-mnist", "KeyError", "mend it"
    ),
    started(
        "one logit",
        "evaluate overflow:one --data fashion-mnist --samples 20",
        "1 logit",
        "2 classes",
    ),
    # data that does not fit
    case("classes", f"evaluate {ROOT}/seven --samples 20", "7 classes", "10", "--data"),
    case("channels", f"evaluate {ROOT}/colour --samples 20", "3 x 28 x 28", "--data"),
    # Pixels of files cannot leave [0, 1] otherwise; tensors are refused in test_evaluation.
    case(
        "data beyond [0, 1]",
        f"evaluate {ROOT}/snn --data folder --data-root {ROOT}/deep",
        "more than 8 bits",
        "save it",
    ),
    # numbers
    *(
        case(f"epsilon {text}", f"{SNN} --epsilon={text}", f"epsilon '{text}'", said, "8/255")
        for text, said in (
            ("-8/255", "negative"),
            ("8/0", "divides by zero"),
            ("nan", "not finite"),
            ("inf", "not finite"),
            ("eight", "not a number"),
        )
    ),
    case("epsilon of pixels", f"{SNN} --epsilon 8", "epsilon '8'", "8/255"),
    case("fixed epsilon", f"{SNN} --suite hire-iccv21 --epsilon 8/255", "hire-iccv21", "drop"),
    case("fixed norm", f"{SNN} --suite hire-iccv21 --norm L2", "hire-iccv21", "drop"),
    case("norm", f"{SNN} --norm L7", "'L7'", "Linf"),
    started("no samples", f"evaluate {ROOT}/snn --samples 0", "--samples 0", "at least 1"),
    case("negative samples", f"evaluate {ROOT}/snn --samples -3", "--samples -3", "at least 1"),
    case("many samples", f"evaluate {ROOT}/snn --samples 2001", "2001", "data root"),
    case("batch size", f"{SNN} --batch-size 0", "--batch-size 0", "at least 1"),
    case("recompute", f"{SNN} --recompute 0", "--recompute 0", "at least 1"),
    case("threads", f"{SNN} --threads 0", "--threads 0", "at least 1"),
    case("seed", f"{SNN} --seed -1", "--seed -1", "at least 0"),
    case("large seed", f"{SNN} --seed {2**63}", f"seed {2**63}", "below 2^63"),
    # places
    case("output below a file", f"{SNN} --output {ROOT}/a-file/run", "a-file", "--output"),
    case("output is a file", f"{SNN} --output {ROOT}/a-file", "is a file", "--output"),
    case("foreign output", f"{SNN} --output {ROOT}/papers", "not empty", "--output"),
    case("foreign output of compare", f"compare {ROOT}/snn --output {ROOT}/papers", "not empty"),
    started("foreign output of demo", f"demo --output {ROOT}/papers", "not empty", "--output"),
    case("device", f"{SNN} --device tpu", "'tpu'", "choose cpu"),
    case("absent device", f"{SNN} --device cuda:99", "'cuda:99'", "cpu"),
    # suites and recipes
    case("suite field", f"{SNN} --suite {ROOT}/field.yaml", "line 3", "epsilonn"),
    case("suite syntax", f"{SNN} --suite {ROOT}/syntax.yaml", "syntax.yaml, line 3"),
    case("suite bomb", f"{SNN} --suite {ROOT}/bomb.yaml", "bomb.yaml", "aliases"),
    case("recipe", "train nowhere.yaml", "nowhere.yaml", "recipe"),
    started("recipe field", f"train {ROOT}/recipe.yaml", "recipe.yaml, line 3: method"),
    case("recipe bomb", f"train {ROOT}/bomb.yaml", "bomb.yaml", "aliases"),
    case("no substitute", f"evaluate {ROOT}/snn --suite hire-iccv21", "--substitute"),
    case("substitute", f"{SNN} --attack transfer:fgsm --substitute nobody", "'nobody'"),
    # the other verbs
    started(
        "same model twice", f"compare {ROOT}/snn {ROOT}/snn --samples 20", "same model", "once"
    ),
    started("report of nothing", "report runs/x", "runs/x", "finished evaluation"),
    case("report of a foreign folder", f"report {ROOT}/papers", "papers", "manifest.json"),
    case("verify of nothing", "verify runs/x", "runs/x", "finished"),
    started("verify of a foreign folder", f"verify {ROOT}/papers", "papers"),
    started("zoo show", "zoo show nobody", "no model named 'nobody'"),
    started("attacks show", "attacks show pgdd", "'pgdd'", "'pgd'"),
    started(
        "import of code",
        f"zoo import {ROOT}/evil.pt --arch vgg5 --timesteps 4 --output new",
        "evil.pt",
        "run code",
    ),
    case(
        "import of a truncated file",
        f"zoo import {ROOT}/truncated.pt --arch vgg5 --timesteps 4 --output new",
        "truncated.pt",
        "state dict",
    ),
    case(
        "import format",
        f"zoo import {ROOT}/evil.pt --format onnx --arch vgg5 --timesteps 4 --output new",
        "'onnx'",
        "hire-snn",
    ),
    case(
        "import steps",
        f"zoo import {ROOT}/evil.pt --arch vgg5 --timesteps 0 --output new",
        "--timesteps 0",
        "at least 1",
    ),
]

SUITE = "name: mine\nepsilon: 8/255\nentries: [{label: FGSM, attack: fgsm}]\n"
BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)
OVERFLOW = """
import torch
from torch import nn

class Overflow(nn.Module):
    def forward(self, images):
        z = images.flatten(1)[:, :10] * 1e38 * 1e38
        return z - z

def make():
    return Overflow()

def fails():
    return {}["weights"]

def one():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 1))
"""


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad things to name on a command line."""
    root = tmp_path_factory.mktemp("world") / "given"
    root.mkdir()
    make_checkpoint(root / "snn", "snn")
    make_checkpoint(root / "seven", "ann", classes=7)
    make_checkpoint(root / "colour", "ann", image=(3, 28, 28), mean=(0.5,) * 3, std=(0.5,) * 3)
    for name in ("truncated", "tampered", "foreign", "config", "evil", "nan"):
        shutil.copytree(root / "snn", root / name)
    weights = (root / "snn" / "model.safetensors").read_bytes()
    (root / "truncated" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (root / "tampered" / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    (root / "foreign" / "model.json").write_text('{"format": "somebody else\'s"}')
    described = json.loads((root / "snn" / "model.json").read_text())
    described["network"]["time_steps"] = "four"
    (root / "config" / "model.json").write_text(json.dumps(described))
    trace = root.parent / "code-ran"
    code = pickle.dumps({"features.0.weight": Evil(trace)})
    (root / "evil.pt").write_bytes(code)
    sign(root / "evil", code)
    (root / "truncated.pt").write_bytes(b"PK\x03\x04 and no more")
    from safetensors.numpy import load_file, save

    tensors = dict(load_file(root / "nan" / "model.safetensors"))
    first = sorted(tensors)[0]
    tensors[first] = np.full_like(tensors[first], np.nan)
    sign(root / "nan", save(tensors))

    (root / "empty").mkdir()
    (root / "a-file").write_text("mine")
    (root / "papers").mkdir()
    (root / "papers" / "thesis.tex").write_text("mine")
    (root / "deep" / "0").mkdir(parents=True)
    Image.fromarray(np.full((28, 28), 60_000, np.uint16)).save(root / "deep" / "0" / "a.png")
    (root / "field.yaml").write_text(SUITE.replace("entries", "epsilonn: 3\nentries"))
    (root / "syntax.yaml").write_text("name: mine\nepsilon: [8/255\n")
    (root / "bomb.yaml").write_text(BOMB)
    (root / "estimator.yaml").write_text(
        SUITE.replace("attack: fgsm", "attack: fgsm, estimator: bptx")
    )
    (root / "recipe.yaml").write_text("name: mine\ndata: fashion-mnist\nmethod: magic\n")
    return root


def sign(folder: Path, weights: bytes) -> None:
    """Replace the weights of a checkpoint, with a checksum that fits."""
    import hashlib

    (folder / "model.safetensors").write_bytes(weights)
    described = json.loads((folder / "model.json").read_text())
    described["sha256"] = hashlib.sha256(weights).hexdigest()
    (folder / "model.json").write_text(json.dumps(described))


@dataclass(frozen=True)
class Outcome:
    process: CompletedProcess[str]
    left: list[str]


def carry_out(case: Case, world: Path, folder: Path, run_warm: Cli) -> Outcome:
    folder.mkdir()
    (folder / "overflow.py").write_text(OVERFLOW)
    run = run_cli if case.started else run_warm
    process = run(case.arguments.replace(ROOT, str(world)).split(), folder)
    kept = {"overflow.py", "__pycache__"}
    return Outcome(process, [p.name for p in folder.iterdir() if p.name not in kept])


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest,
    world: Path,
    run_warm: Cli,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Future[Outcome]]]:
    """The cases that were asked for, several at a time: Python starting is most of them."""
    place = tmp_path_factory.mktemp("cases")
    asked = [
        item.callspec.params["case"]  # type: ignore[attr-defined]
        for item in request.session.items
        if getattr(item, "originalname", "") == "test_one_line_exit_2_and_nothing_left"
    ]
    before = snapshot(world.parent)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {
            str(c): pool.submit(carry_out, c, world, place / f"{i:03d}", run_warm)
            for i, c in enumerate(asked)
        }
    assert snapshot(world.parent) == before, "something that was given has changed, or code ran"


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_line_exit_2_and_nothing_left(case, outcomes):
    outcome = outcomes[str(case)].result()
    process = outcome.process
    assert process.returncode == 2, process.stderr
    assert process.stdout == ""
    lines = process.stderr.splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("robustsnn: ")
    for said in case.says:
        assert said in lines[0]
    assert outcome.left == []
