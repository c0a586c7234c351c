"""The models that ship are what their recipes, logs and cards say."""

from __future__ import annotations

import csv
import json
import re

import pytest
import torch

from robustsnn.cli.main import _main
from robustsnn.models.checkpoint import load_network, read_checkpoint
from robustsnn.models.zoo import zoo_folder, zoo_names, zoo_summary
from robustsnn.snn.sparsity import compression, densities
from robustsnn.training.recipe import load_recipe
from robustsnn.training.run import accuracy
from tests.real_data import real_images, whole

WITH_COPY = {f"fashion-mnist/{kind}" for kind in ("vgg5-ann", "vgg5-snn", "vgg5-snn-hire")}
SHIPPED = {
    *WITH_COPY,
    *(f"{name}-b" for name in WITH_COPY),
    *(f"fashion-mnist/vgg5-{kind}-at" for kind in ("ann", "snn")),
    *(f"fashion-mnist/resnet12-{kind}" for kind in ("ann", "snn")),
    *(f"cifar10/vgg5-{kind}" for kind in ("ann", "snn")),
}


def card_accuracy(name: str) -> float:
    card = (zoo_folder(name) / "card.md").read_text(encoding="utf-8")
    found = re.search(r"clean accuracy \| ([0-9.]+) % of 10,000 test images", card)
    assert found is not None
    return float(found[1]) / 100


def test_what_ships():
    assert set(zoo_names()) >= SHIPPED


@pytest.mark.parametrize("name", zoo_names())
def test_recipe_log_and_weights_belong_together(name):
    folder = zoo_folder(name)
    recipe = load_recipe(folder / "recipe.yaml")
    checkpoint = read_checkpoint(name)
    assert recipe.name == name
    pruned = recipe.sparsity is not None and recipe.sparsity.pattern == "channel"
    # A network that lost channels is saved with the sizes that it has left.
    sizes = {"widths", "classifier"} if pruned else set()
    ours, theirs = (c.model_dump(exclude=sizes) for c in (recipe.network, checkpoint.config))
    assert ours == theirs
    assert recipe.digest() == checkpoint.meta["provenance"]["recipe_sha256"]
    assert recipe.substitute == checkpoint.meta["substitute"]
    assert recipe.holdout == 0 and recipe.train_images is None
    if recipe.epochs:
        with (folder / "training.csv").open() as file:
            assert len(list(csv.DictReader(file))) == recipe.epochs
    assert (folder / "model.safetensors").stat().st_size < 4 * 2**20
    assert checkpoint.sha256 in (folder / "card.md").read_text(encoding="utf-8")


def with_substitute():
    recipes = {name: load_recipe(zoo_folder(name) / "recipe.yaml") for name in zoo_names()}
    return sorted(name for name, recipe in recipes.items() if recipe.substitute is not None)


def test_every_model_with_a_copy_names_it_as_its_substitute():
    assert set(with_substitute()) >= WITH_COPY


def _is_sparse(name: str) -> bool:
    recipe = load_recipe(zoo_folder(name) / "recipe.yaml")
    return recipe.sparsity is not None or (recipe.init is not None and _is_sparse(recipe.init))


@pytest.mark.parametrize("name", with_substitute())
def test_a_substitute_is_a_twin_from_a_second_seed(name):
    recipe = load_recipe(zoo_folder(name) / "recipe.yaml")
    assert recipe.substitute is not None
    twin = load_recipe(zoo_folder(recipe.substitute) / "recipe.yaml")
    assert twin.seed != recipe.seed
    assert twin.network.kind == recipe.network.kind and twin.sparsity is None
    if _is_sparse(recipe.name):
        # Sparse networks have the dense one of another seed, so that all have the same one.
        return
    assert twin.network == recipe.network and twin.method == recipe.method
    if recipe.init is not None:
        assert twin.init == f"{recipe.init}-b"


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo_names())
def test_it_scores_what_its_card_says(name):
    checkpoint = read_checkpoint(name)
    claimed = card_accuracy(name)
    # A pass over hundreds of steps takes a second for a few images.
    long = checkpoint.config.time_steps > 16
    data = real_images(checkpoint.meta["data"], 500 if long else None)
    if whole(checkpoint.meta["data"]) and not long:
        slack = 0.0005
    else:
        # The bundled images are a fifth of the test set; the tolerance is four standard errors of
        # the difference to the whole.
        slack = 4 * (claimed * (1 - claimed) * (1 / len(data) - 1e-4)) ** 0.5
    found = accuracy(load_network(checkpoint), data.tensor(), data.labels)
    assert found == pytest.approx(claimed, abs=slack)


