"""What the documents show works: commands parse, names exist, examples run."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from PIL import Image

import robustsnn
from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.losses import cross_entropy
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.cli.main import app
from robustsnn.common.content import users_object
from robustsnn.common.randomness import Rng
from robustsnn.estimators.backprop import Backprop
from robustsnn.estimators.bptt import Bptt
from robustsnn.estimators.make import make_estimator, parse_estimator
from robustsnn.evaluation.suites import load_suite
from robustsnn.records.runs import load_runs
from robustsnn.reporting.render import render, renderers
from robustsnn.snn import architectures
from robustsnn.snn.network import Network, NetworkConfig

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def blocks(path: Path, language: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The arguments of every shown `robustsnn ...` line."""
    shown = [block.replace("\\\n", " ") for path in PAGES for block in blocks(path, "console")]
    lines = [shlex.split(line, comments=True) for block in shown for line in block.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "robustsnn"]


def mentions() -> list[str]:
    """The arguments of every `robustsnn ...` within a sentence; they need not be complete."""
    return [
        found
        for path in PAGES
        for found in re.findall(r"`robustsnn ([^`]*)`", path.read_text(encoding="utf-8"))
    ]


def example(page: str, name: str, folder: Path) -> Path:
    """Write the file that a page shows under that name."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (body,) = re.findall(
        rf"^<!-- file: {re.escape(name)} -->\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    )
    path = folder / name
    path.write_text(body, encoding="utf-8")
    return path


def photos(root: Path) -> Path:
    """Class folders of 32 x 32 images that differ in brightness, 20 a class and split."""
    draws = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(20):
                pixels = draws.integers(100 * label, 100 * label + 100, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- commands ------------------------------------------------------------------------------------


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """What the real command line makes of arguments, without running it.

    Raises:
        Exception: It refuses them.
    """
    command: Any = typer.main.get_command(app)
    name, context = "robustsnn", None
    while hasattr(command, "commands"):
        context = command.make_context(name, list(arguments), parent=context)
        rest = [*getattr(context, "_protected_args", []), *context.args]
        name, command, arguments = command.resolve_command(context, rest)
    context = command.make_context(name, list(arguments), parent=context)
    return name, context.params


@pytest.mark.parametrize("arguments", commands(), ids=lambda words: " ".join(words)[:60])
def test_shown_commands_parse_and_name_what_exists(arguments: list[str]) -> None:
    name, given = parse(arguments)
    models = given.get("models") or ([given["model"]] if given.get("model") else [])
    for model in [*models, *([given["name"]] if name == "show" else [])]:
        if model.startswith("fashion-mnist/"):
            assert (ROOT / "zoo" / model / "recipe.yaml").is_file()
    if given.get("suite") and not given["suite"].endswith(".yaml"):
        load_suite(given["suite"])
    for spec in given.get("attack") or ():
        if ".py" not in spec:
            load_attack(spec)
    if given.get("estimator") and ".py" not in given["estimator"]:
        parse_estimator(given["estimator"])
    recipe = given.get("recipe")
    if recipe is not None and recipe.parts[0] == "zoo":
        assert (ROOT / recipe).is_file()


def test_every_command_that_does_something_is_shown() -> None:
    shown = {arguments[0] for arguments in [*commands(), *map(str.split, mentions())]}
    command: Any = typer.main.get_command(app)
    assert shown >= set(command.commands) - {"demo"}
    assert "demo" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("mention", sorted(set(mentions())))
def test_mentioned_commands_exist(mention: str) -> None:
    try:
        parse(shlex.split(mention))
    except Exception as error:
        assert "Missing" in str(error)


def test_a_command_that_is_wrong_would_be_noticed() -> None:
    for wrong in (["evaluate", "m", "--steps", "3"], ["measure"], ["compare", "--samples", "x"]):
        with pytest.raises(Exception, match=r"(?i)no such|missing|valid"):
            parse(wrong)


@pytest.mark.parametrize("target", ["demo", "test", "test-all", "docs", "bench"])
def test_shown_make_targets_exist(target: str) -> None:
    assert f"make {target}" in (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (path.parent / link).exists(), link


def test_anchors_lead_somewhere() -> None:
    for path in PAGES:
        for page, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", path.read_text("utf-8")):
            target = path.parent / page if page else path
            heads = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in heads}


# --- examples ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_python_of_the_readme_runs(tmp_path: Path) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    assert 8 <= len([line for line in code.splitlines() if line]) <= 12
    (tmp_path / "example.py").write_text(code.replace("samples=200", "samples=12"))
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "example.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "worst-case" in done.stdout
    assert (tmp_path / "runs/ann-or-snn/index.html").is_file()


def test_the_shown_suite_is_one(tmp_path: Path) -> None:
    suite = load_suite(example("threat-models.md", "surrogates.yaml", tmp_path))
    names = [entry.estimator for entry in suite.entries]
    assert names == ["bptt", "bptt:triangle:width=2", "bptt:arctan", "bptt:sigmoid"]
    torch.manual_seed(0)
    network = tiny_snn()
    images, labels = torch.rand(4, 1, 16, 16), torch.tensor([0, 1, 2, 0])
    found = robustsnn.evaluate(network, (images, labels), suite.at(epsilon="8/255"))
    estimators = dict(zip(found.results["attack"], found.results["estimator"], strict=True))
    assert estimators["own"] == "bptt"
    assert estimators["arctan"].startswith("bptt:arctan(")


def tiny_snn() -> Network:
    return Network(
        NetworkConfig(
            architecture="vgg5", kind="snn", classes=3, image=(1, 16, 16), widths=(4, 4, 4),
            classifier=(8,), mean=(0.5,), std=(0.25,), time_steps=2,
        )
    )  # fmt: skip


def test_the_shown_attack_attacks(tmp_path: Path) -> None:
    path = example("adding.md", "momentum_fgsm.py", tmp_path)
    attack = load_attack(f"{path}:steps=5")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8), torch.nn.Tanh())
    network.append(torch.nn.Linear(8, 3))
    images = torch.rand(6, 3, 2, 2)
    labels = network(images).argmax(1)
    for norm, epsilon in (("Linf", "0.1"), ("L2", "0.3")):
        threat = ThreatModel(norm, epsilon)
        victim = Victim(network, Backprop(), range(6))
        found = attack(victim, images, labels, threat, Rng(0, range(6)))
        assert bool(threat.admits(found, images).all())
        assert victim.backward_passes.tolist() == [5] * 6
        gain = cross_entropy(network(found), labels) - cross_entropy(network(images), labels)
        noise = threat.random_point(images, Rng(0, range(6)))
        lost = cross_entropy(network(noise), labels) - cross_entropy(network(images), labels)
        assert bool((gain > lost).all())


def test_the_shown_estimator_is_its_closed_form(tmp_path: Path) -> None:
    path = example("adding.md", "near_threshold.py", tmp_path)
    torch.manual_seed(0)
    network = tiny_snn().double()
    estimator = make_estimator(f"{path}:width=0.3", network)
    assert estimator.name == "near_threshold.py:width=0.3"
    layer = next(iter(network.spiking_layers().values()))
    trace = layer.trace(torch.rand(2, 3, 4, 8, 8, dtype=torch.float64), 2)
    grad = torch.randn_like(trace.spikes)
    found = estimator.rule(grad, trace)
    v = float(trace.threshold)
    for t, membrane in enumerate(trace.membranes):
        window = ((membrane - v).abs() < 0.3 * v).double() / (0.6 * v)
        torch.testing.assert_close(found[t], grad[t] * window)
    images, labels = torch.rand(4, 1, 16, 16), torch.tensor([0, 1, 2, 0])
    run = robustsnn.evaluate(tiny_snn(), (images, labels), "quick", estimator=str(path))
    assert run.manifest.suite == "quick-under-near-threshold"
    assert "near_threshold.py" in set(run.results["estimator"])


def test_the_shown_surrogate_stands_where_a_name_would(tmp_path: Path) -> None:
    path = example("adding.md", "laplace.py", tmp_path)
    made = users_object(str(path), "SURROGATE", "surrogate")(width=0.3)
    z = torch.linspace(-2, 2, 401, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(made.primitive(z).sum(), z)
    away = z.detach().abs() > 1e-3
    torch.testing.assert_close(slope[away], made.derivative(z.detach())[away])
    torch.manual_seed(0)
    network = tiny_snn()
    estimator = make_estimator(f"bptt:{path}:width=0.3,reset=attached", network)
    assert estimator.name == "bptt:laplace(width=0.3,amplitude=1):reset=attached"
    images, labels = torch.rand(4, 1, 16, 16), torch.tensor([0, 1, 2, 0])
    with pytest.warns(RuntimeWarning, match="Laplace"):
        found = Victim(network, estimator, range(4)).gradient(images, labels)
    own = Victim(network, Bptt(), range(4)).gradient(images, labels)
    assert torch.equal(found.logits, own.logits)
    assert not torch.equal(found.gradient, own.gradient)


@pytest.mark.slow
def test_the_shown_model_is_evaluated(tmp_path: Path, cli: Cli) -> None:
    path = example("adding.md", "my_model.py", tmp_path)
    torch.save(loaded(path).build().state_dict(), tmp_path / "weights.pt")
    attack = example("adding.md", "momentum_fgsm.py", tmp_path)
    arguments = ["evaluate", "my_model:build", "--data", "fashion-mnist", "--samples", "8"]
    arguments += ["--weights", "weights.pt", "--attack", f"{attack.name}:steps=2", "--output", "r"]
    done = cli(*arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "results.csv").is_file()


@pytest.mark.slow
def test_the_shown_network_that_draws_keeps_the_protocol(tmp_path: Path, cli: Cli) -> None:
    network = loaded(example("adding.md", "noisy_model.py", tmp_path)).build()
    images, keys = torch.rand(3, 1, 28, 28), torch.tensor([5, 1, 9])
    alone = network(images[1:2], keys=keys[1:2])
    assert torch.allclose(network(images, keys=keys)[1:2], alone, atol=1e-6)
    assert not torch.allclose(network(images, keys=keys + 1)[1:2], alone, atol=1e-3)
    arguments = ["evaluate", "noisy_model:build", "--data", "fashion-mnist", "--samples", "4"]
    done = cli(*arguments, "--attack", "pgd:steps=2", "--estimator", "backprop:draws=2", "--json")
    assert done.returncode == 0, done.stderr
    flags = [flag["flag"] for flag in json.loads(done.stdout)["flags"]]
    assert not {"two-passes-differ", "batch-matters"} & set(flags), flags


@pytest.fixture
def lenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The architecture of the example, as if its file lay where the text puts it."""
    folder = tmp_path / "architectures"
    folder.mkdir()
    example("adding.md", "lenet.py", folder)
    monkeypatch.setattr(architectures, "__path__", [*architectures.__path__, str(folder)])
    architectures.architectures.cache_clear()
    yield
    sys.modules.pop("robustsnn.snn.architectures.lenet", None)
    architectures.architectures.cache_clear()


