"""Training end to end on real images, small enough for every test run."""

from __future__ import annotations

import csv
import json
import re
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from robustsnn.data.datasets import SAMPLE, load_dataset, load_training
from robustsnn.errors import InputError
from robustsnn.models.checkpoint import load_model, load_network, read_checkpoint
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.training import gaussian, run
from robustsnn.training.augmentation import augment
from robustsnn.training.hire import hire_update
from robustsnn.training.recipe import Augmentation, Gaussian, Hire, load_recipe
from robustsnn.training.run import train
from robustsnn.training.step import plain_update

ANN: dict[str, Any] = {
    "name": "tiny-ann",
    "data": "fashion-mnist",
    "method": "ann",
    "network": {
        "architecture": "vgg5",
        "kind": "ann",
        "classes": 10,
        "image": [1, 28, 28],
        "widths": [4, 8, 8],
        "classifier": [16],
        "mean": [0.286],
        "std": [0.353],
        "dropout": 0.1,
    },
    "optimizer": {"lr": 0.01},
    "augmentation": {"crop": 1, "flip": True},
    "epochs": 3,
    "batch_size": 50,
    "holdout": 200,
}


def spiking(method: str, **changes):
    network = {**ANN["network"], "kind": "snn", "time_steps": 4}
    return {
        **ANN,
        "name": f"tiny-{method}",
        "method": method,
        "network": network,
        "init": "ann",
        "conversion": {"scale": 0.3, "steps": 8, "images": 100},
        **changes,
    }


