"""Checkpoints with many zeros: what they are on disk, and what is refused."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune

from robustsnn.errors import InputError
from robustsnn.models.checkpoint import load_network, read_checkpoint, save_checkpoint
from robustsnn.snn.channels import slim
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.snn.sparsity import density, synapses

NAMES = tuple("abcdefghij")


def network(density, **changes):
    """The VGG5 of the zoo, with so many of its weights at random places."""
    torch.manual_seed(0)
    known = {
        "architecture": "vgg5",
        "kind": "snn",
        "classes": 10,
        "image": (1, 28, 28),
        "widths": (16, 32, 32),
        "classifier": (128,),
        "mean": (0.3,),
        "std": (0.4,),
        "time_steps": 3,
    }
    made = Network(NetworkConfig.model_validate({**known, **changes})).eval()
    with torch.no_grad():
        for layer in synapses(made).values():
            layer.weight[torch.rand_like(layer.weight) >= density] = 0
    return made


def saved(made: Network, folder, **settings):
    save_checkpoint(
        made, folder, data="fashion-mnist", class_names=NAMES, provenance={}, **settings
    )
    return folder


def rewrite(folder, change) -> None:
    """Change the tensors of a checkpoint and put their new digest into its description."""
    weights, description = folder / "model.safetensors", folder / "model.json"
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights)
    about = json.loads(description.read_text())
    about["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    description.write_text(json.dumps(about))


def redescribe(folder, **changes) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("share", [0.0, 0.03, 0.1, 0.4, 0.9, 1.0])
def test_a_network_of_any_density_comes_back(tmp_path, share):
    made = network(share)
    loaded = load_network(read_checkpoint(saved(made, tmp_path / "m")))
    for name, tensor in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert density(loaded) == density(made)
    about = json.loads((tmp_path / "m" / "model.json").read_text())
    assert about["format"] == (2 if share < 0.8 else 1)
    image = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded(image), made(image))


def test_a_33x_network_is_a_file_15_times_smaller(tmp_path):
    sparse, dense = saved(network(0.03), tmp_path / "s"), saved(network(1.0), tmp_path / "d")
    small, big = ((f / "model.safetensors").stat().st_size for f in (sparse, dense))
    assert big / small >= 15
    again = saved(network(0.03), tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (sparse / "model.safetensors").read_bytes()


def test_a_mask_of_torch_made_permanent_is_stored_sparsely(tmp_path):
    made = network(1.0)
    for layer in synapses(made).values():
        prune.random_unstructured(layer, "weight", amount=0.97)
    with pytest.raises(InputError, match=r"make them permanent first \(prune\.remove\)\.$"):
        saved(made, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    for layer in synapses(made).values():
        prune.remove(layer, "weight")
    assert torch.signbit(made.features[0].weight[made.features[0].weight == 0]).any()
    folder = saved(made, tmp_path / "m")
    big = saved(network(1.0), tmp_path / "d") / "model.safetensors"
    assert big.stat().st_size / (folder / "model.safetensors").stat().st_size >= 15
    image = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    assert torch.equal(load_network(read_checkpoint(folder))(image), made(image))


def test_a_network_without_some_channels_says_what_it_had(tmp_path):
    made = network(1.0)
    before = sum(layer.weight.numel() for layer in synapses(made).values())
    with torch.no_grad():
        made.features[0].weight[:7] = 0
    smaller = slim(made)
    folder = saved(smaller, tmp_path / "m", dense_weights=before)
    checkpoint = read_checkpoint(folder)
    assert checkpoint.meta["dense_weights"] == before
    assert checkpoint.config.widths == (9, 32, 32)
    image = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    assert torch.equal(load_network(checkpoint)(image), smaller(image))
    left = sum(layer.weight.numel() for layer in synapses(smaller).values())
    redescribe(folder, dense_weights=left)
    load_network(read_checkpoint(folder))
    redescribe(folder, dense_weights=left - 1)
    with pytest.raises(InputError, match=f"dense_weights is {left - 1}.*has {left} weights"):
        load_network(read_checkpoint(folder))


@pytest.mark.parametrize("wrong", [0, -3, "many", 1.5, True])
def test_dense_weights_are_a_whole_number(tmp_path, wrong):
    folder = saved(network(1.0), tmp_path / "m")
    redescribe(folder, dense_weights=wrong)
    with pytest.raises(InputError, match="dense_weights must be a whole number"):
        read_checkpoint(folder)


PART = "classifier.0.weight"


def _shorter(tensors):
    tensors[f"{PART}.values"] = tensors[f"{PART}.values"][:-1].clone()


def _farther(tensors):
    gaps = tensors[f"{PART}.gaps"]
    tensors[f"{PART}.gaps"] = torch.cat([torch.full((9999,), 255, dtype=torch.uint8), gaps])


def _typed(tensors):
    tensors[f"{PART}.gaps"] = tensors[f"{PART}.gaps"].int()


def _without_gaps(tensors):
    del tensors[f"{PART}.gaps"]


def _twice(tensors):
    tensors[PART] = torch.zeros(128, 1568)


def _stranger(tensors):
    tensors["a.values"], tensors["a.gaps"] = torch.ones(1), torch.ones(1, dtype=torch.uint8)


def _infinite(tensors):
    tensors[f"{PART}.values"][3] = float("inf")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_shorter, "do not fit"),
        (_farther, "do not fit"),
        (_typed, "another type or shape"),
        (_without_gaps, f"lacks '{PART}'"),
        (_twice, f"holds '{PART}.gaps'"),
        (_stranger, "holds 'a.gaps'"),
        (_infinite, "NaN or infinity"),
    ],
)
def test_damaged_parts_are_refused_in_a_line(tmp_path, change, says):
    folder = saved(network(0.03), tmp_path / "m")
    rewrite(folder, change)
    with pytest.raises(InputError, match=says) as told:
        load_network(read_checkpoint(folder))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "widths", [[2**16, 2**16, 32], [2**20, 2**20, 32], [2**31 - 1, 2**31 - 1, 2**31 - 1]]
)
def test_a_description_of_a_huge_network_takes_no_memory(tmp_path, widths, monkeypatch):
    folder = saved(network(0.0), tmp_path / "m")
    about = json.loads((folder / "model.json").read_text())
    about["network"]["widths"] = widths
    redescribe(folder, network=about["network"])
    built: list[object] = []
    monkeypatch.setattr(
        nn.init, "normal_", lambda tensor, *_: built.append(tensor.device.type) or tensor
    )
    with pytest.raises(InputError, match=r"less than or equal to 65536|weights, more than"):
        load_network(read_checkpoint(folder))
    assert set(built) <= {"meta"}
