"""APGD against torchattacks, query by query, and against its own rules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchattacks import APGD as Peer

from robustsnn.errors import InputError
from robustsnn.gradients import Backprop
from robustsnn.losses import dlr
from robustsnn.randomness import Rng
from robustsnn.registry import load_attack
from robustsnn.threat import ThreatModel
from robustsnn.victim import Victim

SHAPE = (2, 6, 6)


class Recorder(nn.Module):
    """A smooth network that keeps every batch it is asked about."""

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
    # Exact in float32, which theirs keeps it in.
    epsilon = {"Linf": 0.015625, "L2": 0.125}[norm]
    theirs = Recorder()
    peer = Peer(
        theirs, norm=norm, eps=epsilon, steps=steps, loss={"cross-entropy": "ce"}.get(loss, loss)
    )
    torch.manual_seed(9)
    peer.attack_single_run(images, labels)

    ours = Recorder()
    attack = load_attack(f"apgd:steps={steps},loss={loss},early_exit=no")
    # The same start, clipped as theirs; everything after it is deterministic.
    monkeypatch.setattr(type(attack), "start", lambda *_: theirs.asked[0].clone())
    victim = Victim(ours, Backprop(), range(len(images)), micro_batch=len(images))
    attack(victim, images, labels, ThreatModel(norm, repr(epsilon)), Rng(0, range(len(images))))

    assert len(ours.asked) == len(theirs.asked) == steps + 1
    # The last gradient, which no step follows, is not taken.
    assert victim.backward_passes.tolist() == [steps] * len(images)
    assert victim.forward_passes.tolist() == [steps + 1] * len(images)
    checkpoint = int(0.22 * steps)
    with torch.no_grad():
        # Where DLR saturates at 1 its gradient is rounding, which theirs adds 1e-12 to.
        reached = torch.stack([dlr(ours(x), labels) for x in theirs.asked[: checkpoint + 1]])
    del ours.asked[steps + 1 :]
    clear = reached.amax(0) < 0.9 if loss == "dlr" else torch.ones(len(images)).bool()
    assert clear.any()
    for mine, other in zip(ours.asked[: checkpoint + 1], theirs.asked, strict=False):
        torch.testing.assert_close(mine[clear], other[clear], rtol=0, atol=1e-6)
    if loss == "dlr":
        # At the first checkpoint theirs takes 0 for the loss of the start, so that a negative
        # loss may count as risen once less than in the paper; it then goes another way.
        return
    # Theirs compares losses in float32: near a maximum it may halve a step later.
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


def test_settings_are_checked():
    for spec, says in (("apgd:steps=0", "at least 1"), ("apgd:loss=hinge", "loss")):
        with pytest.raises(InputError, match=says):
            load_attack(spec)
