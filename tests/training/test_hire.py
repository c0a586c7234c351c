"""HIRE against independently written loops, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.training.hire import hire_update
from robustsnn.training.recipe import Hire

EPSILON = 8 / 255


def network(seed: int = 0, time_steps: int = 4, dropout: float = 0.2) -> Network:
    torch.manual_seed(seed)
    made = Network(
        NetworkConfig(
            architecture="vgg5",
            kind="snn",
            classes=5,
            image=(2, 8, 8),
            widths=(4, 6, 6),
            classifier=(12,),
            mean=(0.4, 0.5),
            std=(0.3, 0.2),
            time_steps=time_steps,
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


def batches(n: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        (
            torch.rand(6, 2, 8, 8, generator=generator),
            torch.randint(0, 5, (6,), generator=generator),
        )
        for _ in range(n)
    ]


def assert_same(a: Network, b: Network) -> None:
    theirs = b.state_dict()
    for name, value in a.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def plain_loop(net: Network, steps: int, repeats: int) -> None:
    """Traditional training written out: reset, forward, cross-entropy, step, clamp."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    torch.manual_seed(3)
    for images, labels in batches():
        for _ in range(repeats):
            optimizer.zero_grad()
            net.time_steps = steps
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
            with torch.no_grad():
                for layer in net.spiking_layers().values():
                    layer.threshold.clamp_(1e-3)
                    layer.leak.clamp_(0.0, 1.0)


def hire_loop(net: Network, settings: Hire) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    torch.manual_seed(3)
    for images, labels in batches():
        hire_update(net, optimizer, images, labels, settings)


@pytest.mark.parametrize(("periods", "steps"), [(1, 4), (2, 2)])
def test_without_noise_hire_is_plain_updates_over_a_period(periods, steps):
    ours, theirs = network(), network()
    before = copy.deepcopy(ours)
    hire_loop(ours, Hire(periods=periods, step="0", bound="0"))
    plain_loop(theirs, steps, periods)
    theirs.time_steps = ours.time_steps
    assert_same(ours, theirs)
    assert any(not torch.equal(v, before.state_dict()[k]) for k, v in ours.state_dict().items())


@pytest.mark.parametrize("order", ["free", "updated"])
@pytest.mark.parametrize("carry", ["reset", "detach"])
def test_with_noise_hire_follows_its_equations(order, carry):
    """Transcribed from Kundu et al., ICCV 2021: sign step, clip to the bound, clip to [0, 1]."""
    ours, theirs = network(dropout=0.0), network(dropout=0.0)
    hire_loop(ours, Hire(periods=2, step="8/255", bound="6/255", order=order, carry=carry))
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    for images, labels in batches():
        clean = images.clone().requires_grad_()
        logits, state = theirs.run(clean, steps=2)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs.clamp_()
        gradient = clean.grad
        if order == "updated":
            again = images.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(
                F.cross_entropy(theirs.run(again, steps=2)[0], labels), again
            )
        noise = torch.clamp(EPSILON * torch.sign(gradient), -6 / 255, 6 / 255)
        noisy = torch.clamp(images + noise, 0, 1)
        start = {k: v.detach() for k, v in state.items()} if carry == "detach" else None
        optimizer.zero_grad()
        F.cross_entropy(theirs.run(noisy, steps=2, state=start)[0], labels).backward()
        optimizer.step()
        theirs.clamp_()
    assert_same(ours, theirs)


def test_the_noise_changes_the_result():
    quiet, noisy = network(), network()
    hire_loop(quiet, Hire(periods=2, step="0", bound="0"))
    hire_loop(noisy, Hire(periods=2, step="8/255", bound="8/255"))
    assert any(not torch.equal(v, noisy.state_dict()[k]) for k, v in quiet.state_dict().items())


def shown(settings: Hire, monkeypatch: pytest.MonkeyPatch, periods: int = 2) -> list[torch.Tensor]:
    """What each period saw beyond the image, which is grey enough that nothing is clipped."""
    net = network(dropout=0.0)
    images = 0.4 + 0.2 * torch.rand(6, 2, 8, 8, generator=torch.Generator().manual_seed(5))
    seen: list[torch.Tensor] = []
    real = Network.run

    def noted(self: Network, x: torch.Tensor, **options: object) -> object:
        seen.append(x.detach() - images)
        return real(self, x, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Network, "run", noted)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    hire_update(net, optimizer, images, torch.arange(6) % 5, settings)
    assert len(seen) == periods
    return seen


def test_the_control_without_noise_is_plain_updates_over_a_period():
    ours, theirs = network(), network()
    hire_loop(ours, Hire(periods=2, step="8/255", bound="8/255", noise="none"))
    plain_loop(theirs, 2, 2)
    theirs.time_steps = ours.time_steps
    assert_same(ours, theirs)


@pytest.mark.parametrize(("kind", "order"), [("gaussian-linf", float("inf")), ("gaussian-l2", 2.0)])
def test_gaussian_controls_are_as_large_as_crafted_noise(monkeypatch, kind, order):
    """After one period, crafted noise is a step in every pixel whose gradient is not zero."""
    step = Hire(periods=2, step="8/255", bound="8/255")
    crafted = shown(step, monkeypatch)[1]
    noise = shown(step.model_copy(update={"noise": kind}), monkeypatch)[1]
    sizes = [torch.linalg.vector_norm(v.flatten(1), order, dim=1) for v in (noise, crafted)]
    torch.testing.assert_close(*sizes, atol=1e-5, rtol=1e-3)
    # It is normal noise: a third of it lies beyond a standard deviation, and it has no direction.
    z = noise.flatten(1) / noise.flatten(1).std(1, keepdim=True)
    assert 0.25 < (z.abs() > 1).float().mean() < 0.39
    cosine = torch.cosine_similarity(noise.flatten(1), crafted.flatten(1))
    assert cosine.abs().max() < 0.35


def test_controls_grow_with_the_noise_that_would_have_been_crafted(monkeypatch):
    settings = Hire(periods=4, step="4/255", bound="100/255", noise="gaussian-linf")
    first, *later = shown(settings, monkeypatch, periods=4)
    assert first.abs().max() < 1e-6
    largest = [float(x.abs().max()) for x in later]
    assert largest[0] == pytest.approx(4 / 255, rel=1e-3)
    assert largest[1] > 1.5 * largest[0] and largest[2] > largest[1]
