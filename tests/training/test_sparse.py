"""Sparse training end to end: masks through every step, checkpoints, and what follows them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn.utils.prune import L1Unstructured, global_unstructured

from robustsnn.data.datasets import SAMPLE
from robustsnn.errors import InputError
from robustsnn.models.checkpoint import load_model, read_checkpoint
from robustsnn.snn.conversion import convert
from robustsnn.snn.network import Network
from robustsnn.snn.sparsity import densities, density, weights_of
from robustsnn.training import run, sparse, start
from robustsnn.training.run import train
from robustsnn.training.sparse import SparseTraining

NETWORK: dict[str, Any] = {
    "architecture": "vgg5",
    "kind": "ann",
    "classes": 10,
    "image": [1, 28, 28],
    "widths": [8, 12, 12],
    "classifier": [32],
    "mean": [0.286],
    "std": [0.353],
    "dropout": 0.0,
}
ANN: dict[str, Any] = {
    "name": "tiny",
    "data": "fashion-mnist",
    "method": "ann",
    "network": NETWORK,
    "optimizer": {"lr": 0.01},
    "epochs": 2,
    "batch_size": 50,
    "holdout": 200,
    "train_images": 1000,
}
CONVERSION = {"scale": 0.3, "steps": 8, "images": 100}
AGC = {
    "sparsity": {"start": "random", "density": 0.1, "rewiring": {"every": 5}},
    "guidance": {"teacher": "teacher"},
}


def snn(method: str, **changes: Any) -> dict[str, Any]:
    network = {**NETWORK, "kind": "snn", "time_steps": 4, **changes.pop("network", {})}
    return {**ANN, "method": method, "network": network, "epochs": 1, **changes}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data root, a dense ANN to learn from, and a sparse one that it guided."""
    root = tmp_path_factory.mktemp("data")
    sample = next(SAMPLE.glob("*.parquet"))
    shutil.copy(sample, root / "train-00000-of-00001.parquet")
    shutil.copy(sample, root / "test-00000-of-00001.parquet")
    work = tmp_path_factory.mktemp("work")
    trained(work, "teacher", ANN, root)
    trained(work, "agc", {**ANN, **AGC}, root)
    return root, work


def trained(work: Path, name: str, recipe: dict[str, Any], root: Path, **options: Any) -> Path:
    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return train(path, root, work / name, **options)


def log_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "training.csv").open() as file:
        return list(csv.DictReader(file))


def held_out(folder: Path) -> float:
    return float(log_of(folder)[-1]["holdout_accuracy"])


def total(network: torch.nn.Module) -> int:
    return sum(w.numel() for w in weights_of(network).values())


def test_a_guided_sparse_ann_meets_its_density_and_learns(place):
    _, work = place
    network = load_model(work / "agc")
    assert density(network) == pytest.approx(0.1, rel=0.01)
    assert held_out(work / "agc") > 0.3
    assert {row["kept"] for row in log_of(work / "agc")} == {str(round(0.1 * total(network)))}
    # The layers found densities of their own, though all of them started with the same one.
    found = [layer.density for layer in densities(network)]
    assert max(found) > 2 * min(found)
    assert json.loads((work / "agc" / "model.json").read_text())["format"] == 2


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("hybrid", snn("hybrid", conversion=CONVERSION)),
        ("hire", snn("hire", conversion=CONVERSION, hire={"step": "4/255", "bound": "4/255"})),
        (
            "converted",
            snn(
                "adversarial",
                conversion=CONVERSION,
                adversarial={"epsilon": "2/255", "steps": 2, "clean_weight": 0.5},
            ),
        ),
        (
            "rate",
            snn(
                "hybrid",
                conversion=CONVERSION,
                network={
                    "encoding": "poisson",
                    "time_steps": 6,
                },
            ),
        ),
        ("further", {**ANN, "epochs": 1}),
    ],
)
def test_zeros_are_held_through_every_step(place, monkeypatch, name: str, recipe: dict[str, Any]):
    root, work = place
    recipe = {**recipe, "init": "agc", "sparsity": {"start": "held"}}
    if name == "rate":
        # Poisson encoding asks for pixels in [-1, 1], so that its ANN needs them too.
        half = {"mean": [0.5], "std": [0.5]}
        ann = {**ANN, "network": {**NETWORK, **half}, **AGC, "guidance": {"teacher": "teacher"}}
        trained(work, "half", ann, root)
        recipe = {**recipe, "init": "half", "network": {**recipe["network"], **half}}
    before = weights_of(load_model(work / str(recipe["init"])))
    steps = []
    real = torch.optim.Adam.step

    def watched(self, *args, **kwargs):
        found = real(self, *args, **kwargs)
        steps.append(1)
        return found

    def check(self, *args):
        real_hold(self, *args)
        for layer, weight in weights_of(self.network).items():
            assert not bool(weight[before[layer] == 0].any()), layer

    real_hold = SparseTraining._hold
    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    monkeypatch.setattr(SparseTraining, "_hold", check)
    folder = trained(work, f"held-{name}", recipe, root)
    periods = 2 if name == "hire" else 1
    assert len(steps) == periods * 1000 // 50 * recipe["epochs"]
    after = weights_of(load_model(folder))
    assert all(not bool(after[n][before[n] == 0].any()) for n in before)
    assert density(load_model(folder)) == pytest.approx(density(load_model(work / "agc")), rel=0.02)
    assert held_out(folder) > 0.3


