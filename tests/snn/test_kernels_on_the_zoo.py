"""The compiled kernel and the reference on every spiking network that ships."""

from __future__ import annotations

import pytest
import torch

from robustsnn.checkpoint import load_model, read_checkpoint
from robustsnn.datasets import load_dataset
from robustsnn.registry import zoo_names
from robustsnn.snn.neuron import KERNEL_VARIABLE

SPIKING = sorted(n for n in zoo_names() if read_checkpoint(n).config.kind == "snn")


def sample(name, count):
    config = read_checkpoint(name).config
    if config.image == (1, 28, 28):
        data = load_dataset("fashion-mnist", None, samples=count)
        return data.tensor(), data.targets()
    generator = torch.Generator().manual_seed(0)
    # No other images ship: smooth random ones drive the same code.
    coarse = torch.rand(count, config.image[0], 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, config.image[1:], mode="bilinear")
    return images, torch.randint(0, config.classes, (count,), generator=generator)


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


@pytest.mark.slow
@pytest.mark.parametrize("name", SPIKING)
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
