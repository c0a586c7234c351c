"""FMN and HopSkipJump against foolbox itself, and against distances known in closed form."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError
from robustsnn.estimators.backprop import Backprop
from robustsnn.models.scoring import margin

NORMS = ["Linf", "L2"]
needs_foolbox = pytest.mark.skipif(
    importlib.util.find_spec("foolbox") is None, reason="foolbox is not installed"
)
SHAPE = (2, 4, 4)
#: A ball that holds everything that is found.
WIDE = {"Linf": "1", "L2": "100"}


def foolbox() -> Any:
    """The library, whose import warns about its own imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox.attacks
    return foolbox


class Asked(nn.Module):
    """A network that keeps every batch that it is called with."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.asked: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.asked.append(images.detach().clone())
        logits: torch.Tensor = self.inner(images)
        return logits


class Linear(nn.Module):
    """A network of two classes with logits `(0, w.x + b)`, whose boundary is known exactly."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.w = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
        self.b = -0.5 * self.w.sum()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = (images * self.w).flatten(1).sum(1) + self.b
        return torch.stack([torch.zeros_like(score), score], dim=1)

    def inputs(self, count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(4)
        x = 0.4 + 0.2 * torch.rand((count, *SHAPE), generator=generator, dtype=torch.float64)
        return x, self(x).argmax(1)

    def distances(self, images: torch.Tensor, norm: str) -> torch.Tensor:
        score = (images * self.w).flatten(1).sum(1) + self.b
        return score.abs() / (self.w.abs().sum() if norm == "Linf" else self.w.norm())


def smooth() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 5)).double()


