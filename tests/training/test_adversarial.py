"""Adversarial training against its equations, written out."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.training.adversarial import adversarial_update, craft
from robustsnn.training.recipe import Adversarial
from robustsnn.training.step import plain_update

EPSILON = 8 / 255


def network(kind: str = "snn", dropout: float = 0.0) -> Network:
    torch.manual_seed(0)
    made = Network(
        NetworkConfig(
            architecture="vgg5",
            kind="snn" if kind == "snn" else "ann",
            classes=5,
            image=(2, 8, 8),
            widths=(4, 6, 6),
            classifier=(12,),
            mean=(0.4, 0.5),
            std=(0.3, 0.2),
            time_steps=4 if kind == "snn" else 1,
            dropout=dropout,
        )
    )
    for layer in made.spiking_layers().values():
        layer.threshold.data.fill_(0.05)
        layer.leak.data.fill_(0.9)
    for module in made.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.normal_(0, 0.3)
    return made.train()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(16, 2, 8, 8, generator=generator)
    return images, torch.randint(0, 5, (16,), generator=generator)


@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_one_step_follows_its_equation(kind):
    """Uniform start, one sign step of 1.25 epsilon, clipped to the ball and to [0, 1]."""
    net = network(kind)
    images, labels = batch()
    torch.manual_seed(5)
    found = craft(net, images, labels, Adversarial(epsilon="8/255"))
    torch.manual_seed(5)
    start = torch.empty_like(images).uniform_(-EPSILON, EPSILON)
    x = torch.clamp(images + start, 0, 1).requires_grad_()
    F.cross_entropy(net(x), labels).backward()
    assert x.grad is not None and x.grad.any()
    noise = torch.clamp(start + 1.25 * EPSILON * torch.sign(x.grad), -EPSILON, EPSILON)
    torch.testing.assert_close(found, torch.clamp(images + noise, 0, 1), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_images_stay_in_ball_and_range_and_hurt_an_ann(kind):
    net = network(kind)
    images, labels = batch()
    losses = []
    for settings in (
        Adversarial(epsilon="0"),
        Adversarial(epsilon="16/255"),
        Adversarial(epsilon="16/255", steps=10, step="4/255"),
        Adversarial(epsilon="16/255", steps=10, random_start=False),
    ):
        torch.manual_seed(1)
        found = craft(net, images, labels, settings)
        assert not found.requires_grad
        assert found.min() >= 0 and found.max() <= 1
        bound = 16 / 255 if settings.epsilon != "0" else 0
        assert (found - images).abs().max() <= bound + 1e-7
        with torch.no_grad():
            losses.append(F.cross_entropy(net(found), labels).item())
    clean, one, many, unstarted = losses
    # The surrogate gradient of an untrained SNN promises nothing about the loss.
    assert kind == "snn" or clean < one < min(many, unstarted)


def test_without_a_ball_it_is_a_plain_update():
    images, labels = batch()
    ours, theirs = network(), network()
    for net, adversarial in ((ours, True), (theirs, False)):
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(2):
            if adversarial:
                adversarial_update(net, optimizer, images, labels, Adversarial(epsilon="0"))
            else:
                plain_update(net, optimizer, images, labels)
    state = theirs.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())


def test_crafting_changes_nothing_of_the_network():
    net = network(dropout=0.2)
    before = copy.deepcopy(net.state_dict())
    images, labels = batch()
    craft(net, images, labels, Adversarial(epsilon="8/255", steps=2))
    after = net.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert net.training and all(p.requires_grad and p.grad is None for p in net.parameters())


def test_sizes_are_checked():
    for wrong in ({"epsilon": "many"}, {"epsilon": "8/255", "step": "-1"}, {}):
        with pytest.raises(ValidationError):
            Adversarial.model_validate(wrong)


def test_the_hybrid_loss_weighs_clean_and_adversarial_images():
    """DNR: b times the clean cross-entropy and 1 - b times that of the crafted images."""
    net = network("ann")
    images, labels = batch()
    settings = Adversarial(epsilon="8/255", steps=2, clean_weight=0.3)
    torch.manual_seed(5)
    crafted = craft(net, images, labels, settings)
    loss = 0.3 * F.cross_entropy(net(images), labels)
    loss = loss + 0.7 * F.cross_entropy(net(crafted), labels)
    expected = torch.autograd.grad(loss, net.features[0].weight)[0]
    learner = copy.deepcopy(net)
    torch.manual_seed(5)
    said = adversarial_update(
        learner, torch.optim.SGD(learner.parameters(), lr=1.0), images, labels, settings
    )
    moved = net.features[0].weight.detach() - learner.features[0].weight.detach()
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert said.loss == pytest.approx(16 * F.cross_entropy(net(crafted), labels).item())
