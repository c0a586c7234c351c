"""The compiled kernel and the reference on every spiking network that ships."""

from __future__ import annotations

import pytest
import torch

from robustsnn.models.checkpoint import load_model, read_checkpoint
from robustsnn.models.zoo import zoo_names
from robustsnn.snn.neuron import KERNEL_VARIABLE
from tests.real_data import real_images

CONFIGS = {name: read_checkpoint(name).config for name in zoo_names()}
#: Hundreds of time steps show nothing that a few do not.
SPIKING = sorted(n for n, c in CONFIGS.items() if c.kind == "snn" and c.time_steps <= 16)
#: One of each kind of training; their copies and the other compressions take as long again.
KINDS = (
    "cifar10/vgg5-snn",
    "fashion-mnist/resnet12-snn",
    *(
        f"fashion-mnist/vgg5-snn{kind}"
        for kind in ("", "-at", "-hire", "-agc-33x", "-agc-4x-channel")
    ),
)
BY_COST = [
    pytest.param(name, marks=[] if name in KINDS else pytest.mark.exhaustive) for name in SPIKING
]


def sample(name, count):
    data = real_images(read_checkpoint(name).meta["data"], count)
    return data.tensor(), data.targets()


@pytest.mark.parametrize("name", SPIKING)
def test_same_logits_and_gradients(name, monkeypatch):
    images, labels = sample(name, 32)
    network = load_model(name)
    found = []
    for kernel in ("reference", "fused"):
        monkeypatch.setenv(KERNEL_VARIABLE, kernel)
        x = images.clone().requires_grad_()
        logits = network(x)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        found.append((logits.detach(), torch.autograd.grad(loss, x)[0]))
    (logits, gradient), (fused_logits, fused_gradient) = found
    assert torch.equal(fused_logits, logits)
    size = gradient.flatten(1).norm(dim=1)
    error = (fused_gradient - gradient).flatten(1).norm(dim=1)
    assert (error <= 1e-5 * size).all()


def test_each_kind_ships():
    assert set(KINDS) <= set(SPIKING)


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_COST)
def test_same_predictions_on_two_thousand_images(name, monkeypatch):
    images, _ = sample(name, 2000)
    network = load_model(name)
    found = {}
    for kernel in ("reference", "fused"):
        monkeypatch.setenv(KERNEL_VARIABLE, kernel)
        with torch.no_grad():
            parts = [network(part).argmax(1) for part in images.split(100)]
        found[kernel] = torch.cat(parts)
    differing = (found["fused"] != found["reference"]).nonzero().flatten().tolist()
    assert len(differing) <= 2, f"predictions differ on images {differing}"