def inputs(network: nn.Module, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    images = torch.rand((count, *SHAPE), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        return images, network(images).argmax(1)


def run(
    spec: str,
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    threat: ThreatModel,
    start: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Victim]:
    count = len(images)
    victim = Victim(network, Backprop(), range(count), micro_batch=count, start=start)
    return load_attack(spec)(victim, images, labels, threat, Rng(0, range(count))), victim


# --- FMN -----------------------------------------------------------------------------------------


@needs_foolbox
@pytest.mark.parametrize("norm", NORMS)
def test_fmn_asks_what_foolbox_asks(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = inputs(smooth())
    peer = getattr(foolbox().attacks, {"Linf": "LInfFMNAttack", "L2": "L2FMNAttack"}[norm])
    if norm == "L2":
        # foolbox divides a size by itself, so that it never projects.
        def project(self, x, x0, epsilon):
            delta = (x - x0).raw
            size = delta.flatten(1).norm(dim=1)
            factor = (epsilon.raw / size.clamp_min(1e-300)).clamp(max=1)
            return x0 + type(x)(delta * factor.reshape(-1, 1, 1, 1))

        monkeypatch.setattr(peer, "project", project)
    # In the published form, the ball need not grow until something is found.
    module = importlib.import_module("robustsnn.attacks.fmn")
    monkeypatch.setattr(module, "_searching", lambda linear, wider: linear)
    theirs, ours = Asked(smooth()), Asked(smooth())
    model = foolbox().PyTorchModel(theirs.eval(), bounds=(0, 1), device="cpu")
    expected = peer(steps=60).run(model, images, foolbox().Misclassification(labels))
    threat = ThreatModel(norm, WIDE[norm])
    found, victim = run("fmn:steps=60", ours, images, labels, threat)
    # foolbox never calls the network with the last point.
    assert len(theirs.asked) == 60
    assert victim.forward_passes.tolist() == [61] * 6
    assert victim.backward_passes.tolist() == [60] * 6
    clear = torch.ones(6, dtype=torch.bool)
    for mine, other in zip(ours.asked[:60], theirs.asked, strict=True):
        torch.testing.assert_close(mine[clear], other[clear], rtol=0, atol=1e-9)
        with torch.no_grad():
            # On the boundary itself, rounding decides the direction.
            clear &= margin(smooth()(other), labels).abs() > 1e-9
    assert int(clear.sum()) >= 4
    # Of two iterates that are equally near, either may be kept.
    near, other = threat.distance(found, images), threat.distance(expected, images)
    last = threat.distance(ours.asked[60], images)
    before = near != last
    assert bool((near[~before] < other[~before]).all())
    clear &= before
    torch.testing.assert_close(near[clear], other[clear], rtol=1e-5, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_fmn_finds_the_least_distance_to_a_plane(norm: str) -> None:
    network = Linear()
    images, labels = network.inputs()
    threat = ThreatModel(norm, WIDE[norm])
    found, _ = run("fmn:steps=200", network, images, labels, threat)
    assert bool((network(found).argmax(1) != labels).all())
    least = network.distances(images, norm)
    ratio = threat.distance(found, images) / least
    assert float(ratio.min()) >= 1
    assert float(ratio.max()) < 1.05


@pytest.mark.parametrize("norm", NORMS)
def test_fmn_judges_where_its_last_step_ends(norm: str) -> None:
    class Bent(nn.Module):
        """A margin that rises faster than its slope at the image, so that one step is enough."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            up = (images - 0.5).flatten(1).mean(1)
            return torch.stack([torch.ones_like(up), 10 * up + 100 * up.square()], dim=1)

    images = torch.full((3, *SHAPE), 0.5, dtype=torch.float64)
    labels = torch.zeros(3, dtype=torch.int64)
    threat = ThreatModel(norm, WIDE[norm])
    found, victim = run("fmn:steps=1", Bent(), images, labels, threat)
    assert Bent()(found).argmax(1).tolist() == [1] * 3
    assert victim.forward_passes.tolist() == [2] * 3


@pytest.mark.parametrize("norm", NORMS)
def test_fmn_gets_beyond_a_tie(norm: str) -> None:
    class Counts(nn.Module):
        """Logits that are whole numbers, like counted spikes, with the gradient of the sum."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            score = images.flatten(1).sum(1) - 18
            score = score + (score.round() - score).detach()
            return torch.stack([torch.zeros_like(score), score], dim=1)

    images = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    labels = torch.zeros(1, dtype=torch.int64)
    # The sum of the pixels has to rise from 16 to 18.5.
    least = 2.5 / (32 if norm == "Linf" else 32**0.5)
    threat = ThreatModel(norm, WIDE[norm])
    found, _ = run("fmn", Counts(), images, labels, threat)
    assert least <= float(threat.distance(found, images)) < 1.05 * least


@pytest.mark.parametrize("norm", NORMS)
def test_fmn_survives_a_zero_gradient_at_a_tie(norm: str) -> None:
    class Flat(nn.Module):
        """The first image is tied and has no gradient, and the second has a gradient."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            score = (images.flatten(1).sum(1) - 17.0) * torch.tensor([0.0, 1.0, 1.0, 1.0])
            return torch.stack([torch.zeros_like(score), score], dim=1)

    images = torch.full((2, *SHAPE), 0.5)
    labels = torch.zeros(2, dtype=torch.int64)
    found, victim = run("fmn:steps=30", Flat(), images, labels, ThreatModel(norm, WIDE[norm]))
    assert torch.equal(found[0], images[0])
    assert float(found[1].sum()) > 17
    assert victim.zero_grad.tolist() == [30, 0]


def test_fmn_settings_are_checked() -> None:
    for spec, says in (
        ("fmn:steps=0", "steps"),
        ("fmn:step_size=0", "step_size"),
        ("fmn:change=1", "change"),
    ):
        with pytest.raises(InputError, match=says):
            load_attack(spec)


# --- both ----------------------------------------------------------------------------------------


@needs_foolbox
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("spec", ["fmn", "hop-skip-jump:queries=700"])
def test_what_lies_outside_the_ball_is_not_proposed(spec: str, norm: str) -> None:
    network = Linear()
    images, labels = network.inputs()
    least = network.distances(images, norm)
    radius = float(least.median())
    found, _ = run(spec, network, images, labels, ThreatModel(norm, repr(1.4 * radius)))
    outside = least > 1.4 * radius
    assert bool(outside.any() and not outside.all())
    assert torch.equal(found[outside], images[outside])
    near = least <= radius
    assert bool((network(found[near]).argmax(1) != labels[near]).all())


@needs_foolbox
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("spec", ["fmn", "hop-skip-jump:queries=300"])
def test_what_is_wrong_already_stays_where_it_is(spec: str, norm: str) -> None:
    network = Linear()
    images, labels = network.inputs()
    found, _ = run(spec, network, images, 1 - labels, ThreatModel(norm, WIDE[norm]))
    distance = ThreatModel(norm, WIDE[norm]).distance(found, images)
    # HopSkipJump never calls the network with the image itself, but comes close.
    assert float(distance.max()) < (1e-12 if spec == "fmn" else 0.05)


# --- HopSkipJump ---------------------------------------------------------------------------------


@needs_foolbox
@pytest.mark.parametrize("norm", NORMS)
def test_hop_skip_jump_asks_what_foolbox_asks(norm: str) -> None:
    network = smooth()
    images, labels = inputs(network, 2)
    ours, theirs = Asked(smooth()), Asked(smooth())
    threat = ThreatModel(norm, WIDE[norm])
    spec = "hop-skip-jump:queries=700,draws=30,width=0.3"
    found, _ = run(spec, ours, images, labels, threat)
    model = foolbox().PyTorchModel(theirs.eval(), bounds=(0, 1), device="cpu")
    noise = foolbox().attacks.LinearSearchBlendedUniformNoiseAttack(directions=100, steps=50)
    gamma = {"L2": 0.3 * 32, "Linf": 0.3 * 32**1.5}[norm]
    for i in range(2):
        peer = foolbox().attacks.HopSkipJumpAttack(
            noise, steps=6, initial_gradient_eval_steps=30, gamma=gamma, constraint=norm.lower()
        )
        theirs.asked.clear()
        image, label = images[i : i + 1], labels[i : i + 1]
        with torch.random.fork_rng():
            torch.manual_seed(Rng(0, [i]).derive("hop-skip-jump"))
            peer.run(model, image, foolbox().Misclassification(label))
        # Only the first image of each pass counts; the others pad it.
        mine = [x[:1] for x in ours.asked[700 * i : 700 * (i + 1)]]
        common = min(len(mine), len(theirs.asked))
        assert common > 300
        for x, other in zip(mine[:common], theirs.asked[:common], strict=True):
            torch.testing.assert_close(x, other, rtol=0, atol=1e-6)
        # The nearest of all points that the network was called with and that fooled it.
        distance = threat.distance
        with torch.no_grad():
            near = min(
                float(distance(x, image)) for x in mine if network(x).argmax() != label.item()
            )
        assert float(distance(found[i : i + 1], image)) == near


@needs_foolbox
@pytest.mark.parametrize("norm", NORMS)
def test_hop_skip_jump_comes_close_to_a_plane(norm: str) -> None:
    network = Linear()
    images, labels = network.inputs(3)
    threat = ThreatModel(norm, WIDE[norm])
    found, victim = run("hop-skip-jump:queries=1500", network, images, labels, threat)
    ratio = threat.distance(found, images) / network.distances(images, norm)
    assert 1 <= float(ratio.min()) and float(ratio.max()) < 1.15
    assert victim.forward_passes.tolist() == [1500] * 3
    assert not victim.backward_passes.any()


@needs_foolbox
@pytest.mark.parametrize("norm", NORMS)
def test_hop_skip_jump_starts_from_what_was_found(norm: str) -> None:
    network = Linear()
    images, labels = network.inputs()
    threat = ThreatModel(norm, WIDE[norm])
    away = torch.where(labels.reshape(-1, 1, 1, 1) == 0, 1.0, -1.0) * network.w.sign()
    start = (images + 0.45 * away).clamp(0, 1)
    assert bool((network(start).argmax(1) != labels).all())
    # The last start does not fool the network, so noise is blended into that image.
    start[-1] = images[-1]
    asked = Asked(network)
    found, _ = run("hop-skip-jump:queries=200", asked, images, labels, threat, start)
    for i in range(5):
        assert torch.equal(asked.asked[200 * i][0], start[i])
    assert bool((network(found).argmax(1) != labels).all())
    closer = threat.distance(found, images) < threat.distance(start, images)
    assert bool(closer[:-1].all())


@needs_foolbox
def test_hop_skip_jump_leaves_alone_what_it_finds_no_start_for() -> None:
    class Sure(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            value = images.flatten(1).mean(1)
            return torch.stack([torch.ones_like(value), 0 * value], dim=1)

    images, labels = torch.full((2, *SHAPE), 0.5), torch.zeros(2, dtype=torch.int64)
    found, victim = run("hop-skip-jump", Sure(), images, labels, ThreatModel("Linf", "1"))
    assert torch.equal(found, images)
    assert int(victim.forward_passes.max()) < 200


@needs_foolbox
def test_hop_skip_jump_says_what_it_cannot_do() -> None:
    class Stochastic(nn.Module):
        stochastic = True

    images, labels = torch.full((2, *SHAPE), 0.5), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InputError, match="stochastic"):
        run("hop-skip-jump", Stochastic(), images, labels, ThreatModel("Linf", "1"))
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        run("hop-skip-jump", smooth(), images, labels, ThreatModel("Linf", "1", low=-1.0))
    for spec, says in (
        ("hop-skip-jump:queries=0", "queries"),
        ("hop-skip-jump:draws=0", "draws"),
        ("hop-skip-jump:width=0", "width"),
    ):
        with pytest.raises(InputError, match=says):
            load_attack(spec)


def test_a_missing_foolbox_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(InputError, match=r"foolbox .* pip install -e '\.\[peers\]'"):
        load_attack("hop-skip-jump")
