"""APGD against torchattacks, query by query, and against its own rules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchattacks import APGD as Peer
from torchattacks import APGDT as TargetedPeer

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.losses import dlr, targeted_dlr
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError
from robustsnn.estimators.backprop import Backprop
from robustsnn.models.scoring import margin

SHAPE = (2, 6, 6)


class Recorder(nn.Module):
    """A smooth network that keeps every batch that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(72, 30), nn.Tanh(), nn.Linear(30, 30), nn.Tanh(),
            nn.Linear(30, 5),
        ).double()  # fmt: skip
        self.asked: list[torch.Tensor] = []
        self.classes = 5

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.asked.append(images.detach().clone())
        logits: torch.Tensor = self.layers(8 * (images - 0.5))
        return logits


def inputs(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    images = torch.rand((count, *SHAPE), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        labels = Recorder()(images).argmax(1)
    return images, labels


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("loss", ["cross-entropy", "dlr"])
@pytest.mark.parametrize("steps", [10, 60])
def test_asks_what_torchattacks_asks(norm, loss, steps, monkeypatch):
    images, labels = inputs()
    # This radius is exact in float32, the type that torchattacks keeps it in.
    epsilon = {"Linf": 0.015625, "L2": 0.125}[norm]
    theirs = Recorder()
    peer = Peer(
        theirs, norm=norm, eps=epsilon, steps=steps, loss={"cross-entropy": "ce"}.get(loss, loss)
    )
    torch.manual_seed(9)
    peer.attack_single_run(images, labels)

    ours = Recorder()
    attack = load_attack(f"apgd:steps={steps},loss={loss},early_exit=no")
    # The start is the same, clipped as in torchattacks; everything after it is deterministic.
    monkeypatch.setattr(type(attack), "start", lambda *_: theirs.asked[0].clone())
    victim = Victim(ours, Backprop(), range(len(images)), micro_batch=len(images))
    attack(victim, images, labels, ThreatModel(norm, repr(epsilon)), Rng(0, range(len(images))))

    assert len(ours.asked) == len(theirs.asked) == steps + 1
    # The last gradient, which no step would follow, is not computed.
    assert victim.backward_passes.tolist() == [steps] * len(images)
    assert victim.forward_passes.tolist() == [steps + 1] * len(images)
    checkpoint = int(0.22 * steps)
    with torch.no_grad():
        # Where DLR saturates at 1, its gradient is rounding; torchattacks adds 1e-12 to it.
        reached = torch.stack([dlr(ours(x), labels) for x in theirs.asked[: checkpoint + 1]])
    del ours.asked[steps + 1 :]
    clear = reached.amax(0) < 0.9 if loss == "dlr" else torch.ones(len(images)).bool()
    assert clear.any()
    for mine, other in zip(ours.asked[: checkpoint + 1], theirs.asked, strict=False):
        torch.testing.assert_close(mine[clear], other[clear], rtol=0, atol=1e-6)
    if loss == "dlr":
        # At the first checkpoint torchattacks takes 0 for the loss of the start, so that a negative
        # loss can count as risen once less than in the paper; then the runs differ.
        return
    # torchattacks compares losses in float32: near a maximum it can halve a step later.
    found, expected = (
        torch.stack([F.cross_entropy(ours(x), labels, reduction="none") for x in list(asked)])
        for asked in (ours.asked, theirs.asked)
    )
    torch.testing.assert_close(found.cummax(0)[0], expected.cummax(0)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_starts_on_the_surface(norm):
    images = torch.full((3, *SHAPE), 0.5, dtype=torch.float64)
    threat = ThreatModel(norm, "0.1")
    start = load_attack("apgd").start(images, threat, Rng(0, range(3)))
    torch.testing.assert_close(threat.distance(start, images), torch.full((3,), 0.1).double())


def test_what_is_fooled_leaves_the_batch_and_more_restarts_never_hurt():
    images, labels = inputs(20)
    threat = ThreatModel("Linf", "0.02")
    left, passes = [], []
    for spec in ("apgd:steps=20", "apgd:steps=20,restarts=3", "apgd:steps=20,early_exit=no"):
        network = Recorder()
        victim = Victim(network, Backprop(), range(20), micro_batch=20)
        found = load_attack(spec)(victim, images, labels, threat, Rng(0, range(20)))
        assert threat.admits(found, images).all()
        with torch.no_grad():
            left.append(network(found).argmax(1) == labels)
        passes.append(victim.backward_passes)
    first, again, whole = left
    assert 0 < int(first.sum()) < 20
    assert not (again & ~first).any()
    assert torch.equal(whole, first)
    assert (passes[0][~first] < 20).all() and (passes[0][first] == 20).all()
    assert (passes[2] == 20).all()


# --- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("steps", [10, 40])
def test_asks_of_each_target_what_torchattacks_asks(norm, steps, monkeypatch):
    images, labels = inputs()
    epsilon = {"Linf": 0.015625, "L2": 0.125}[norm]
    theirs = Recorder()
    peer = TargetedPeer(theirs, norm=norm, eps=epsilon, steps=steps, n_classes=5)
    runs = []
    torch.manual_seed(9)
    for rank in (2, 3, 4):
        # The likeliest class is the true one, and torchattacks counts from it.
        peer.target_class = rank
        theirs.asked.clear()
        peer.attack_single_run(images, labels)
        # torchattacks looks up the targets in every run.
        runs.append(theirs.asked[1:])

    ours = Recorder()
    attack = load_attack(f"apgd:steps={steps},loss=targeted-dlr,targets=3,early_exit=no")
    starts = iter([run[0].clone() for run in runs])
    monkeypatch.setattr(type(attack), "start", lambda *_: next(starts))
    victim = Victim(ours, Backprop(), range(len(images)), micro_batch=len(images))
    attack(victim, images, labels, ThreatModel(norm, repr(epsilon)), Rng(0, range(len(images))))

    assert len(ours.asked) == 1 + 3 * (steps + 1)
    assert victim.backward_passes.tolist() == [3 * steps] * len(images)
    assert victim.forward_passes.tolist() == [3 * (steps + 1) + 1] * len(images)
    assert torch.equal(ours.asked[0], images)
    checkpoint = int(0.22 * steps)
    with torch.no_grad():
        order = ours(images).argsort(1, descending=True)
    for rank, expected in enumerate(runs):
        mine = ours.asked[1 + rank * (steps + 1) :][: steps + 1]
        aims = order[:, 1 + rank]
        # Beyond 1 a targeted DLR can grow while the target is far ahead; it never saturates before
        # the third class is overtaken, so only what rounding decides can differ.
        for mine_x, their_x in zip(mine[: checkpoint + 1], expected, strict=False):
            torch.testing.assert_close(mine_x, their_x, rtol=0, atol=1e-6)
        with torch.no_grad():
            first, last = (targeted_dlr(ours(x), labels, aims) for x in (mine[0], mine[checkpoint]))
        assert float((last - first).mean()) > 0


class Linear(nn.Module):
    """A network of four classes, each of which depends on its own quarter of the pixels."""

    def __init__(self, bias: list[float]) -> None:
        super().__init__()
        self.bias = torch.tensor(bias, dtype=torch.float64)
        self.aims: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = images.flatten(1).unflatten(1, (4, -1)).sum(2) + self.bias
        return logits


@pytest.mark.parametrize("loss", ["targeted-dlr", "targeted-margin"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_aims_at_the_likeliest_wrong_classes_in_their_order(norm, loss, monkeypatch):
    # The true class is 1; the others are, by likelihood, 3, 0 and 2.
    network = Linear([2.0, 9.0, 1.0, 3.0])
    images = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)
    labels = torch.tensor([1, 1])
    asked = []
    real = Victim.gradient

    def gradient(self, images, labels, loss="cross-entropy", targets=None):
        asked.append(targets.tolist())
        return real(self, images, labels, loss, targets)

    monkeypatch.setattr(Victim, "gradient", gradient)
    for targets, expected in ((2, [3, 0]), (9, [3, 0, 2])):
        asked.clear()
        victim = Victim(network, Backprop(), range(2), micro_batch=2)
        spec = f"apgd:steps=30,targets={targets},loss={loss}"
        found = load_attack(spec)(
            victim, images, labels, ThreatModel(norm, "0.1"), Rng(0, range(2))
        )
        assert asked == [[aim, aim] for aim in expected for _ in range(30)]
        # The nearest class is 3, so its pixels rise and those of class 1 fall.
        parts = (found - images).flatten(1).unflatten(1, (4, -1))
        assert bool((parts[:, 3] > 0).all() and (parts[:, 1] < 0).all())
        if loss == "targeted-margin":
            # The margin does not depend on the other classes; DLR does.
            reach = 0.1 if norm == "Linf" else 0.1 / 8**0.5
            for own, sign in ((3, 1), (1, -1)):
                expected_part = torch.full_like(parts[:, own], sign * reach)
                torch.testing.assert_close(parts[:, own], expected_part, rtol=0, atol=2e-3)


def test_restarts_are_of_each_target_and_draw_anew():
    images, labels = inputs()
    network = Recorder()
    victim = Victim(network, Backprop(), range(6), micro_batch=6)
    spec = "apgd:steps=2,targets=2,restarts=2,loss=targeted-margin,early_exit=no"
    load_attack(spec)(victim, images, labels, ThreatModel("Linf", "0.01"), Rng(0, range(6)))
    starts = network.asked[1::3]
    assert len(starts) == 4
    assert all(not torch.equal(a, b) for i, a in enumerate(starts) for b in starts[:i])


# --- where runs start ----------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_warm_start_begins_at_what_was_found_and_never_loses_it(norm):
    images, labels = inputs()
    threat = ThreatModel(norm, "0.01")
    start = threat.random_point(images, Rng(7, range(6)))
    network = Recorder()
    victim = Victim(network, Backprop(), range(6), micro_batch=6, start=start)
    spec = "apgd:steps=5,restarts=2,warm=yes,early_exit=no"
    found = load_attack(spec)(victim, images, labels, threat, Rng(0, range(6)))
    torch.testing.assert_close(network.asked[0], start, rtol=0, atol=1e-12)
    # The second run starts at random.
    assert float((network.asked[6] - start).abs().amax((1, 2, 3)).min()) > 1e-4
    with torch.no_grad():
        assert bool((margin(network(found), labels) >= margin(network(start), labels)).all())
    with pytest.raises(InputError, match="earlier attacks of a cascade"):
        load_attack("apgd:warm=yes")(
            Victim(network, Backprop(), range(6)), images, labels, threat, Rng(0, range(6))
        )


@pytest.mark.parametrize(
    ("spec", "runs"),
    [
        ("apgd:steps=2,restarts=3", 3),
        ("apgd:steps=2,targets=4,loss=targeted-margin", 4),
        ("sa-pgd:steps=2,restarts=3", 3),
    ],
)
def test_estimators_forget_at_the_beginning_of_every_run(spec, runs, monkeypatch):
    images, labels = inputs()
    forgotten = []
    monkeypatch.setattr(Backprop, "forget", lambda self, rows: forgotten.append(rows.tolist()))
    victim = Victim(Recorder(), Backprop(), range(6), micro_batch=6)
    # The radius is so small that no image is fooled.
    load_attack(spec)(victim, images, labels, ThreatModel("Linf", "1e-5"), Rng(0, range(6)))
    assert forgotten == [list(range(6))] * runs


def test_settings_are_checked():
    for spec, says in (
        ("apgd:steps=0", "at least 1"),
        ("apgd:loss=hinge", "loss"),
        ("apgd:targets=-1,loss=targeted-dlr", "targets"),
        ("apgd:targets=9", "loss=targeted-dlr"),
        ("apgd:loss=targeted-dlr", "targets=9"),
    ):
        with pytest.raises(InputError, match=says):
            load_attack(spec)
