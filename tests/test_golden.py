"""The published HIRE-SNN network: our numbers must equal the reference vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from robustsnn.models.hire_snn import from_official
from robustsnn.models.weights import read_state_dict
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.snn.neuron import LIF

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the reference vectors are not beside this checkout"
)


@pytest.fixture(autouse=True, params=["fused", "reference"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here, with the compiled kernel and without."""
    monkeypatch.setenv("ROBUSTSNN_LIF", request.param)


SHAPES: dict[str, dict[str, Any]] = {
    "b": dict(image=(3, 16, 16), widths=(6, 10, 12), classifier=(24, 20), classes=7),
    "c": dict(image=(3, 32, 32), widths=(8, 12, 12), classifier=(40, 32), classes=10),
}


def vectors(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / f"hire_{name}.npz"))


def ours(network: Network, official: str) -> str:
    """Our name of an official parameter."""
    part, index, *_ = official.split(".")
    if part in ("features", "classifier"):
        return official
    n, offset = int(index[1:]), len(network.features) - 1
    layer = f"features.{n + 1}" if n < offset else f"classifier.{n - offset + 1}"
    return f"{layer}.{part}"


def from_vectors(name: str) -> Network:
    data = vectors(name)
    network = Network(
        NetworkConfig(
            architecture="vgg5",
            kind="snn",
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
            time_steps=int(data["timesteps"]),
            **SHAPES[name],
        )
    ).eval()
    weights = {
        ours(network, key): torch.tensor(value)
        for key, value in data.items()
        if key.split(".")[0] in ("features", "classifier", "threshold", "leak")
    }
    shapes = network.state_dict()
    network.load_state_dict({k: v.reshape(shapes[k].shape) for k, v in weights.items()})
    return network


def imported(name: str) -> Network:
    tensors = read_state_dict(GOLDEN / f"hire_{name}_official_state_dict.pt")
    return from_official(tensors, "vgg5", int(vectors(name)["timesteps"]), "none")


@pytest.fixture(params=["b", "c"])
def name(request):
    return request.param


@pytest.fixture(params=[from_vectors, imported], ids=["public API", "imported"])
def network(request, name):
    return request.param(name)


def test_import_reads_the_sizes_off_the_tensors(name):
    config = imported(name).config
    for field, value in SHAPES[name].items():
        assert getattr(config, field) == value


def test_logits_loss_and_every_gradient(name, network):
    data = vectors(name)
    images = torch.tensor(data["input"]).requires_grad_()
    logits = network(images)
    loss = F.cross_entropy(logits, torch.tensor(data["labels"]))
    named = dict(network.named_parameters())
    keys = [k for k in data if k.startswith("grad.")]
    gradients = torch.autograd.grad(loss, [images, *(named[ours(network, k[5:])] for k in keys)])
    np.testing.assert_allclose(logits.detach(), data["logits"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(loss.item(), data["loss"], rtol=0, atol=1e-5)
    assert len(keys) == 16
    for key, gradient in zip(["input_grad", *keys], gradients, strict=True):
        expected = data[key].reshape(gradient.shape)
        np.testing.assert_allclose(
            gradient, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=key
        )


def test_spike_counts_are_exact(name, network):
    data = vectors(name)
    offset = len(network.features) - 1
    counts: dict[int, torch.Tensor] = {}

    def count(index, pooled):
        def hook(module, args, output):
            steps = int(data["timesteps"])
            spikes = output.unflatten(0, (steps, -1)) if pooled else output[0]
            counts[index] = (spikes != 0).sum(0)

        return hook

    for start, layers in ((0, network.features), (offset, network.classifier)):
        for index, layer in enumerate(layers):
            if isinstance(layer, LIF | torch.nn.AvgPool2d):
                pooled = isinstance(layer, torch.nn.AvgPool2d)
                layer.register_forward_hook(count(start + index, pooled))
    with torch.no_grad():
        network(torch.tensor(data["input"]))
    keys = [k for k in data if k.startswith("spike_count.")]
    assert len(keys) == len(counts) == 7
    for key in keys:
        mine = counts[int(key.split(".")[1])].numpy()
        expected = data[key].reshape(mine.shape)
        np.testing.assert_array_equal(mine, expected, err_msg=key)


@pytest.fixture
def attacked():
    tensors = read_state_dict(GOLDEN / "hire_c_official_state_dict.pt")
    return from_official(tensors, "vgg5", int(vectors("c")["timesteps"]), "cifar10")


def test_official_attacks_clean_and_adversarial_logits(attacked):
    data = vectors("c")
    with torch.no_grad():
        for images, logits in (
            ("attack.images", "attack.clean_logits"),
            ("attack.fgsm_images", "attack.fgsm_logits"),
            ("attack.pgd7_images", "attack.pgd7_logits"),
        ):
            got = attacked(torch.tensor(data[images]))
            np.testing.assert_allclose(got, data[logits], rtol=0, atol=1e-4)
