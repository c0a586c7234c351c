"""SA-PGD against its equations, written out pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.losses import cross_entropy
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError
from robustsnn.estimators.backprop import Backprop

SHAPE = (2, 4, 4)
EPSILON = {"Linf": "0.03", "L2": "0.2"}


class Recorder(nn.Module):
    """A smooth network that keeps every batch that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 5)
        ).double()
        self.asked: list[torch.Tensor] = []

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


def run(
    spec: str,
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    threat: ThreatModel,
) -> tuple[torch.Tensor, Victim]:
    count = len(images)
    victim = Victim(network, Backprop(), range(count), micro_batch=count)
    return load_attack(spec)(victim, images, labels, threat, Rng(0, range(count))), victim


def written_out(
    x: np.ndarray, image: np.ndarray, label: int, norm: str, epsilon: float, steps: int,
    widen: float = 1.0,
) -> list[np.ndarray]:  # fmt: skip
    """The iterates of one image, from the equations alone."""
    network = Recorder()
    halvings = {100: {22, 41, 57, 70, 80, 87, 93, 99}}[steps]
    m, v, eta, iterates = np.zeros_like(x), np.zeros_like(x), epsilon, [x]
    for step in range(steps):
        leaf = torch.from_numpy(x.copy())[None].requires_grad_()
        loss = cross_entropy(network(leaf), torch.tensor([label])).sum()
        g = torch.autograd.grad(loss, leaf)[0][0].numpy()
        if step in halvings:
            eta /= 2
        times, after = (widen - (widen - 1) * min(1, k / (0.6 * steps)) for k in (step, step + 1))
        long, radius = times * eta, after * epsilon
        if norm == "Linf":
            m = 0.5 * m + g / np.abs(g).mean()
            v = 0.8 * v + g**2 / (g**2).mean()
            t = np.clip(m / (np.sqrt(v) + 1e-12) * long, -long, long)
            x = np.clip(x + t, image - radius, image + radius)
        else:
            m = 0.5 * m + g / np.sqrt((g**2).sum())
            delta = x + long * m / np.sqrt((m**2).sum()) - image
            x = image + delta * min(1.0, radius / np.sqrt((delta**2).sum()))
        x = np.clip(x, 0, 1)
        iterates.append(x)
    return iterates


@pytest.mark.parametrize("widen", [1, 2.5])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_walks_as_the_equations_say(norm: str, widen: float) -> None:
    images, labels = inputs()
    network, threat = Recorder(), ThreatModel(norm, EPSILON[norm])
    spec = f"sa-pgd:steps=100,early_exit=no,widen={widen}"
    found, victim = run(spec, network, images, labels, threat)
    assert bool(threat.admits(found, images).all())
    assert len(network.asked) == 101
    assert victim.backward_passes.tolist() == [100] * 6
    assert victim.forward_passes.tolist() == [101] * 6
    for i in range(6):
        start = network.asked[0][i].numpy()
        expected = written_out(
            start, images[i].numpy(), int(labels[i]), norm, threat.radius, 100, widen
        )
        for mine, other in zip(network.asked, expected, strict=True):
            np.testing.assert_allclose(mine[i].numpy(), other, atol=1e-9)


