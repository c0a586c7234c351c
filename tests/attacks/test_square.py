"""Square against its published rules, written out by hand, and against torchattacks."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchattacks import Square as Peer

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError
from robustsnn.estimators.backprop import Backprop
from robustsnn.models.scoring import margin

NORMS = ["Linf", "L2"]
module = importlib.import_module("robustsnn.attacks.square")


class Asked(nn.Module):
    """A linear network with logits `(0, w.x + b)` that keeps what it is called with."""

    def __init__(self, shape: tuple[int, ...], bias: float, seed: int = 0) -> None:
        super().__init__()
        self.w = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()
        self.bias = bias
        self.asked: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.asked.append(images.clone())
        score = (images * self.w).flatten(1).sum(1) + self.bias
        return torch.stack([torch.zeros_like(score), score], dim=1)


def middle(shape: tuple[int, ...], count: int = 2) -> torch.Tensor:
    return torch.full((count, *shape), 0.5, dtype=torch.float64)


def run(
    spec: str,
    network: nn.Module,
    images: torch.Tensor,
    threat: ThreatModel,
    start: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Victim]:
    count = len(images)
    labels = torch.zeros(count, dtype=torch.int64)
    victim = Victim(network, Backprop(), range(count), micro_batch=count, start=start)
    return load_attack(spec)(victim, images, labels, threat, Rng(0, range(count))), victim


# --- the schedule --------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", [10_000, 5000, 1000, 400])
def test_windows_shrink_as_in_torchattacks(queries: int) -> None:
    peer = Peer(nn.Identity(), n_queries=queries)
    attack: Any = load_attack(f"square:queries={queries}")
    for query in range(queries):
        # On the scale of torchattacks, rounding can move a query to the place before its own.
        if int(query / queries * 10_000) != query * 10_000 // queries:
            continue
        share = peer.p_selection(query)
        expected = max(round(math.sqrt(share * 32 * 32)), 1)
        assert attack.side(query, torch.Size((1, 3, 32, 32))) == expected


def test_an_offset_leaves_out_the_beginning_of_the_schedule() -> None:
    shape = torch.Size((1, 3, 32, 32))
    late: Any = load_attack("square:queries=1000,offset=200")
    whole: Any = load_attack("square:queries=10000")
    assert late.side(0, shape) == whole.side(200, shape)
    assert late.side(1, shape) == round(math.sqrt(0.8 / 8 * 32 * 32))
    assert late.side(500, shape) == whole.side(200 + 9800 // 2, shape)
    assert late.side(999, shape) == whole.side(9990, shape)


# --- L infinity ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 4)])
def test_finds_the_optimum_of_a_linear_network(shape: tuple[int, ...]) -> None:
    network = Asked(shape, bias=-100.0)
    images, threat = middle(shape), ThreatModel("Linf", "0.1")
    found, victim = run("square:queries=1200", network, images, threat)
    # Windows reach the last row and column too, which those of other libraries never do.
    assert torch.equal(found, images + 0.1 * network.w.sign())
    assert victim.forward_passes.tolist() == [1200, 1200]
    assert not victim.backward_passes.any()


def test_starts_with_stripes_at_the_ends_of_the_ball() -> None:
    shape = (3, 8, 8)
    network = Asked(shape, bias=-100.0)
    images = torch.rand((4, *shape), generator=torch.Generator().manual_seed(1)).double()
    run("square:queries=1", network, images, ThreatModel("Linf", "0.1"))
    (first,) = network.asked
    high, low = (images + 0.1).clamp(0, 1), (images - 0.1).clamp(0, 1)
    is_high, is_low = (first - high).abs() < 1e-12, (first - low).abs() < 1e-12
    assert bool((is_high | is_low).all())
    assert bool((is_high.all(2) | is_low.all(2)).all())
    assert bool((is_high.all(2).sum((1, 2)) > 0).all() and (is_low.all(2).sum((1, 2)) > 0).all())


def test_each_query_changes_one_window_of_the_best_point() -> None:
    shape = (1, 6, 6)
    network = Asked(shape, bias=-100.0)
    images, threat = middle(shape, 1), ThreatModel("Linf", "0.1")
    attack: Any = load_attack("square:queries=400")
    run("square:queries=400", network, images, threat)
    best, wasted = network.asked[0], 0
    for query, x in enumerate(network.asked[1:]):
        changed = (x != best)[0, 0].nonzero()
        wasted += len(changed) == 0
        if len(changed):
            span = changed.amax(0) - changed.amin(0) + 1
            assert int(span.max()) <= attack.side(query, images.shape)
            ends = x[0, 0][(x != best)[0, 0]]
            assert bool(((ends - 0.5).abs() - 0.1).abs().max() < 1e-12)
            # The whole window of a channel goes to the same end.
            assert len(ends.unique()) == 1
        if float((x * network.w).sum()) > float((best * network.w).sum()):
            best = x
    # A pixel is at the drawn end half of the time; for all of eight draws this hardly ever occurs.
    assert wasted < 400 / 32


# --- L2 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [3, 5, 6, 9])
def test_bumps_are_those_of_torchattacks(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer(nn.Identity(), norm="L2")
    peer.device = torch.device("cpu")
    monkeypatch.setattr(torch, "rand", lambda *_: torch.zeros(1))
    torch.testing.assert_close(module._bump(side).float(), peer.eta(side))
    monkeypatch.setattr(torch, "rand", lambda *_: torch.ones(1))
    torch.testing.assert_close(module._bump(side).T.float(), peer.eta(side))


def test_the_step_in_l2_is_that_of_the_paper() -> None:
    shape, radius = (2, 9, 9), 0.7
    draws = torch.rand((3, 7), generator=torch.Generator().manual_seed(4)).double()
    images = middle(shape, 3)
    start = torch.randn((3, *shape), generator=torch.Generator().manual_seed(5)).double()
    start = images + 0.4 * start / start.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    found = module._Bumps(images, ThreatModel("L2", str(radius))).changed(start, 4, draws)
    side = 5
    for i in range(3):
        top, left, top2, left2 = (int(u * (9 - side + 1)) for u in draws[i, :4])
        bump = module._bump(side).numpy()
        bump = bump.T if draws[i, 4] < 0.5 else bump
        delta = (start - images)[i].numpy()
        # Algorithm 3, channel by channel.
        new = delta.copy()
        unused = radius**2 - (delta**2).sum()
        for c in range(2):
            mask = np.zeros((9, 9), bool)
            mask[top : top + side, left : left + side] = True
            mask[top2 : top2 + side, left2 : left2 + side] = True
            available = np.sqrt((delta[c][mask] ** 2).sum() + unused / 2)
            old = delta[c, top : top + side, left : left + side]
            mixed = (-1 if draws[i, 5 + c] < 0.5 else 1) * bump + old / np.sqrt((old**2).sum())
            new[c][mask] = 0
            new[c, top : top + side, left : left + side] = (
                mixed / np.sqrt((mixed**2).sum()) * available
            )
        expected = images[i].numpy() + radius * new / np.sqrt((new**2).sum())
        np.testing.assert_allclose(found[i].numpy(), expected, atol=1e-12)


def test_l2_proposals_fill_the_ball() -> None:
    shape = (3, 10, 10)
    network = Asked(shape, bias=-100.0)
    images, threat = middle(shape), ThreatModel("L2", "0.5")
    run("square:queries=60", network, images, threat)
    for x in network.asked:
        # The images that pad a pass are not proposals.
        distance = threat.distance(x[: len(images)], images)
        torch.testing.assert_close(distance, torch.full((2,), 0.5).double())


# --- what both do --------------------------------------------------------------------------------


class Smooth(nn.Module):
    """A network on which both searches are alike."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(192, 32), nn.Tanh(), nn.Linear(32, 5)
        ).double()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(6 * (images - 0.5))
        return logits


