"""RayS: it sees decisions only, keeps its budget, and nears the nearest direction of signs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError
from robustsnn.estimators.make import make_estimator

PIXELS = 16


class Linear(nn.Module):
    """Class 1 where `w . (x - 1/2) > 0`, by a margin or, with `vote`, by the winner alone."""

    def __init__(self, vote: bool = False) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        self.w = torch.randn(PIXELS, generator=draws).double()
        self.vote = vote

    def forward(self, images: Tensor) -> Tensor:
        z = (images.double().flatten(1) - 0.5) @ self.w
        logits = torch.stack([torch.zeros_like(z), z], 1)
        return F.one_hot(logits.argmax(1), 2).double() if self.vote else logits

    def images_at(self, distances: Tensor, norm: str) -> Tensor:
        """Images of class 0 that the nearest of class 1 is so far away from."""
        direction = -self.w.sign() if norm == "Linf" else -self.w / self.w.norm()
        return (0.5 + distances.double()[:, None] * direction).reshape(-1, 1, 4, 4)


def proposed(network: nn.Module, images: Tensor, epsilon: float, queries: int, norm: str = "Linf"):
    labels = torch.zeros(len(images), dtype=torch.int64)
    ids = range(len(images))
    victim = Victim(network, make_estimator("bptt", network), ids, micro_batch=4)
    threat = ThreatModel(norm, str(epsilon))
    attack = load_attack(f"rays:queries={queries}")
    found = attack(victim, images, labels, threat, Rng(0, ids))
    assert bool(threat.admits(found, images).all())
    return found, victim


def test_it_finds_what_is_well_within_the_ball_and_nothing_that_is_not():
    network = Linear()
    images = network.images_at(torch.tensor([0.02, 0.05, 0.08, 0.099, 0.101, 0.2]), "Linf")
    found, victim = proposed(network, images, 0.1, 400)
    wrong = network(found).argmax(1) == 1
    assert wrong.tolist() == [True, True, True, True, False, False]
    # Those that were not found took the whole budget, the others less.
    assert victim.forward_passes.tolist()[4:] == [400, 400]
    assert max(victim.forward_passes.tolist()[:4]) < 400
    assert victim.backward_passes.sum() == 0


def test_a_vote_hides_nothing_from_it():
    images = Linear().images_at(torch.linspace(0.01, 0.15, 8), "Linf")
    scores, _ = proposed(Linear(), images, 0.1, 150)
    votes, _ = proposed(Linear(vote=True), images, 0.1, 150)
    assert torch.equal(scores, votes)


def test_l2_finds_what_signs_reach():
    network = Linear()
    images = network.images_at(torch.tensor([0.1, 0.3, 1.0]), "L2")
    found, _ = proposed(network, images, 0.5, 400, "L2")
    # Along the signs of w the boundary is farther by |w|_2 * sqrt(d) / |w|_1.
    farther = float(network.w.norm() * PIXELS**0.5 / network.w.abs().sum())
    assert 0.3 * farther < 0.5
    assert (network(found).argmax(1) == 1).tolist() == [True, True, False]


def test_what_it_cannot_do_is_refused():
    with pytest.raises(InputError, match="queries must be at least 1"):
        load_attack("rays:queries=0")
    network = Linear()
    network.stochastic = True
    with pytest.raises(InputError, match="stochastic"):
        proposed(network, network.images_at(torch.tensor([0.1]), "Linf"), 0.1, 5)