def test_what_is_wrong_outside_the_ball_alone_is_not_proposed() -> None:
    """One pixel, whose class changes at 1.5 epsilon: the search goes there and has to come back."""

    class Far(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            score = images.flatten(1)[:, 0] - 0.65
            return torch.stack([-score, score], dim=1)

    images, labels = torch.full((2, 1, 1, 1), 0.5), torch.zeros(2, dtype=torch.int64)
    threat = ThreatModel("Linf", "0.1")
    seen: list[float] = []
    network = Far()
    network.register_forward_pre_hook(lambda _, given: seen.append(float(given[0].detach().max())))
    for steps in (1, 2, 3, 10):
        spec = f"sa-pgd:steps={steps},loss=margin,widen=3"
        found, victim = run(spec, network, images, labels, threat)
        assert bool(threat.admits(found, images).all())
        assert victim.backward_passes.tolist() == [steps] * 2
        if steps == 10:
            torch.testing.assert_close(found, torch.full_like(found, 0.6))
    assert max(seen) > 0.65


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_first_step_is_as_long_as_epsilon(norm: str) -> None:
    # From the image itself: the root of the mean square is at least the mean, so Linf takes the
    # sign; in L2 the length is epsilon.
    images, labels = inputs()
    images = 0.3 + 0.4 * images
    network, threat = Recorder(), ThreatModel(norm, EPSILON[norm])
    attack = load_attack("sa-pgd:steps=1,early_exit=no")
    gradient = Victim(network, Backprop(), range(6), 6).gradient(images, labels).gradient
    object.__setattr__(attack, "start", lambda images, *_: images.clone())
    network.asked.clear()
    victim = Victim(network, Backprop(), range(6), 6)
    attack(victim, images, labels, threat, Rng(0, range(6)))
    taken = network.asked[1] - images
    if norm == "Linf":
        torch.testing.assert_close(taken, threat.radius * gradient.sign())
    else:
        size = taken.flatten(1).norm(dim=1)
        torch.testing.assert_close(size, torch.full_like(size, threat.radius))
        assert bool(((taken * gradient).flatten(1).sum(1) > 0).all())


class Scaled(nn.Module):
    """A linear network whose gradient is as small as floats allow."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        w = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
        self.w, self.scale = w, scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = self.scale * (((images - 0.5) * self.w).flatten(1).sum(1) - 9)
        return torch.stack([torch.zeros_like(score), score], dim=1)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_neither_vanishing_nor_zero_gradients_break_it(norm: str) -> None:
    images = torch.full((4, *SHAPE), 0.5)
    labels, threat = torch.zeros(4, dtype=torch.int64), ThreatModel(norm, EPSILON[norm])
    found = {
        scale: run("sa-pgd:steps=60,loss=margin", Scaled(scale), images, labels, threat)[0]
        for scale in (1e-2, 1e-30, 0.0)
    }
    assert all(bool(threat.admits(x, images).all()) for x in found.values())
    # On a linear network both reach the best point of the ball.
    best = images + threat.radius * threat.ascent(Scaled(1).w[None])
    for scale in (1e-2, 1e-30):
        torch.testing.assert_close(found[scale], best.expand_as(images), rtol=0, atol=1e-3)
    # Without a gradient, the attack stays at the start.
    attack: Any = load_attack("sa-pgd")
    start = attack.start(images, threat, Rng(0, range(4)).stream("start-0"))
    assert torch.equal(found[0.0], start)


def test_a_zero_gradient_now_and_then_does_not_spoil_the_rest() -> None:
    class Now(nn.Module):
        """It has no gradient at every second call, and never one for the second image."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            score = images.flatten(1).sum(1) * torch.tensor([1.0, 0.0, 0.0, 0.0])[: len(images)]
            score = score * (self.calls % 2)
            return torch.stack([torch.full_like(score, 1e3), score], dim=1)

    images, labels = torch.full((2, *SHAPE), 0.5), torch.zeros(2, dtype=torch.int64)
    threat = ThreatModel("Linf", "0.1")
    found, victim = run("sa-pgd:steps=20,loss=margin", Now(), images, labels, threat)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found[0], images[0] + 0.1)
    assert victim.zero_grad.tolist() == [10, 20]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_what_is_fooled_leaves_the_batch_and_more_restarts_never_hurt(norm: str) -> None:
    images, labels = inputs(20)
    threat = ThreatModel(norm, {"Linf": "0.03", "L2": "0.12"}[norm])
    left, passes = [], []
    for spec in ("sa-pgd:steps=20", "sa-pgd:steps=20,restarts=3", "sa-pgd:steps=20,early_exit=no"):
        network = Recorder()
        found, victim = run(spec, network, images, labels, threat)
        assert bool(threat.admits(found, images).all())
        with torch.no_grad():
            left.append(network(found).argmax(1) == labels)
        passes.append(victim.backward_passes)
    first, again, whole = left
    assert 0 < int(first.sum()) < 20
    assert not bool((again & ~first).any())
    assert torch.equal(whole, first)
    assert bool((passes[0][~first] < 20).all() and (passes[0][first] == 20).all())
    assert bool((passes[2] == 20).all())


def test_settings_are_checked() -> None:
    for spec, says in (("sa-pgd:steps=0", "at least 1"), ("sa-pgd:loss=hinge", "loss")):
        with pytest.raises(InputError, match=says):
            load_attack(spec)
