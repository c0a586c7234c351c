"""The attack on what a network spends; `test_contract.py` holds it to what every attack must do."""

from __future__ import annotations

import pytest
import torch

import robustsnn
from robustsnn.adversary.activity import Counted
from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Gradient, Victim
from robustsnn.common.randomness import Rng
from robustsnn.data.datasets import load_dataset
from robustsnn.errors import InputError
from robustsnn.estimators.make import make_estimator
from robustsnn.snn.network import Network
from robustsnn.snn.operations import operations_per_image
from tests.adversary.test_victim import batch, network

IMAGES = 32


@pytest.fixture(scope="module")
def zoo() -> tuple[Network, torch.Tensor, torch.Tensor]:
    made = robustsnn.load_model("fashion-mnist/vgg5-snn")
    assert isinstance(made, Network)
    data = load_dataset("fashion-mnist", None, samples=IMAGES)
    return made.eval(), data.tensor(slice(0, IMAGES)), data.targets()[:IMAGES]


def attacked(spec, made, images, labels, norm="Linf", epsilon="8/255", estimator="bptt"):
    ids = range(len(images))
    victim = Victim(made, make_estimator(estimator, made), ids, micro_batch=32)
    return load_attack(spec)(
        victim, images, labels, ThreatModel(norm, epsilon), Rng(0, ids)
    ), victim


@pytest.mark.parametrize(("norm", "epsilon"), [("Linf", "8/255"), ("L2", "0.8")])
def test_it_raises_operations_above_noise_and_keeps_the_label(zoo, norm, epsilon):
    made, images, labels = zoo
    threat = ThreatModel(norm, epsilon)
    clean = operations_per_image(made, images)
    found, _ = attacked("energy:steps=20", made, images, labels, norm, epsilon)
    noise, _ = attacked("gaussian-noise", made, images, labels, norm, epsilon)
    raised = operations_per_image(made, found)
    assert bool(threat.admits(found, images).all())
    assert bool((raised >= clean).all())
    # Noise of the same size changes the mean by less than a third of what the attack adds.
    added = float((raised - clean).mean())
    assert added > 3 * abs(float((operations_per_image(made, noise) - clean).mean()))
    assert added > 0.02 * float(clean.mean())
    assert torch.equal(made(found).argmax(1), made(images).argmax(1))


def test_without_the_label_it_finds_as_much_or_more_and_changes_classes(zoo):
    made, images, labels = zoo
    kept, _ = attacked("energy:steps=20", made, images, labels, epsilon="32/255")
    free, _ = attacked("energy:steps=20,keep_label=no", made, images, labels, epsilon="32/255")
    same = made(images).argmax(1)
    assert torch.equal(made(kept).argmax(1), same)
    assert bool((made(free).argmax(1) != same).any())
    assert operations_per_image(made, free).mean() > operations_per_image(made, kept).mean()


def test_it_proposes_the_image_itself_where_it_finds_nothing_better(zoo):
    made, images, labels = zoo
    found, victim = attacked("energy:steps=1,random_start=no", made, images, labels)
    better = operations_per_image(made, found) > operations_per_image(made, images)
    assert torch.equal(found[~better], images[~better])
    # The image, one gradient, and the last iterate.
    assert victim.forward_passes.tolist() == [3] * IMAGES
    assert victim.backward_passes.tolist() == [1] * IMAGES


def test_more_restarts_never_find_less():
    made = network()
    images, labels = batch(5)
    once, _ = attacked("energy:steps=5,keep_label=no", made, images, labels)
    thrice, _ = attacked("energy:steps=5,keep_label=no,restarts=3", made, images, labels)
    counts = [operations_per_image(made, x) for x in (images, once, thrice)]
    assert bool((counts[0] <= counts[1]).all() and (counts[1] <= counts[2]).all())


def test_it_works_on_a_network_that_draws():
    made = network(encoding="poisson")
    images, labels = batch(4)
    estimator = "bptt:draws=3"
    spec = "energy:steps=6,keep_label=no"
    found, victim = attacked(spec, made, images, labels, "Linf", "0.2", estimator)
    keys = [torch.arange(100 * k, 100 * k + 4) for k in range(8)]
    clean, raised = (
        torch.stack([operations_per_image(made, x, key) for key in keys]).mean()
        for x in (images, found)
    )
    assert raised > clean
    assert victim.backward_passes.tolist() == [18] * 4


class OnePixel:
    """A victim of one pixel, whose operations grow with it and whose label is lost above 0.5."""

    draws = 1

    def __init__(self) -> None:
        self.seen: list[float] = []

    def fresh(self) -> None:
        pass

    def select(self, index):
        return self

    def activity(self, x, draws=1):
        return Counted(x.flatten().double(), torch.cat([0.5 - x, x - 0.5], 1).flatten(1))

    def activity_gradient(self, x):
        self.seen.append(x.item())
        found = self.activity(x)
        return Gradient(found.operations, found.logits, torch.ones_like(x))

    def gradient(self, x, labels, loss):
        assert labels.tolist() == [0] and loss == "margin"
        return Gradient(x.flatten(), x.flatten(1), torch.ones_like(x))


@pytest.mark.parametrize("keep_label", [True, False])
def test_an_iterate_that_lost_its_label_goes_back(keep_label):
    attack = load_attack(f"energy:steps=8,step_size=0.2,random_start=no,keep_label={keep_label}")
    victim = OnePixel()
    image = torch.full((1, 1, 1, 1), 0.25)
    found = attack(victim, image, torch.tensor([0]), ThreatModel("Linf", "0.7"), Rng(0, [0]))
    if keep_label:
        # 0.25, 0.45, 0.65: lost, and back.
        torch.testing.assert_close(victim.seen[1:], 3 * [0.45, 0.65] + [0.45])
        assert found.item() == pytest.approx(0.45)
    else:
        assert victim.seen[-1] == pytest.approx(0.95) and found.item() == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("energy:steps=0", "steps and restarts must be at least 1"),
        ("energy:restarts=2,random_start=no", "would all be the same"),
        ("energy:step_size=0", "step_size must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(spec, said):
    with pytest.raises(InputError, match=said):
        load_attack(spec)
