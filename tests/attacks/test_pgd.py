"""PGD on networks for which the right answer is known."""

import pytest
import torch
from torch import nn

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.estimators.backprop import Backprop
from robustsnn.estimators.make import make_estimator

THREAT = ThreatModel("Linf", "0.1")
LABELS = torch.zeros(3, dtype=torch.int64)
IMAGES = torch.full((3, 1, 2, 2), 0.5, dtype=torch.float64)


class Band(nn.Module):
    """It misclassifies only within a band of the mean pixel; the gradient always points upwards."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.flatten(1).mean(1)
        inside = ((mean > self.low) & (mean < self.high)).to(mean.dtype)
        # The step in the value has no gradient, so the slope alone gives the direction.
        return torch.stack([torch.ones_like(mean), 0.5 * mean + inside], dim=1)


def run(spec: str, network: nn.Module, seed: int = 0) -> tuple[torch.Tensor, Victim]:
    victim = Victim(network, Backprop(), range(3), micro_batch=4)
    found = load_attack(spec)(victim, IMAGES, LABELS, THREAT, Rng(seed, range(3)))
    return found, victim


def fooled(network: nn.Module, found: torch.Tensor) -> int:
    return int((network(found).argmax(1) != LABELS).sum())


@pytest.mark.parametrize("early_exit", ["yes", "no"])
def test_a_success_on_the_way_is_not_lost(early_exit: str) -> None:
    network = Band(0.535, 0.545)
    fixed = f"pgd:steps=10,step_size=0.01,random_start=no,early_exit={early_exit}"
    assert fooled(network, run(fixed, network)[0]) == 3
    # The last iterate is far beyond the band, unless the attack stopped in it.
    last = fooled(network, run(f"{fixed},iterate=last", network)[0])
    assert last == (3 if early_exit == "yes" else 0)


def test_the_last_iterate_is_scored_too() -> None:
    network = Band(0.595, 0.65)
    assert fooled(network, run("pgd:steps=10,step_size=0.01,random_start=no", network)[0]) == 3
    assert fooled(network, run("pgd:steps=9,step_size=0.01,random_start=no", network)[0]) == 0


@pytest.mark.parametrize("iterate", ["best", "last"])
@pytest.mark.parametrize("early_exit", ["yes", "no"])
def test_a_success_of_an_earlier_restart_is_not_lost(iterate: str, early_exit: str) -> None:
    # One short step from a random start: some starts end in the band and some do not.
    network = Band(0.5, 0.515)
    spec = f"pgd:steps=1,step_size=0.001,iterate={iterate},early_exit={early_exit}"
    reached = [0] * 3
    for restarts in range(1, 30):
        found, _ = run(f"{spec},restarts={restarts}", network)
        now = (network(found).argmax(1) != LABELS).int().tolist()
        assert all(a >= b for a, b in zip(now, reached, strict=True))
        reached = now
    assert sum(reached) == 3


def test_best_is_by_margin() -> None:
    class Peak(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            mean = images.flatten(1).mean(1)
            # Every image is right, with the least margin at 0.54, and steps overshoot from there.
            height = -((mean - 0.54) ** 2).detach() + 0.01 * (mean - mean.detach())
            return torch.stack([torch.ones_like(mean), height], dim=1)

    found, _ = run("pgd:steps=10,step_size=0.01,random_start=no", Peak())
    torch.testing.assert_close(found, torch.full_like(found, 0.54))


def test_the_default_step_is_two_and_a_half_epsilon_over_steps() -> None:
    default, _ = run("pgd:steps=4,random_start=no,iterate=last", Band(2, 3))
    assert torch.equal(default, IMAGES + 0.1)
    one, _ = run("pgd:steps=25,random_start=no,iterate=last", Band(2, 3))
    assert torch.equal(one, default)
    written, _ = run("pgd:steps=1,step_size=1/40,random_start=no,iterate=last", Band(2, 3))
    torch.testing.assert_close(written, IMAGES + 0.025)


def test_passes_are_what_papers_count() -> None:
    _, victim = run("pgd:steps=7,iterate=last,early_exit=no", Band(2, 3))
    assert victim.forward_passes.tolist() == victim.backward_passes.tolist() == [7] * 3
    _, victim = run("pgd:steps=7,restarts=2", Band(2, 3))
    assert victim.backward_passes.tolist() == [14] * 3
    assert victim.forward_passes.tolist() == [16] * 3
    # The image is misclassified from the start, so one pass is enough.
    _, victim = run("pgd:steps=7,restarts=2,random_start=yes", Band(0, 1))
    assert victim.forward_passes.tolist() == [1] * 3


def test_a_network_of_nan_gives_back_admitted_images() -> None:
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1) * torch.nan

    for spec in ("pgd:steps=3", "pgd:steps=3,restarts=2,iterate=last", "fgsm"):
        found, victim = run(spec, Broken())
        assert bool(THREAT.admits(found, IMAGES).all())
        assert int(victim.nonfinite_grad.min()) >= 1


def test_a_zero_gradient_leaves_the_pixels_alone() -> None:
    class Half(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            top = images[:, 0, 0].sum(1)
            return torch.stack([torch.ones_like(top), top / 10], dim=1)

    for spec in ("fgsm", "pgd:steps=3,random_start=no"):
        found, _ = run(spec, Half())
        assert torch.equal(found[:, 0, 1], IMAGES[:, 0, 1])
        torch.testing.assert_close(found[:, 0, 0], IMAGES[:, 0, 0] + 0.1)


def test_transfer_asks_only_the_substitute() -> None:
    network = Band(2, 3)
    ids = range(3)
    substitute = Victim(network, Backprop(), ids)
    victim = Victim(Band(0, 1), Backprop(), ids, substitute=substitute)
    found = load_attack("transfer:pgd:steps=3")(victim, IMAGES, LABELS, THREAT, Rng(0, ids))
    alone = load_attack("pgd:steps=3")(
        Victim(network, Backprop(), ids), IMAGES, LABELS, THREAT, Rng(0, ids)
    )
    assert torch.equal(found, alone)
    assert not victim.forward_passes.any()
    assert substitute.backward_passes.tolist() == [3] * 3


def test_restarts_share_no_memory_of_an_estimator() -> None:
    forgotten: list[list[int]] = []

    class Remembering(Backprop):
        def forget(self, rows: torch.Tensor) -> None:
            forgotten.append(rows.tolist())

    victim = Victim(Band(2, 3), Remembering(), range(3), micro_batch=4)
    attack = load_attack("pgd:steps=2,restarts=3")
    attack(victim, IMAGES, LABELS, THREAT, Rng(0, range(3)))
    assert forgotten == [[0, 1, 2]] * 3


class Flicker(nn.Module):
    """It is wrong on one draw of four, and right on the mean of many draws."""

    stochastic = True
    classes = 2

    def forward(self, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        wrong = torch.tensor([k % 4 == 0 for k in keys.tolist()]).to(images.dtype)
        mean = images.flatten(1).mean(1)
        return torch.stack([torch.ones_like(mean), 0.1 * mean + 2 * wrong], dim=1)


@pytest.mark.parametrize("spec", ["pgd:steps=1", "apgd:steps=1,loss=margin", "sa-pgd:steps=1"])
def test_the_last_iterate_is_judged_by_as_many_draws_as_the_others(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimator = make_estimator("bptt:draws=20,average=logits", Flicker())
    seen: list[int] = []

    plain = Victim.logits

    def watched(self: Victim, images: torch.Tensor, draws: int = 1) -> torch.Tensor:
        seen.append(draws)
        return plain(self, images, draws)

    monkeypatch.setattr(Victim, "logits", watched)
    victim = Victim(Flicker(), estimator, range(3), micro_batch=4)
    load_attack(spec)(victim, IMAGES, LABELS, THREAT, Rng(0, range(3)))
    assert seen == [20]
    assert Victim(Flicker(), Backprop(), range(3)).draws == 1
    assert Victim(Band(2, 3), estimator, range(3)).draws == 1
