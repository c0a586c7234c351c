"""Nothing that a file says is executed: a tracer in every text field of every file that is read.

The tracer is a Python file that leaves a mark when it is imported, by its name or by its path. The
interpreter also reports every attempt to import or run it, whether it succeeds or not.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from tests.cli import warm_cli
from tests.conftest import CLI, cli_environment, make_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not warm_cli.AVAILABLE, reason="calls are not forked here"),
]

SOURCE = """
from pathlib import Path
Path({mark!r}).touch()


def build(*arguments, **settings):
    raise SystemExit("the tracer was called")


ATTACK = ESTIMATOR = SURROGATE = build
"""
RECIPE = """
name: traced
data: folder
method: ann
network: {architecture: vgg5, kind: ann, classes: 2, image: [1, 28, 28],
  widths: [2, 2, 2], classifier: [8], mean: [0.286], std: [0.353]}
init: start
guidance: {teacher: start}
optimizer: {name: sgd}
epochs: 1
batch_size: 4
substitute: start
"""
SUITE = """
name: traced
description: two attacks
norm: Linf
epsilon: [8/255]
entries:
- {label: FGSM, attack: fgsm, estimator: bptt, norm: Linf, epsilon: 8/255}
- {label: Black box, attack: "transfer:fgsm", substitute: true, kinds: [ann, snn]}
"""


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    """The texts that name a tracer; afterwards neither a mark nor an attempt may be there."""
    mark, heard = tmp_path / "marked", tmp_path / "heard"
    file = tmp_path / "robustsnn_tracer.py"
    file.write_text(SOURCE.format(mark=str(mark)))
    monkeypatch.setenv(warm_cli.AUDIT, str(heard))
    yield ("robustsnn_tracer:build", str(file), f"bptt:{file}(width=0.5)", f"transfer:{file}")
    assert not mark.exists()
    assert not heard.exists() or heard.read_text() == ""


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory, run_warm: Any) -> Path:
    """What a stranger may send: a checkpoint, its run, a comparison, and images in folders."""
    root = tmp_path_factory.mktemp("sent")
    make_checkpoint(root / "other", "ann", seed=1)
    make_checkpoint(root / "snn", "snn", substitute=str(root / "other"))
    asked = ["--samples", "4", "--attack", "fgsm", "--attack", "transfer:fgsm", "--energy"]
    done = run_warm(["evaluate", "snn", *asked, "--output", "run"], root)
    assert done.returncode == 0, done.stderr
    plain = ["--samples", "4", "--attack", "fgsm", "--output", "compared"]
    done = run_warm(["compare", "snn", "other", *plain], root)
    assert done.returncode == 0, done.stderr
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("even", "odd"):
            (root / "images" / split / name).mkdir(parents=True)
            for k in range(6):
                pixels = rng.integers(0, 256, (28, 28), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "images" / split / name / f"{k}.png")
    make_checkpoint(
        root / "start", "ann", classes=2, widths=(2, 2, 2), classifier=(8,), mean=(0.286,),
        std=(0.353,),
    )  # fmt: skip
    (root / "recipe.yaml").write_text(RECIPE)
    (root / "suite.yaml").write_text(SUITE)
    return root


@pytest.fixture
def given(sent: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A fresh copy of something that was sent, in the folder in which the commands run."""

    def copy(name: str) -> Path:
        target = tmp_path / name
        if target.is_dir():
            shutil.rmtree(target)
        if (sent / name).is_dir():
            shutil.copytree(sent / name, target)
        else:
            shutil.copy(sent / name, target)
        return target

    return copy


def planted(value: Any, tracer: str) -> Any:
    """The same value with every text in it, and every text that is a key, replaced."""
    if isinstance(value, str):
        return tracer
    if isinstance(value, list):
        return [planted(one, tracer) for one in value]
    if isinstance(value, dict):
        return {key: planted(one, tracer) for key, one in value.items()}
    return value


def plantings(document: dict[str, Any], tracer: str, kept: tuple[str, ...] = ()) -> Iterator[Any]:
    """The document with all texts replaced but those of some fields, then each field alone."""
    yield {k: v if k in kept else planted(v, tracer) for k, v in document.items()}
    for key, value in document.items():
        if (changed := planted(value, tracer)) != value:
            yield {**document, key: changed}
        if isinstance(value, dict):
            for inner, held in value.items():
                if (changed := planted(held, tracer)) != held:
                    yield {**document, key: {**value, inner: changed}}


def turns(document: dict[str, Any], tracers: Sequence[str], kept: tuple[str, ...] = ()) -> Any:
    """The plantings of a document, with the tracers taking turns."""
    every = [list(plantings(document, tracer, kept)) for tracer in tracers]
    for place in range(len(every[0])):
        yield every[place % len(every)][place]