@pytest.mark.parametrize(("norm", "epsilon"), [("Linf", "0.02"), ("L2", "0.2")])
def test_gets_as_far_as_torchattacks_at_the_same_budget(norm: str, epsilon: str) -> None:
    network = Smooth().eval()
    images = torch.rand((24, 3, 8, 8), generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        labels = network(images).argmax(1)
        before = margin(network(images), labels)
    peer = Peer(network, norm=norm, eps=float(epsilon), n_queries=299)
    peer.init_hyperparam(images)
    torch.manual_seed(0)
    _, theirs = peer.attack_single_run(images, labels)
    victim = Victim(network, Backprop(), range(24), micro_batch=24)
    threat = ThreatModel(norm, epsilon)
    ours = load_attack("square:queries=300")(victim, images, labels, threat, Rng(0, range(24)))
    assert bool(threat.admits(ours, images).all())
    with torch.no_grad():
        # Both stop at a misclassification, so gains count up to there.
        mine, other = ((margin(network(x), labels).clamp(max=0) - before) for x in (ours, theirs))
    assert float(mine.mean()) > 0.97 * float(other.mean()) > 0


@pytest.mark.parametrize("norm", NORMS)
def test_stops_with_what_is_fooled_and_goes_on_at_a_tie(norm: str) -> None:
    threat, images = ThreatModel(norm, "0.1"), middle((1, 4, 4), 3)

    class Constant(nn.Module):
        """A network with logits (1, 1 + lead) for every image."""

        def __init__(self, lead: float, stochastic: bool = False) -> None:
            super().__init__()
            self.lead, self.stochastic = lead, stochastic

        def forward(self, images: torch.Tensor, keys: object = None) -> torch.Tensor:
            logits = torch.tensor([1.0, 1.0 + self.lead], dtype=images.dtype)
            return logits.expand(len(images), 2)

    labels = torch.zeros(3, dtype=torch.int64)
    attack: Any = load_attack("square:queries=9")
    for network, passes in (
        (Constant(1.0), 1),
        (Constant(0.0), 9),
        (Constant(-1.0), 9),
        (Constant(1.0, stochastic=True), 9),
    ):
        victim = Victim(network, Backprop(), range(3), micro_batch=3)
        attack(victim, images, labels, threat, Rng(0, range(3)))
        assert victim.forward_passes.tolist() == [passes] * 3


@pytest.mark.parametrize("norm", NORMS)
def test_a_network_without_numbers_is_asked_once(norm: str) -> None:
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :2] * torch.nan

    images = middle((1, 4, 4))
    threat = ThreatModel(norm, "0.1")
    found, victim = run("square:queries=5", Broken(), images, threat)
    # Logits that are not finite are an error already.
    assert bool(threat.admits(found, images).all())
    assert victim.forward_passes.tolist() == [1] * len(images)