@pytest.mark.usefixtures("lenet")
def test_the_shown_recipe_trains_the_shown_architecture_on_the_shown_data(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    recipe = example("adding.md", "recipe.yaml", tmp_path)
    overrides = {"epochs": 2, "batch_size": 8, "optimizer.lr": 0.003}
    folder = robustsnn.train(recipe, root, tmp_path / "cats-and-dogs", overrides=overrides)
    network = robustsnn.load_model(folder)
    assert isinstance(network, Network)
    assert network.config.architecture == "lenet"
    found = robustsnn.evaluate(folder, suite="quick", data_root=root, samples=10)
    assert set(found.results["attack"]) == {"clean", "gaussian", "fgsm", "pgd-10", "worst-case"}

    config = network.config.model_dump() | {"kind": "snn", "time_steps": 3}
    twin = Network(NetworkConfig.model_validate(config))
    assert len(twin.spiking_layers()) == 4
    assert twin(torch.rand(2, 3, 32, 32)).shape == (2, 2)


def test_the_shown_report_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = loaded(example("adding.md", "by_class.py", tmp_path))
    torch.manual_seed(0)
    images, labels = torch.rand(6, 1, 16, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    robustsnn.evaluate(tiny_snn(), (images, labels), "quick", output=tmp_path / "run")
    shipped = renderers()
    monkeypatch.setattr("robustsnn.reporting.render.renderers", lambda: [*shipped, module])
    render(load_runs([tmp_path / "run"]), tmp_path / "page")
    lines = (tmp_path / "page/tables/by-class.csv").read_text().splitlines()
    assert lines[0] == "model,suite,attack,norm,epsilon,label,accuracy"
    assert len(lines) == 1 + 4 * 3


def test_the_readme_takes_its_speed_from_the_measurement():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"<!-- speed:begin -->\n(.*?)<!-- speed:end -->", readme, re.DOTALL)
    (table,) = re.findall(r"(?:^\|.*\n)+", shown, re.MULTILINE)
    measured = (ROOT / "docs" / "results" / "speed" / "speed.md").read_text(encoding="utf-8")
    assert table in measured


def test_the_readme_takes_its_soundness_from_the_measurement():
    from studies.soundness.page import in_short

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    marked = r"<!-- soundness:begin -->\n(.*?)<!-- soundness:end -->"
    (shown,) = re.findall(marked, readme, re.DOTALL)
    (table,) = re.findall(r"(?:^\|.*\n)+", shown, re.MULTILINE)
    measured = pd.read_csv(ROOT / "docs/results/soundness/soundness.csv", keep_default_na=False)
    assert table.strip() == in_short(measured)