def test_no_masked_weight_differs_from_zero_while_masks_change(place, monkeypatch, tmp_path):
    root, work = place
    shutil.copytree(work / "teacher", tmp_path / "teacher")
    changes, real = [], sparse.SparseTraining.after_update

    def watched(self, done):
        for name, weight in weights_of(self.network).items():
            assert not bool(weight[~self.masks[name]].any()), name
        before = self.masks
        real(self, done)
        changes.append(any(not torch.equal(before[n], self.masks[n]) for n in before))
        for name, weight in weights_of(self.network).items():
            assert not bool(weight[~self.masks[name]].any()), name

    monkeypatch.setattr(sparse.SparseTraining, "after_update", watched)
    trained(tmp_path, "agc", {**ANN, **AGC}, root)
    assert len(changes) == 40
    # Every fifth update, but not after the last ones: what grew there would never be trained.
    assert [n + 1 for n, changed in enumerate(changes) if changed] == [5, 10, 15, 20, 25, 30, 35]


def test_one_shot_magnitude_pruning_of_a_trained_snn(place):
    root, work = place
    dense = trained(work, "dense", snn("hybrid", init="teacher", conversion=CONVERSION), root)
    pruned = {"start": "magnitude", "density": 0.2}
    folder = trained(work, "magnitude", snn("hybrid", init="dense", sparsity=pruned), root)
    network, parent = load_model(folder), load_model(dense)
    assert density(network) == pytest.approx(0.2, rel=0.01)
    weights = torch.cat([w.abs().flatten() for w in weights_of(parent).values()])
    kept = torch.cat([w.flatten() != 0 for w in weights_of(network).values()])
    assert weights[kept].min() >= weights[~kept].max()
    assert held_out(folder) > 0.5