# --- the warm start ------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_a_warm_start_begins_at_what_was_found_and_never_loses_it(norm: str) -> None:
    shape = (3, 8, 8)
    images, threat = middle(shape, 4), ThreatModel(norm, "0.1")
    network = Asked(shape, bias=-100.0)
    start = threat.random_point(images, Rng(8, range(4)))
    # A start outside the ball is brought back into it.
    start[3] += 0.5
    found, _ = run("square:queries=60,warm=yes,offset=200", network, images, threat, start)
    assert torch.equal(network.asked[0], threat.project(start, images))
    assert bool(threat.admits(found, images).all())

    def score(x: torch.Tensor) -> torch.Tensor:
        return (x * network.w).flatten(1).sum(1)

    assert bool((score(found) > score(network.asked[0])).all())
    kept, _ = run("square:queries=1,warm=yes", network, images, threat, start)
    assert torch.equal(kept, threat.project(start, images))


def test_a_warm_start_needs_an_earlier_attack() -> None:
    with pytest.raises(InputError, match="earlier attacks of a cascade"):
        run("square:warm=yes", Asked((1, 4, 4), 0.0), middle((1, 4, 4)), ThreatModel("Linf", "0.1"))


@pytest.mark.parametrize(("norm", "epsilon"), [("Linf", "0.02"), ("L2", "0.2")])
@pytest.mark.parametrize("warm", ["yes", "no"])
def test_an_image_is_searched_alike_in_any_batch(norm: str, epsilon: str, warm: str) -> None:
    network = Smooth()
    images = torch.rand((6, 3, 8, 8), generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        labels = network(images).argmax(1)
    threat = ThreatModel(norm, epsilon)
    start = threat.random_point(images, Rng(8, range(6)))
    attack: Any = load_attack(f"square:queries=130,warm={warm}")

    def found(order: list[int], size: int) -> torch.Tensor:
        out = torch.empty_like(images)
        for begin in range(0, 6, size):
            rows = order[begin : begin + size]
            victim = Victim(network, Backprop(), rows, micro_batch=size, start=start[rows])
            out[rows] = attack(victim, images[rows], labels[rows], threat, Rng(1, rows))
        return out

    whole = found([0, 1, 2, 3, 4, 5], 6)
    torch.testing.assert_close(found([5, 4, 3, 2, 1, 0], 1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(found([3, 0, 5, 4, 1, 2], 4), whole, rtol=0, atol=1e-12)


def test_settings_are_checked() -> None:
    for spec, says in (
        ("square:queries=0", "at least 1"),
        ("square:share=0", "share"),
        ("square:share=1.5", "share"),
        ("square:offset=10000", "offset"),
    ):
        with pytest.raises(InputError, match=says):
            load_attack(spec)
    with pytest.raises(InputError, match="channel, height, width"):
        run("square", Asked((5,), 0.0), middle((5,)), ThreatModel("Linf", "0.1"))