@pytest.mark.parametrize("name", zoo_names())
def test_it_beats_chance_by_far_and_spikes(name):
    checkpoint = read_checkpoint(name)
    network = load_network(checkpoint)
    data = real_images(checkpoint.meta["data"], 200)
    # The tolerance is four standard errors of 200 images.
    claimed = card_accuracy(name)
    lowest = claimed - 4 * (claimed * (1 - claimed) / 200) ** 0.5
    assert lowest > 0.5
    assert accuracy(network, data.tensor(), data.labels) > lowest
    if network.kind == "snn":
        leaf = data.tensor(slice(0, 4)).requires_grad_()
        (gradient,) = torch.autograd.grad(network(leaf).sum(), leaf)
        assert gradient.abs().amax((1, 2, 3)).min() > 0
        leaks = [layer.leak.item() for layer in network.spiking_layers().values()]
        assert all(0 <= leak <= 1 for leak in leaks)


def test_descriptions_are_plain_json():
    for name in zoo_names():
        text = (zoo_folder(name) / "model.json").read_text(encoding="utf-8")
        # Format 2 holds weights sparsely, which versions before it cannot read.
        assert json.loads(text)["format"] in ((1, 2) if _is_sparse(name) else (1,))


def test_the_compression_of_a_sparse_model_is_that_of_its_card(tmp_path, monkeypatch, capsys):
    known = {name: zoo_folder(name) for name in zoo_names()}
    network = json.loads((known["fashion-mnist/vgg5-snn"] / "model.json").read_text())["network"]
    for name, row in (
        ("dense", ""),
        ("sparse", "| synaptic weights | 7,000 of 232,946 are not zero: 33.28x fewer |\n"),
    ):
        folder = tmp_path / "made" / name
        folder.mkdir(parents=True)
        (folder / "model.json").write_text(json.dumps({"network": network}))
        card = f"| clean accuracy | 91.50 % of 10,000 test images |\n{row}| seed | 1.5x fewer |\n"
        (folder / "card.md").write_text(card)
    monkeypatch.setattr("robustsnn.models.zoo.folder", lambda _: tmp_path)
    assert zoo_summary("made/sparse")["compression"] == "33.28×"
    assert zoo_summary("made/dense")["compression"] == ""
    assert _main(["zoo", "list"]) == 0
    printed = capsys.readouterr().out
    assert "fewer weights" in printed
    rows = [line.split() for line in printed.splitlines() if "made/" in line]
    assert [row[-1] for row in rows] == ["%", "33.28×"]
    assert _main(["zoo", "show", "made/sparse"]) == 0
    assert "33.28x fewer" in capsys.readouterr().out
    (tmp_path / "made" / "sparse" / "card.md").unlink()
    assert _main(["zoo", "list"]) == 0
    assert "fewer weights" not in capsys.readouterr().out


def test_cards_of_sparse_models_say_what_their_weights_are():
    for name in zoo_names():
        checkpoint = read_checkpoint(name)
        layers = densities(load_network(checkpoint))
        kept = sum(layer.kept for layer in layers)
        dense = checkpoint.meta.get("dense_weights") or sum(layer.weights for layer in layers)
        stated = zoo_summary(name)["compression"]
        assert stated == ("" if kept == dense else f"{compression(dense, kept):.2f}×"), name


def test_models_are_listed_by_data_set_with_what_was_measured(tmp_path, monkeypatch, capsys):
    described = json.loads((zoo_folder("fashion-mnist/vgg5-snn") / "model.json").read_text())
    for name, kind, method in (
        ("b/one", "snn", "hire"),
        ("a/two", "ann", "ann"),
        ("b/three", "snn", "hybrid"),
    ):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        changed = {**described, "sha256": name, "provenance": {"method": method}}
        changed["network"] = {**described["network"], "kind": kind}
        (folder / "model.json").write_text(json.dumps(changed))
        (folder / "card.md").write_text("| clean accuracy | 91.50 % of 10,000 test images |\n")
    (tmp_path / "measured.csv").write_text(
        "model,sha256,suite,version,samples,clean,accuracy,level\n"
        "b/one,b/one,standard,3,1200,0.9,0.118,A\n"
        "b/three,other weights,standard,3,200,0.9,0.5,A\n"
        "a/two,a/two,rand,2,100,0.9,0.25,B\n"
    )
    monkeypatch.setattr("robustsnn.models.zoo.folder", lambda _: tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    assert _main(["zoo", "list"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    names = [line.split()[0] for line in lines if line.startswith(("a/", "b/"))]
    assert names == ["a/two", "b/one", "b/three"] and "" in lines
    (one,) = [line for line in lines if line.startswith("b/one")]
    (two,) = [line for line in lines if line.startswith("a/two")]
    (three,) = [line for line in lines if line.startswith("b/three")]
    assert "11.8 % (A, n = 1,200)" in one and "25.0 % (rand, B, n = 100)" in two
    # What was measured on other weights is not shown.
    assert "50.0" not in three
    assert _main(["zoo", "list", "--data", "b", "--kind", "snn", "--method", "hire"]) == 0
    printed = capsys.readouterr().out
    assert "b/one" in printed and "b/three" not in printed and "a/two" not in printed
    assert _main(["zoo", "list", "--method", "hyrbid"]) == 2
    assert "Did you mean 'hybrid'" in capsys.readouterr().err