def test_thresholds_are_calibrated_on_the_pruned_network(place, monkeypatch):
    """Thresholds of the dense ANN would silence the spiking network that keeps few weights."""
    root, work = place
    calibrated_on = []

    def noted(origin: Network, *rest: Any, **options: Any) -> Network:
        calibrated_on.append({n: w.clone() for n, w in weights_of(origin).items()})
        return convert(origin, *rest, **options)

    monkeypatch.setattr(start, "convert", noted)
    pruned = {"start": "magnitude", "density": 0.1}
    recipe = snn("hybrid", init="teacher", conversion=CONVERSION, sparsity=pruned)
    folder = trained(work, "pruned-first", recipe, root)
    teacher = load_model(work / "teacher")
    layers = [m for m in teacher.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    global_unstructured([(m, "weight") for m in layers], L1Unstructured, amount=0.9)
    (found,) = calibrated_on
    for ours, theirs in zip(found.values(), layers, strict=True):
        assert torch.equal(ours, theirs.weight)
    trained_weights = weights_of(load_model(folder))
    assert all(bool((w[found[n] == 0] == 0).all()) for n, w in trained_weights.items())


def test_channels_go_and_the_network_is_smaller(place):
    root, work = place
    channel = {"start": "random", "density": 0.25, "pattern": "channel", "rewiring": {"every": 5}}
    recipe = {**ANN, "sparsity": channel, "guidance": {"teacher": "teacher"}}
    folder = trained(work, "channel", recipe, root)
    network, dense = load_model(folder), load_model(work / "teacher")
    # A few weights of channels that grew last may not have moved yet.
    assert density(network) > 0.95
    assert total(network) == pytest.approx(0.25 * total(dense), rel=0.01)
    about = read_checkpoint(folder)
    assert about.meta["dense_weights"] == total(dense)
    sizes = {"widths": list(network.config.widths), "classifier": list(network.config.classifier)}
    spiking = snn("hybrid", init="channel", conversion=CONVERSION, network=sizes)
    smaller = trained(work, "channel-snn", spiking, root)
    assert read_checkpoint(smaller).meta["dense_weights"] == total(dense)
    assert held_out(smaller) > 0.3
    with pytest.raises(InputError, match="its widths is"):
        trained(work, "mismatch", snn("hybrid", init="channel", conversion=CONVERSION), root)


def test_dnr_rewires_under_the_hybrid_loss(place):
    root, work = place
    loss = {"epsilon": "4/255", "steps": 2, "clean_weight": 0.5}
    rewired = {"start": "random", "density": 0.1, "rewiring": {"every": 5}}
    recipe = {**ANN, "method": "adversarial", "adversarial": loss, "sparsity": rewired}
    folder = trained(work, "dnr", recipe, root)
    assert density(load_model(folder)) == pytest.approx(0.1, rel=0.01)
    assert held_out(folder) > 0.4
    rewired = {**rewired, "start": "magnitude"}
    spiking = snn(
        "adversarial", adversarial=loss, sparsity=rewired, init="teacher", conversion=CONVERSION
    )
    folder = trained(work, "dnr-snn", spiking, root)
    assert density(load_model(folder)) == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("pattern", ["weight", "channel"])
def test_resuming_gives_the_same_weights_and_masks(place, tmp_path, monkeypatch, pattern: str):
    root, work = place
    shutil.copytree(work / "teacher", tmp_path / "teacher")
    recipe = {**ANN, **AGC, "epochs": 3}
    recipe["sparsity"] = {**recipe["sparsity"], "pattern": pattern, "density": 0.25}
    whole = trained(tmp_path, "whole", recipe, root)
    real, calls = run._epoch, []

    def killed_in_the_third_epoch(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(run, "_epoch", killed_in_the_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, "cut", recipe, root)
    monkeypatch.undo()
    cut = trained(tmp_path, "cut", recipe, root, resume=True)
    a, b = load_file(whole / "model.safetensors"), load_file(cut / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_card_says_what_is_left(place, tmp_path):
    root, work = place
    shutil.copytree(work / "teacher", tmp_path / "teacher")
    recipe = {k: v for k, v in {**ANN, **AGC}.items() if k not in ("holdout", "train_images")}
    folder = trained(tmp_path, "whole", {**recipe, "epochs": 1}, root)
    card = (folder / "card.md").read_text()
    kept = sum(layer.kept for layer in densities(load_model(folder)))
    assert f"{kept:,} of {total(load_model(folder)):,} are not zero: 10.0" in card
    assert "guided by the attention maps of teacher, with 10 % of its weights kept" in card
    assert "| features.3 | 864 |" in card


def test_a_teacher_of_another_kind_is_refused(place, tmp_path):
    root, work = place
    shutil.copytree(work / "agc", tmp_path / "agc")
    spiking = trained(tmp_path, "snn", snn("hybrid", init="agc", conversion=CONVERSION), root)
    assert spiking.name == "snn"
    with pytest.raises(InputError, match=r"guidance\.teacher snn is a snn of vgg5"):
        trained(tmp_path, "bad", {**ANN, "guidance": {"teacher": "snn"}}, root)
