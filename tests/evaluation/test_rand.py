"""Networks that draw: judged by fresh draws, never by the ones that were attacked."""

import numpy as np
import pytest
import torch
from torch import nn

from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import derive
from robustsnn.estimators.backprop import Backprop
from robustsnn.estimators.make import make_estimator
from robustsnn.evaluation.run import evaluate
from robustsnn.evaluation.suites import Suite
from robustsnn.models.scoring import verdict
from robustsnn.snn.draws import mean_of_draws


class Coin(nn.Module):
    """Right with a given chance on every draw, whatever the image."""

    stochastic = True
    classes = 3

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance
        self.seen: set[int] = set()

    def forward(self, images: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        assert keys is not None
        self.seen |= set(keys.tolist())
        draws = [np.random.default_rng(k).random() < self.chance for k in keys.tolist()]
        right = torch.tensor([[2.0, 0.0, 1.0] if hit else [0.0, 2.0, 1.0] for hit in draws])
        return right.to(images) + 0 * images.sum()


def shown(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return images, torch.zeros(count, dtype=torch.int64)


def test_a_vote_is_counted_over_draws_that_differ():
    network, images = Coin(0.7), torch.rand(40, 1, 4, 4)
    labels = torch.zeros(40, dtype=torch.int64)
    said = verdict(network, images, labels, range(40), 8, seed=1, draws=10)
    assert len(network.seen) == 400
    by_hand = torch.stack(
        [
            verdict(Once(network, draw), images, labels, range(40), 8, seed=1).right
            for draw in range(10)
        ]
    ).mean(0)
    torch.testing.assert_close(said.right, by_hand)
    assert 0.6 < float(said.right.mean()) < 0.8
    assert torch.equal(said.predictions == 0, said.right >= 0.5)
    # A tie of votes is an error; else the sign is the vote's.
    assert torch.equal(said.margins < 0, said.right > 0.5)
    assert torch.equal(said.margins == 0, said.right == 0.5)


class Once(nn.Module):
    """One of the draws of another network, as if it were the only one."""

    stochastic = True

    def __init__(self, network: nn.Module, draw: int) -> None:
        super().__init__()
        self.network, self.draw = network, draw

    def forward(self, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        plain = {derive(1, "verdict", i): i for i in range(40)}
        which = (self.draw,) if self.draw else ()
        keys = torch.tensor([derive(1, "verdict", plain[k], *which) for k in keys.tolist()])
        logits: torch.Tensor = self.network(images, keys)
        return logits


def test_a_deterministic_network_is_asked_once():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    images, labels = torch.rand(5, 1, 4, 4), torch.zeros(5, dtype=torch.int64)
    once = verdict(linear, images, labels, range(5), 8)
    ten = verdict(linear, images, labels, range(5), 8, draws=10)
    assert torch.equal(once.margins, ten.margins)
    assert torch.equal(once.right, (once.predictions == labels).double())


@pytest.mark.parametrize("cascade", [True, False])
def test_a_lucky_draw_of_hundreds_breaks_nothing(cascade):
    # Nothing that an attacker does can move this network: it errs on one draw of ten.
    suite = Suite.model_validate(
        {
            "name": "lucky",
            "epsilon": "8/255",
            "cascade": cascade,
            "draws": 10,
            "entries": [
                {"label": "PGD", "attack": "pgd:steps=30"},
                {"label": "PGD again", "attack": "pgd:steps=30,loss=margin"},
            ],
        }
    )
    found = evaluate(Coin(0.9), shown(60), suite)
    results = found.results.set_index("attack")
    assert float(results.loc["worst-case", "accuracy"]) > 0.95
    clean = results.loc["clean"]
    assert float(clean["draws_accuracy"]) == pytest.approx(0.9, abs=0.04)
    assert float(results.loc["pgd", "draws_accuracy"]) == pytest.approx(0.9, abs=0.04)
    assert set(found.records["draws_right"].round(6)) <= {i / 10 for i in range(11)}


def test_draws_held_in_common_tell_proposals_apart():
    network = Coin(0.5)
    victim = Victim(network, Backprop(), range(6), micro_batch=4, seed=2)
    images = torch.rand(6, 1, 4, 4)
    first = victim.logits(images, draws=5)
    assert torch.equal(victim.logits(images, draws=5), first)
    assert victim.forward_passes.tolist() == [10] * 6
    assert torch.equal(victim.select([4]).logits(images[[4]], draws=5), first[[4]])
    # Single passes go on drawing anew.
    single = torch.stack([victim.logits(images) for _ in range(8)])
    assert len(single.unique(dim=0)) > 1


class Mute(nn.Module):
    """On every draw right, wrong or without numbers, by the draw's number."""

    stochastic = True
    classes = 3

    def __init__(self, said: str, seed: int) -> None:
        super().__init__()
        self.by_key = {
            derive(seed, "verdict", 0, *([draw] if draw else [])): answer
            for draw, answer in enumerate(said)
        }

    def forward(self, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        rows = {"r": [2.0, 0.0, 0.0], "w": [0.0, 2.0, 0.0], "-": [torch.nan] * 3}
        return torch.tensor([rows[self.by_key[k]] for k in keys.tolist()]).to(images)


@pytest.mark.parametrize(
    ("said", "prediction", "right"),
    [
        ("rrr-----ww", -1, False),
        ("rrrrrr----", 0, True),
        ("rrr------w", -1, False),
        ("rrrr--wwww", 0, False),
        ("rrrrr-----", 0, False),
        ("----------", -1, False),
    ],
)
def test_no_prediction_is_a_vote_against(said, prediction, right):
    """A vote that the label leads among numbers only, or ties, is not one for it."""
    images, labels = torch.rand(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64)
    found = verdict(Mute(said, 3), images, labels, [0], 4, seed=3, draws=len(said))
    assert found.predictions.tolist() == [prediction]
    assert bool(found.margins[0] < 0) == right
    assert float(found.right[0]) == said.count("r") / len(said)


class Gappy(nn.Module):
    """Linear, but off the 8-bit grid one draw in so many has no numbers."""

    stochastic = True
    classes = 3

    def __init__(self, chance: float, dtype: torch.dtype = torch.float32, size: float = 1) -> None:
        super().__init__()
        weights = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
        self.weights, self.chance, self.dtype, self.size = weights, chance, dtype, size

    def forward(self, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        logits = self.size * ((images.flatten(1) - 0.5) @ self.weights.to(images))
        off = ((255 * images - (255 * images).round()).abs() > 1e-3).flatten(1).any(1)
        drawn = torch.tensor([derive("gap", k) / 2**63 < self.chance for k in keys.tolist()])
        return torch.where((off & drawn)[:, None], torch.nan, logits).to(self.dtype)


@pytest.mark.parametrize(
    "attack", ["pgd:steps=30,loss=margin", "apgd:steps=30", "sa-pgd:steps=30", "fmn:steps=30"]
)
def test_a_draw_without_numbers_now_and_then_disarms_no_attack(attack):
    """One draw of twenty is no error of a vote, nor may it hide the gradient of the others."""
    images = (255 * shown(48)[0]).round() / 255
    labels = Gappy(0)(images, torch.zeros(48)).argmax(1)
    suite = {
        "name": "gaps",
        "epsilon": "0.04",
        "draws": 10,
        "entries": [{"label": "It", "attack": attack, "estimator": "bptt:draws=20"}],
    }
    left = [
        evaluate(Gappy(chance), (images, labels), Suite.model_validate(suite))
        .results.set_index("attack")
        .loc["worst-case", "accuracy"]
        for chance in (0.0, 0.05)
    ]
    assert 0.1 < float(left[0]) < 0.9
    assert float(left[1]) == pytest.approx(float(left[0]), abs=0.03)


def test_a_mean_over_draws_is_one_of_numbers():
    logits = torch.tensor([[[1.0, 3.0]], [[torch.nan, 0.0]], [[3.0, 5.0]]])
    assert mean_of_draws(logits).tolist() == [[2.0, 4.0]]
    assert bool(mean_of_draws(logits[:2]).isnan().all())
    # Their sum is beyond what half precision holds.
    large = torch.full((10, 1, 2), 7000.0, dtype=torch.float16)
    assert mean_of_draws(large).tolist() == [[7000.0, 7000.0]]


def test_a_gradient_without_numbers_is_counted_and_takes_nothing_from_the_others():
    images = shown(6)[0]
    labels = Gappy(0)(images, torch.zeros(6)).argmax(1)
    for average in ("logits", "gradients"):
        text = f"bptt:draws=20,average={average}"
        plain = Victim(Gappy(0), make_estimator(text, Gappy(0)), range(6), micro_batch=40)
        gappy = Victim(Broken(0.1), make_estimator(text, Broken(0.1)), range(6), micro_batch=40)
        want = plain.gradient(images, labels, "margin").gradient
        got = gappy.gradient(images, labels, "margin").gradient
        cosine = torch.cosine_similarity(want.flatten(1), got.flatten(1))
        torch.testing.assert_close(cosine, torch.ones(6))
        assert 0 < int(gappy.nonfinite_grad.sum()) < 60


class Broken(Gappy):
    """Without numbers on the way back, too."""

    def forward(self, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        drawn = torch.tensor([derive("gap", k) / 2**63 < self.chance for k in keys.tolist()])
        scale = torch.where(drawn, torch.nan, 1.0)[:, None]
        return (images.flatten(1) - 0.5) @ self.weights * scale