def ends(done: subprocess.CompletedProcess[str], *codes: int) -> None:
    assert done.returncode in (codes or (0, 1, 2, 3)), done.stderr
    assert "Traceback" not in done.stderr, done.stderr


def test_the_interpreter_reports_what_a_user_types(traced, warm, given, tmp_path):
    """What would be seen if a file's text were executed."""
    warm("evaluate", "robustsnn_tracer:build", "--data", "fashion-mnist", "--samples", "4")
    assert (tmp_path / "marked").exists() and "import" in (tmp_path / "heard").read_text()
    (tmp_path / "marked").unlink()
    (tmp_path / "heard").unlink()
    warm("evaluate", given("snn"), "--samples", "4", "--attack", traced[1])
    assert (tmp_path / "marked").exists() and "exec" in (tmp_path / "heard").read_text()
    (tmp_path / "marked").unlink()
    (tmp_path / "heard").unlink()


def test_no_manifest_runs_code(traced, warm, given):
    run = given("run")
    manifest = json.loads((run / "manifest.json").read_text())
    given("snn"), given("other")
    for document in turns(manifest, traced, kept=("format", "status")):
        (run / "manifest.json").write_text(json.dumps(document))
        ends(warm("verify", run))
    for tracer in traced[1::2]:
        everywhere = {**planted_but(manifest, tracer), "status": "done"}
        (run / "manifest.json").write_text(json.dumps(everywhere))
        ends(warm("verify", run))
        ends(warm("report", run))
        ends(warm("report", run, "--diagnose-again"))
    # An older run has no stages, and its entries are looked up.
    for tracer in traced:
        older = {k: v for k, v in manifest.items() if k not in ("stages", "digest")}
        older["entries"] = planted(manifest["entries"], tracer)
        (run / "manifest.json").write_text(json.dumps(older))
        ends(warm("verify", run))
        ends(warm("report", run, "--diagnose-again"), 2)
        older["entries"] = [{**one, "attack": tracer} for one in manifest["entries"]]
        (run / "manifest.json").write_text(json.dumps(older))
        ends(warm("verify", run), 1, 2)
        ends(warm("report", run, "--diagnose-again"), 2)
    # One that was stopped goes on by what it says.
    stopped = {**manifest, "status": "running", "stages": None}
    (run / "manifest.json").write_text(json.dumps(planted_but(stopped, traced[1])))
    asked = ["--samples", "4", "--attack", "fgsm", "--attack", "transfer:fgsm", "--energy"]
    ends(warm("evaluate", "snn", *asked, "--output", run))


def planted_but(manifest: dict[str, Any], tracer: str) -> dict[str, Any]:
    kept = ("format", "status", "identity")
    return {k: v if k in kept else planted(v, tracer) for k, v in manifest.items()}


def test_no_rows_run_code(traced, warm, given):
    for tracer in traced[1:2]:
        run = given("run")
        given("snn"), given("other")
        records = pd.read_parquet(run / "records.parquet")
        texts = [name for name in records if isinstance(records[name].iloc[0], str)]
        assert {"model", "suite", "attack", "estimator", "substitute"} <= set(texts)
        for name in [*texts, texts]:
            changed = records.copy()
            changed[name] = tracer
            changed.to_parquet(run / "records.parquet")
            ends(warm("verify", run), 1, 2)
        ends(warm("report", run))
        run = given("run")
        with (run / "results.csv").open(newline="") as file:
            heads, *rows = list(csv.reader(file))
        with (run / "results.csv").open("w", newline="") as file:
            texts = ["model", "data", "suite", "attack", "estimator", "substitute", "flags"]
            csv.writer(file).writerows(
                [heads, *([tracer if h in texts else v for h, v in zip(heads, row, strict=True)]
                          for row in rows)]
            )  # fmt: skip
        ends(warm("verify", run), 1, 2)
        ends(warm("report", run))
        run = given("run")
        activity = pd.read_parquet(run / "activity.parquet")
        activity.assign(layer=tracer).to_parquet(run / "activity.parquet")
        ends(warm("verify", run), 1, 2)
        ends(warm("report", run))


def test_no_checkpoint_runs_code(traced, warm, given):
    given("other")
    checkpoint = given("snn")
    description = json.loads((checkpoint / "model.json").read_text())
    documents = [*turns(description, traced), *turns(description, traced[::-1])]
    documents += [{**description, "substitute": tracer} for tracer in traced]
    for document in documents:
        (checkpoint / "model.json").write_text(json.dumps(document))
        verb = "evaluate" if document.get("substitute") in traced else "compare"
        ends(warm(verb, "snn", "--samples", "4", "--attack", "transfer:fgsm"))
        shutil.rmtree(checkpoint.parent / "runs", ignore_errors=True)