def write(folder: Path, name: str, recipe) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data root whose training split is the bundled sample, and a trained tiny ANN."""
    root = tmp_path_factory.mktemp("data")
    sample = next(SAMPLE.glob("*.parquet"))
    shutil.copy(sample, root / "train-00000-of-00001.parquet")
    shutil.copy(sample, root / "test-00000-of-00001.parquet")
    work = tmp_path_factory.mktemp("work")
    train(write(work, "ann", ANN), root, work / "ann")
    return root, work


def rows(folder: Path):
    with (folder / "training.csv").open() as file:
        return list(csv.DictReader(file))


def test_an_ann_learns_and_logs_every_epoch(place):
    _, work = place
    log = rows(work / "ann")
    assert [r["epoch"] for r in log] == ["1", "2", "3"]
    assert float(log[-1]["holdout_accuracy"]) > 0.5
    assert float(log[-1]["loss"]) < float(log[0]["loss"])
    assert not (work / "ann" / "state.safetensors").exists()
    assert load_model(work / "ann").kind == "ann"


@pytest.mark.parametrize(
    ("method", "extra"),
    [
        ("hybrid", {}),
        ("hire", {"hire": {"periods": 2, "step": "4/255", "bound": "4/255"}}),
        ("hire", {"hire": {"step": "4/255", "bound": "4/255", "noise": "gaussian-l2"}}),
        ("gaussian", {"gaussian": {"deviation": "8/255"}}),
        ("adversarial", {"adversarial": {"epsilon": "2/255"}}),
        ("surrogate", {"init": None}),
    ],
)
def test_a_spiking_network_learns(place, method, extra):
    root, work = place
    recipe = write(work, method, spiking(method, **extra))
    folder = train(recipe, root, work / method)
    log = rows(folder)
    # From random weights, three epochs of 1,800 images are not enough for more.
    assert float(log[-1]["holdout_accuracy"]) > (0.3 if method == "surrogate" else 0.5)
    network = load_network(read_checkpoint(folder))
    for layer in network.spiking_layers().values():
        assert 1e-3 <= layer.threshold.item() and 0 <= layer.leak.item() <= 1
    assert any(layer.leak.item() != 1 for layer in network.spiking_layers().values())


def test_leaks_that_are_not_trained_stay_what_they_were(place, tmp_path):
    root, work = place
    conversion = {"scale": 0.3, "steps": 8, "images": 100, "leak": 0.75}
    held = {"optimizer": {"lr": 0.01}, "dynamics": "thresholds", "epochs": 1}
    held["conversion"] = conversion
    alone = {"epochs": 0, "conversion": conversion}
    before, after = (
        load_network(read_checkpoint(train(write(work, name, recipe), root, tmp_path / name)))
        for name, recipe in {
            "converted": spiking("conversion", **alone),
            "held": spiking("hybrid", **held),
        }.items()
    )
    for name, layer in after.spiking_layers().items():
        assert layer.leak.item() == 0.75
        assert layer.threshold.item() != before.spiking_layers()[name].threshold.item()


def test_conversion_alone_trains_nothing(place):
    root, work = place
    network = {**ANN["network"], "kind": "snn", "time_steps": 64}
    settings = {"scale": 1.0, "steps": 64, "images": 100}
    changes = {"epochs": 0, "network": network, "holdout": 0, "conversion": settings}
    recipe = write(work, "conversion", spiking("conversion", **changes))
    folder = train(recipe, root, work / "conversion")
    ann, snn = load_model(work / "ann").state_dict(), load_model(folder).state_dict()
    # They are stored as float16, by which few predictions change.
    assert all(torch.equal(snn[name], weights.half().float()) for name, weights in ann.items())
    assert "weights stored as | float16" in (folder / "card.md").read_text(encoding="utf-8")
    card = (folder / "card.md").read_text(encoding="utf-8")
    assert "converted from its ANN, and not trained further" in card
    assert "training time" not in card and not (folder / "training.csv").exists()
    found = re.search(r"clean accuracy \| ([0-9.]+) %", card)
    assert found is not None and float(found[1]) > 50


HALF = {"mean": [0.5], "std": [0.5]}
ENCODINGS = {
    "poisson": {"encoding": "poisson", **HALF},
    "quantised": {"encoding": "quantised", "levels": 2},
    "single-spike": {"encoding": "single-spike", "time_weight": 0.1},
}


@pytest.fixture(scope="module")
def half(place):
    """A tiny ANN that sees pixels in [-1, 1], from which rate-coded networks are converted."""
    root, work = place
    network = {**ANN["network"], **HALF}
    recipe = write(work, "half", {**ANN, "network": network, "epochs": 1, "holdout": 0})
    return train(recipe, root, work / "half")


@pytest.mark.parametrize("method", ["conversion", "adversarial"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_goes_through_a_recipe(place, half, tmp_path, encoding, method):
    root, work = place
    steps = 32 if method == "conversion" else 4
    network = {**ANN["network"], "kind": "snn", "time_steps": steps, **ENCODINGS[encoding]}
    changes = {
        "network": network,
        "init": "half" if encoding == "poisson" else "ann",
        "epochs": 0 if method == "conversion" else 1,
        "holdout": 0,
        "conversion": {"scale": 0.7, "steps": 20, "images": 50},
    }
    if method == "adversarial":
        changes |= {"adversarial": {"epsilon": "8/255"}, "train_images": 200}
    recipe = write(work, f"{method}-{encoding}", spiking(method, **changes))
    folder = train(recipe, root, tmp_path / "made")
    found = load_network(read_checkpoint(folder))
    assert found.config.encoding == encoding
    assert found.stochastic == (encoding != "single-spike")
    assert all(layer.threshold > 0 for layer in found.spiking_layers().values())
    if method == "conversion":
        stated = re.search(r"clean accuracy \| ([0-9.]+) %", (folder / "card.md").read_text())
        # A code of single spikes was not what the weights were trained for.
        assert stated is not None and float(stated[1]) > (30 if encoding != "single-spike" else 5)


def test_images_of_another_fingerprint_are_refused(place, tmp_path):
    root, work = place
    own = load_training("fashion-mnist", root).fingerprint
    short = {**ANN, "epochs": 1, "holdout": 0, "train_images": 50}
    for number, fingerprint in enumerate((own, "0" * 16)):
        recipe = write(work, f"print{number}", {**short, "data_fingerprint": fingerprint})
        if fingerprint == own:
            train(recipe, root, tmp_path / "own")
            continue
        with pytest.raises(InputError, match=f"{fingerprint}, and these images have {own}"):
            train(recipe, root, tmp_path / "other")
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("method", "change", "says"),
    [
        ("hybrid", {"init": None}, "method hybrid of an SNN needs init"),
        ("surrogate", {}, "method surrogate starts from random weights: drop init"),
        ("surrogate", {"init": None, "conversion": None}, "to calibrate thresholds"),
        ("conversion", {"epochs": 0, "conversion": None}, "needs the section conversion"),
        ("conversion", {}, "epochs is 0 for method conversion"),
        ("hire", {"hire": {"noise": "loud"}}, "hire.noise"),
    ],
)
def test_malformed_recipes_of_spiking_networks(tmp_path, method, change, says):
    with pytest.raises(InputError, match=says):
        load_recipe(write(tmp_path, "bad", spiking(method, **change)))


def test_gaussian_noise_has_its_deviation_and_stays_in_range(monkeypatch):
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(gaussian, "plain_update", lambda net, opt, x, y: seen.append(x))
    grey, white = torch.full((400, 1, 8, 8), 0.5), torch.ones(400, 1, 8, 8)
    for images, share in ((grey, 1.0), (white, 1.0), (grey, 0.25)):
        settings = Gaussian(deviation="8/255", noisy_share=share)
        torch.manual_seed(0)
        gaussian.gaussian_update(None, None, images, torch.zeros(400), settings)
    assert float((seen[0] - 0.5).std()) == pytest.approx(8 / 255, rel=0.02)
    assert seen[1].max() == 1 and seen[1].min() < 0.95
    assert (seen[2] != 0.5).flatten(1).any(1).sum() == 100


def test_resuming_gives_the_same_weights(place, tmp_path, monkeypatch):
    root, work = place
    recipe = write(work, "again", spiking("hybrid"))
    whole = train(recipe, root, tmp_path / "whole")
    real, calls = run._epoch, []

    def killed_in_the_second_epoch(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(run, "_epoch", killed_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, root, tmp_path / "cut")
    monkeypatch.undo()
    assert [r["epoch"] for r in rows(tmp_path / "cut")] == ["1"]
    with pytest.raises(InputError, match="--resume"):
        train(recipe, root, tmp_path / "cut")
    with pytest.raises(InputError, match="another recipe"):
        train(recipe, root, tmp_path / "cut", resume=True, overrides={"optimizer.lr": 0.5})
    cut = train(recipe, root, tmp_path / "cut", resume=True)
    a, b = load_file(whole / "model.safetensors"), load_file(cut / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    same = ("epoch", "loss", "train_accuracy", "holdout_accuracy")
    assert [[r[k] for k in same] for r in rows(whole)] == [[r[k] for k in same] for r in rows(cut)]


def test_another_seed_gives_other_weights(place, tmp_path):
    root, work = place
    recipe = write(work, "seeds", {**ANN, "epochs": 1})
    one = train(recipe, root, tmp_path / "one")
    two = train(recipe, root, tmp_path / "two", overrides={"seed": 2})
    digests = {json.loads((f / "model.json").read_text())["sha256"] for f in (one, two)}
    assert len(digests) == 2


def test_without_holdout_the_card_says_what_was_measured(place, tmp_path):
    root, work = place
    whole = {k: v for k, v in ANN.items() if k != "holdout"}
    folder = train(write(work, "whole", {**whole, "epochs": 1}), root, tmp_path / "whole")
    test = load_dataset("fashion-mnist", root, split="test")
    with torch.no_grad():
        logits = load_model(folder)(test.tensor())
    right = int((logits.argmax(1).numpy() == test.labels).sum())
    assert (
        f"{100 * right / len(test):.2f} % of 2,000 test images" in (folder / "card.md").read_text()
    )


def test_augmentation_shifts_and_flips():
    images = torch.zeros(400, 1, 5, 5)
    images[:, :, 2, 1] = 1
    moved = augment(images, Augmentation(crop=1, flip=True), torch.Generator().manual_seed(0))
    where = {tuple(p[1:]) for p in moved.nonzero()[:, 1:].tolist()}
    assert where == {(r, c) for r in (1, 2, 3) for c in (0, 1, 2, 3, 4)} - set()
    assert (moved.sum((1, 2, 3)) == 1).all()
    assert torch.equal(images, augment(images, Augmentation(), torch.Generator()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epochs": 0}, "epochs is 0 for method conversion"),
        ({"epochs": -1}, "epochs"),
        ({"method": "conversion"}, "method conversion does not train a ann"),
        ({"method": "gaussian", "gaussian": {"deviation": "loud"}}, "gaussian"),
        ({"method": "gaussian"}, "the gaussian section goes with"),
        ({"method": "hyrbid"}, "method"),
        ({"optimiser": {}}, "optimiser"),
        ({"init": "ann", "conversion": {}}, "takes no conversion"),
        ({"guidance": {"teacher": "ann", "atention": 1}}, "guidance.atention"),
        ({"sparsity": {"start": "magnitude", "density": 0.1}}, "magnitude needs init"),
        ({"sparsity": {"start": "random"}}, "density goes with every start but held"),
        ({"sparsity": {"start": "random", "density": 1.5}}, "sparsity.density"),
        ({"sparsity": {"start": "held", "pattern": "channel"}}, "starts at random"),
        ({"sparsity": {"start": "random", "density": 0.5, "widest": 0.5}}, "widest goes with"),
        ({"method": "adversarial"}, "the adversarial section goes with"),
        ({"method": "adversarial", "adversarial": {"epsilon": "eight"}}, "adversarial"),
        ({"dynamics": "thresholds"}, "dynamics goes with an SNN"),
        ({"dynamics": "some"}, "dynamics"),
        ({"data": "fashion-mnits"}, "fashion-mnist"),
    ],
)
def test_malformed_recipes_name_the_field(place, tmp_path, change, says):
    root, _ = place
    recipe = write(tmp_path, "bad", {**ANN, **change})
    with pytest.raises(InputError, match=says):
        train(recipe, root, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_recipe_errors_name_the_line(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(ANN, sort_keys=False).replace("epochs: 3", "epochs: three"))
    line = path.read_text().splitlines().index("epochs: three") + 1
    with pytest.raises(InputError, match=rf"line {line}: epochs"):
        load_recipe(path)


def test_divergence_is_one_clear_error(place, tmp_path):
    root, work = place
    recipe = write(work, "diverging", {**ANN, "optimizer": {"name": "sgd", "lr": 1e6}})
    with pytest.raises(InputError, match=r"diverged.*optimizer\.lr"):
        train(recipe, root, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hybrid", "hire"])
def test_memory_does_not_grow_over_500_steps(method):
    torch.manual_seed(0)
    network = Network(
        NetworkConfig(
            architecture="vgg5",
            kind="snn",
            classes=10,
            image=(1, 28, 28),
            widths=(4, 4, 4),
            classifier=(16,),
            mean=(0.3,),
            std=(0.3,),
            time_steps=4,
        )
    ).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    images, labels = torch.rand(8, 1, 28, 28), torch.randint(0, 10, (8,))
    settings = Hire(periods=2, step="4/255", bound="4/255")
    peaks = []
    for step in range(500):
        if method == "hire":
            hire_update(network, optimizer, images, labels, settings)
        else:
            plain_update(network, optimizer, images, labels)
        if step in (99, 499):
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    # A sequence that each step kept alive would cost 8 * 4 * 784 * 4 * 4 bytes, 0.4 MB, 400 times.
    assert peaks[1] - peaks[0] < 30
