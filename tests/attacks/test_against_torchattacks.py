"""FGSM and PGD give the images that torchattacks gives, on the same network."""

from typing import Any

import pytest
import torch
import torchattacks
from torch import nn

from robustsnn.adversary.catalogue import attack_class, load_attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.data.datasets import load_dataset
from robustsnn.estimators.make import make_estimator
from robustsnn.models.checkpoint import load_model
from robustsnn.models.zoo import zoo_names
from robustsnn.snn.network import Network, NetworkConfig

STEPS = 6
MODELS = ["fashion-mnist/vgg5-ann", "fashion-mnist/vgg5-snn"]


def small(kind: Any) -> Network:
    torch.manual_seed(4)
    network = Network(
        NetworkConfig(
            architecture="vgg5", kind=kind, classes=10, image=(3, 16, 16), widths=(6, 8, 8),
            classifier=(24, 16), mean=(0.5,) * 3, std=(0.25,) * 3,
            time_steps=5 if kind == "snn" else 1,
        )
    )  # fmt: skip
    for layer in network.classifier.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    for neurons in network.spiking_layers().values():
        neurons.threshold.data.fill_(0.3)
    return network.eval()


def batch(count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    images = torch.rand((count, 3, 16, 16), generator=generator)
    return images, torch.randint(10, (count,), generator=generator)


def unequal(a: torch.Tensor, b: torch.Tensor) -> float:
    """The fraction of pixels that differ by more than rounding."""
    return float(((a - b).abs() > 1e-6).float().mean())


def both(model: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    if model in ("ann", "snn"):
        return small(model), *batch()
    if model not in zoo_names():
        pytest.skip(f"{model} is not in the zoo")
    data = load_dataset("fashion-mnist", None, samples=24)
    return load_model(model), data.tensor(slice(0, 24)), torch.as_tensor(data.labels)


every_network = pytest.mark.parametrize("model", ["ann", "snn", *MODELS])


@every_network
def test_fgsm(model: str) -> None:
    network, images, labels = both(model)
    ids = range(len(images))
    victim = Victim(network, make_estimator("bptt", network), ids, micro_batch=len(images))
    ours = load_attack("fgsm")(victim, images, labels, ThreatModel("Linf", "8/255"), Rng(0, ids))
    theirs = torchattacks.FGSM(network, eps=8 / 255)(images, labels)
    assert unequal(theirs, images) > 0.3
    assert unequal(ours, theirs) <= 1e-3


@every_network
@pytest.mark.parametrize(
    ("norm", "epsilon", "step_size", "peer"),
    [("Linf", "8/255", "2/255", torchattacks.PGD), ("L2", "1.0", "0.2", torchattacks.PGDL2)],
)
def test_pgd_step_by_step(
    model: str, norm: str, epsilon: str, step_size: str, peer: type[torchattacks.attack.Attack]
) -> None:
    network, images, labels = both(model)
    ids = range(len(images))
    threat = ThreatModel(norm, epsilon)
    alpha = {"2/255": 2 / 255, "0.2": 0.2}[step_size]

    def theirs(steps: int) -> torch.Tensor:
        attack = peer(network, eps=threat.radius, alpha=alpha, steps=steps, random_start=False)
        found: torch.Tensor = attack(images, labels)
        return found

    victim = Victim(network, make_estimator("bptt", network), ids, micro_batch=len(images))
    pgd: Any = attack_class("pgd")
    ours = pgd(step_size=step_size)
    before = images
    for steps in range(1, STEPS + 1):
        # Each step starts from their iterate: one spike that rounding flips would lead a whole run
        # to another place.
        gradient = victim.gradient(before, labels).gradient
        after = theirs(steps)
        assert unequal(after, before) > 0.05
        # torchattacks adds 1e-10 to the norm of the gradient of the mean loss, which shrinks the
        # L2 step of an image that the network is sure of; ours is always a whole step.
        clear = gradient.flatten(1).norm(dim=1) / len(images) > 1e-5
        clear |= torch.tensor(norm == "Linf")
        assert int(clear.sum()) > len(images) / 3
        next_ones = ours.advance(before, gradient, images, threat)
        assert unequal(next_ones[clear], after[clear]) <= 1e-3
        before = after

    # At the same batch shape the whole run agrees as well.
    spec = f"pgd:steps={STEPS},step_size={step_size},random_start=no,iterate=last,early_exit=no"
    whole = load_attack(spec)(victim, images, labels, threat, Rng(0, ids))
    if norm == "Linf":
        assert unequal(whole, before) <= 1e-3


@pytest.mark.parametrize("name", ["FGSM", "BIM", "PGD"])
@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_the_adapter_gives_what_the_library_gives(kind: str, name: str) -> None:
    network, images, labels = both(kind)
    ids = range(len(images))
    victim = Victim(network, make_estimator("bptt", network), ids, micro_batch=len(images))
    options = ":random_start=no" if name == "PGD" else ""
    ours = load_attack(f"torchattacks:{name}{options}")(
        victim, images, labels, ThreatModel("Linf", "8/255"), Rng(0, ids)
    )
    peer = getattr(torchattacks, name)
    theirs = peer(network, **({"random_start": False} if name == "PGD" else {}))(images, labels)
    assert unequal(ours, theirs) <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_same_robust_accuracy_from_random_starts(model: str) -> None:
    if model not in zoo_names():
        pytest.skip(f"{model} is not in the zoo")
    network = load_model(model)
    data = load_dataset("fashion-mnist", None, samples=2000)
    labels = torch.as_tensor(data.labels)
    # The radius is small enough that some images survive, so that there is something to compare.
    threat = ThreatModel("Linf", "2/255")
    attack = load_attack("pgd:steps=3,step_size=1/255,iterate=last,early_exit=no")
    torch.manual_seed(0)
    correct = torch.zeros(2)
    for start in range(0, 2000, 100):
        here = slice(start, start + 100)
        images, ids = data.tensor(here), range(start, start + 100)
        victim = Victim(network, make_estimator("bptt", network), ids, micro_batch=100)
        ours = attack(victim, images, labels[here], threat, Rng(0, ids))
        theirs = torchattacks.PGD(network, eps=2 / 255, alpha=1 / 255, steps=3)(
            images, labels[here]
        )
        for i, found in enumerate((ours, theirs)):
            assert bool(threat.admits(found, images).all())
            correct[i] += (victim.logits(found).argmax(1) == labels[here]).sum()
    accuracy = correct / 2000
    assert 0.02 < float(accuracy[0]) < 0.9
    assert abs(float(accuracy[0] - accuracy[1])) <= 0.01