def test_no_recipe_runs_code(traced, warm, given):
    given("images"), given("start")
    recipe = yaml.safe_load(given("recipe.yaml").read_text())
    tagged = "!!python/object/apply:robustsnn_tracer.build []"
    documents = list(turns(recipe, (*traced, tagged)))
    for tracer in traced:
        documents += [{**recipe, "init": tracer}, {**recipe, "guidance": {"teacher": tracer}}]
    for place, document in enumerate(documents):
        text = yaml.safe_dump(document).replace(f"'{tagged}'", tagged)
        given("recipe.yaml").write_text(text)
        ends(warm("train", "recipe.yaml", "--data-root", "images", "--output", f"t{place}"))
    # The state that training is resumed from holds JSON in its header.
    given("recipe.yaml").write_text(yaml.safe_dump(recipe))
    asked = ("train", "recipe.yaml", "--data-root", "images", "--output", "t")
    ends(warm(*asked), 0, 2)


@pytest.mark.parametrize("verb", ["evaluate", "compare", "crosscheck"])
def test_no_suite_runs_code_that_the_user_has_not_allowed(traced, warm, given, verb, tmp_path):
    given("snn"), given("other")
    suite = yaml.safe_load(given("suite.yaml").read_text())
    tagged = "!!python/object/apply:robustsnn_tracer.build []"
    documents = list(turns(suite, (*traced, tagged)))
    for tracer in (*traced, tagged):
        for field in ("attack", "estimator"):
            entries = [dict(suite["entries"][0]), {**suite["entries"][1], field: tracer}]
            documents.append({**suite, "entries": entries})
    for document in documents if verb == "evaluate" else documents[-8:]:
        text = yaml.safe_dump(document).replace(f"'{tagged}'", tagged)
        given("suite.yaml").write_text(text)
        ends(warm(verb, "snn", "--samples", "4", "--suite", "suite.yaml"))
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    if verb == "crosscheck":
        ends(warm(verb, "snn", "--samples", "4", "--suite", "quick", "--peers", "suite.yaml"))


def test_no_comparison_runs_code(traced, warm, given):
    for tracer in traced[1:2]:
        compared = given("compared")
        held = json.loads((compared / "comparison.json").read_text())
        for document in plantings(held, tracer):
            (compared / "comparison.json").write_text(json.dumps(document))
            ends(warm("report", compared))
        named = {"format": held["format"], "runs": {tracer: "0" * 64}}
        (compared / "comparison.json").write_text(json.dumps(named))
        ends(warm("report", compared), 2)


def test_no_names_of_images_run_code(traced, warm, given, tmp_path):
    given("snn")
    images = given("images")
    (images / "test" / "even").rename(images / "test" / "robustsnn_tracer.py")
    (images / "train" / "even").rename(images / "train" / "robustsnn_tracer.py")
    shutil.copy(tmp_path / "robustsnn_tracer.py", images / "test" / "odd" / "robustsnn_tracer.py")
    ends(warm("evaluate", "snn", "--data", "folder", "--data-root", "images", "--samples", "4"))
    frame = pd.DataFrame({"image": [{"bytes": b"x", "path": traced[1]}], "label": [traced[0]]})
    (tmp_path / "parquet").mkdir()
    frame.to_parquet(tmp_path / "parquet" / "test-00000-of-00001.parquet")
    ends(warm("evaluate", "snn", "--data", "folder", "--data-root", "parquet"), 2)


@pytest.mark.parametrize("how", ["module", "script"])
def test_the_working_folder_is_not_imported_from(traced, given, tmp_path, how):
    """It may be the folder that was sent. Only the name of a factory makes it a place of code."""
    given("snn"), given("other"), given("run")
    for name in ("torch", "pandas", "torchattacks", "sitecustomize", "numba", "yaml", "typer"):
        shutil.copy(tmp_path / "robustsnn_tracer.py", tmp_path / f"{name}.py")
    # Both of these are read from the working folder by the libraries themselves.
    (tmp_path / "matplotlibrc").write_text(
        "backend: module://robustsnn_tracer\ntext.usetex: True\n"
    )
    (tmp_path / ".numba_config.yaml").write_text(
        f"cache_dir: {tmp_path / 'cache'}\ncache_locator_classes: robustsnn_tracer.build\n"
    )
    script = Path(sys.executable).with_name("robustsnn")
    if how == "script" and not script.is_file():
        pytest.skip("the command is not installed here")
    start = CLI if how == "module" else [str(script)]
    for arguments in (["verify", "run"], ["report", "run", "--output", "page"]):
        done = subprocess.run(
            [*start, *arguments],
            cwd=tmp_path,
            env={k: v for k, v in cli_environment().items() if k != warm_cli.AUDIT},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "marked").exists() and not (tmp_path / "cache").exists()
