"""Networks with zeros among their weights, evaluated, reported and verified like any other."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import robustsnn
from robustsnn.data.datasets import load_dataset
from robustsnn.errors import InputError
from robustsnn.evaluation.header import densities_of, manifest_of, with_stages
from robustsnn.evaluation.plan import plans_of
from robustsnn.evaluation.request import Request
from robustsnn.models.checkpoint import load_model, read_checkpoint, save_checkpoint
from robustsnn.records.manifest import Manifest, read_manifest
from robustsnn.records.runs import load_runs
from robustsnn.snn.channels import slim
from robustsnn.snn.network import Network
from robustsnn.snn.sparsity import synapses
from robustsnn.workflows.verify.run import verify


@pytest.fixture(scope="module")
def data():
    found = load_dataset("fashion-mnist", None, samples=12)
    return found.tensor(), found.targets()


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 5, stride=4), nn.ReLU(), nn.Flatten(1), nn.Linear(144, 10))


def evaluated(network, data, **settings):
    return robustsnn.evaluate(network, data, attack=["pgd:steps=3"], epsilon="8/255", **settings)


def with_weight_norm(network: nn.Sequential) -> None:
    parametrizations.weight_norm(network[0])


def with_masks(network: nn.Sequential) -> None:
    prune.l1_unstructured(network[0], "weight", amount=60)
    prune.ln_structured(network[3], "weight", amount=36, n=1, dim=1)


@pytest.mark.parametrize("change", [with_masks, with_weight_norm])
@pytest.mark.parametrize("trained", [False, True], ids=["new", "after backward"])
def test_a_network_with_computed_weights_is_evaluated(change, trained, data):
    network = small()
    change(network)
    if trained:
        nn.functional.cross_entropy(network(data[0]), data[1]).backward()
    done = evaluated(network, data)
    right = (network(data[0]).argmax(1) == data[1]).float().mean()
    clean = done.results.set_index("attack").loc["clean", "accuracy"]
    assert clean == pytest.approx(float(right))
    checks = [check["passed"] for check in done.manifest.preflight if check["id"] == "D9"]
    assert len(checks) > 3 and all(checks)
    kept = [40, 1080] if change is with_masks else [100, 1440]
    assert done.manifest.densities == tuple(
        {"layer": name, "weights": weights, "kept": left}
        for name, weights, left in zip(("0", "3"), (100, 1440), kept, strict=True)
    )
    assert done.manifest.dense_weights is None


def test_masks_made_permanent_give_the_same_records(data):
    """Torch computes the product in each pass, or once: the attacked network is the same one."""
    masked, permanent = small(), small()
    for network in (masked, permanent):
        with_masks(network)
    for place in (0, 3):
        prune.remove(permanent[place], "weight")
    one, other = evaluated(masked, data), evaluated(permanent, data)
    columns = ["image_id", "attack", "prediction", "margin", "linf"]
    assert one.records[columns].equals(other.records[columns])
    assert one.manifest.densities == other.manifest.densities
    assert one.manifest.identity != other.manifest.identity


@pytest.fixture(scope="module")
def runs(checkpoints, tmp_path_factory):
    """Runs of a dense checkpoint, one with 10 % of its weights, and one of fewer channels."""
    root = tmp_path_factory.mktemp("sparse")
    pruned = load_model(checkpoints / "snn")
    assert isinstance(pruned, Network)
    layers = [(layer, "weight") for layer in synapses(pruned).values()]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.9)
    for layer, name in layers:
        prune.remove(layer, name)
    thinner = load_model(checkpoints / "ann")
    assert isinstance(thinner, Network)
    before = sum(layer.weight.numel() for layer in synapses(thinner).values())
    with torch.no_grad():
        thinner.features[0].weight[1:3] = 0
        thinner.classifier[0].weight[10:] = 0
    meta = read_checkpoint(checkpoints / "ann").meta
    about = {k: meta[k] for k in ("data", "class_names", "provenance")}
    save_checkpoint(pruned, root / "pruned", **about)
    save_checkpoint(slim(thinner), root / "slim", **about, dense_weights=before)
    for model in (checkpoints / "snn", root / "pruned", root / "slim"):
        robustsnn.evaluate(model, samples=10, attack=["fgsm"], output=root / "runs" / model.name)
    return root / "runs"


def test_runs_know_their_density_and_compression(runs):
    dense, pruned, thinner = load_runs([runs / name for name in ("snn", "pruned", "slim")]).runs
    total = sum(row["weights"] for row in dense.manifest.densities)
    # A few weights of it happen to be zero.
    assert 0.99 < dense.density <= 1 and not dense.sparse
    assert pruned.weights == total - round(0.9 * total)
    assert pruned.compression == pytest.approx(total / pruned.weights)
    assert pruned.density == pytest.approx(pruned.weights / total) and pruned.sparse
    assert thinner.density == 1.0 and thinner.sparse
    assert thinner.manifest.dense_weights == total
    assert thinner.compression == total / thinner.weights > 2
    loaded = load_runs([runs / "pruned", runs / "snn"])
    frame = loaded.densities
    assert frame["model"].unique().tolist() == list(loaded.models)
    assert frame.groupby("model")["kept"].sum()[loaded.models[0]] == pruned.weights
    assert (frame["density"] == frame["kept"] / frame["weights"]).all()


def altered(runs, name, tmp_path, **changes):
    """A copy of a run whose manifest says something else."""
    copied = tmp_path / name
    copied.mkdir()
    for path in (runs / name).iterdir():
        if path.is_file():
            (copied / path.name).write_bytes(path.read_bytes())
    path = copied / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return copied


@pytest.mark.parametrize("name", ["snn", "pruned", "slim"])
def test_verify_takes_the_densities_again(runs, name, tmp_path):
    assert verify(runs / name).passed
    stated = [dict(row) for row in read_manifest(runs / name).densities]
    stated[1]["kept"] -= 1
    found = verify(altered(runs, name, tmp_path, densities=stated))
    assert not found.passed
    assert f"the run states {stated[1]['kept']} of " in found.sentence
    assert f"the model has {stated[1]['kept'] + 1} of" in found.sentence


def test_verify_knows_layers_and_channels_that_are_not_there(runs, tmp_path):
    stated = list(read_manifest(runs / "slim").densities)
    found = verify(altered(runs, "slim", tmp_path, densities=stated[1:], dense_weights=99999))
    assert len(found.densities) == 2
    assert "the run states no weights for features.0" in found.sentence
    assert "the run states 99999 weights before channels were removed" in found.sentence


def test_older_runs_load_and_are_verified(runs, tmp_path):
    folder = altered(runs, "pruned", tmp_path, densities=None, digest="")
    (run,) = load_runs([folder]).runs
    assert run.weights is None and not run.sparse
    assert run.density != run.density and run.compression != run.compression
    assert load_runs([folder]).densities.empty
    assert verify(folder).passed


@pytest.mark.parametrize(
    "rows",
    [
        [{"layer": "a", "weights": 3}],
        [{"layer": "a", "weights": 3, "kept": 4}],
        [{"layer": "a", "weights": 3, "kept": -1}],
        [{"layer": 3, "weights": 3, "kept": 1}],
        [{"layer": "a", "weights": 3.0, "kept": 1}],
        [3],
        {"a": 3},
    ],
)
def test_densities_that_are_none_are_refused_in_a_line(runs, tmp_path, rows):
    folder = altered(runs, "snn", tmp_path, densities=rows)
    with pytest.raises(InputError, match="densities") as told:
        load_runs([folder])
    assert "\n" not in str(told.value)


def test_a_run_that_an_older_version_began_gets_its_densities(checkpoints):
    (plan,) = plans_of(Request.of(checkpoints / "snn", None, None, samples=4, attack=["fgsm"]))
    whole = manifest_of(plan)
    older = with_stages(whole.but(densities=None), plan)
    assert older.densities == whole.densities and len(older.densities) == 5
    assert with_stages(whole, plan) is whole


def test_our_networks_with_masks_of_torch_are_evaluated(checkpoints, data):
    network = load_model(checkpoints / "snn")
    for layer in synapses(network).values():
        prune.l1_unstructured(layer, "weight", amount=0.6)
    done = evaluated(network, data)
    total = sum(row["weights"] for row in done.manifest.densities)
    assert sum(row["kept"] for row in done.manifest.densities) == pytest.approx(0.4 * total, abs=3)
    assert done.manifest.kind == "snn" and len(done.activity) > 0


def test_a_network_without_synapses_has_no_compression():
    manifest = Manifest(model="a", data="b", suite="quick", densities=())
    assert manifest.densities == ()
    assert densities_of(nn.Flatten()) == ()
