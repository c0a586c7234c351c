"""Surrogates in the wrong place, on layers whose place is known, and scores that say too little."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsnn.adversary.threat import ThreatModel
from robustsnn.diagnosis.finding import Finding
from robustsnn.diagnosis.probe.directions import Along, along, blind_score, fidelity
from robustsnn.diagnosis.probe.gradients import take
from robustsnn.diagnosis.probe.inner import inner_reading
from robustsnn.diagnosis.probe.placement import FAR, placement
from robustsnn.diagnosis.probe.specimen import Specimen
from robustsnn.snn.homeostasis import HomeostaticLIF
from robustsnn.snn.neuron import LIF
from robustsnn.snn.surrogate import Arctan, Rectangle, StraightThrough, Surrogate, Triangle

STEPS, NEURONS = 3, 12


class Spiking(nn.Module):
    """One layer of neurons between two linear ones; `named` tells estimators of it."""

    def __init__(self, neurons: nn.Module, named: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front, self.neurons, self.back = nn.Linear(16, NEURONS), neurons, nn.Linear(NEURONS, 4)
        self.front.weight.data *= 4
        if named:
            self.spiking_layers = lambda: {"neurons": self.neurons}
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        current = self.front(images.flatten(1) - 0.5)[None]
        logits: Tensor = self.back(self.neurons(current, STEPS)[0].sum(0))
        return logits


def adaptive(away: float, place: str, surrogate: Surrogate | None = None) -> HomeostaticLIF:
    """A layer whose thresholds begin `away` above where they are from the first step on."""
    made = HomeostaticLIF(1.0, 0.8, STEPS, (NEURONS,), surrogate or Triangle(0.5), place)  # type: ignore[arg-type]
    made.follows.data.fill_(1e-3)
    made.signature[0] = away / 1e-3
    return made


class Lying(LIF):
    """A layer that tells estimators another threshold than the one it spikes at."""

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        import dataclasses

        found = super().trace(*args, **kwargs)
        return dataclasses.replace(found, threshold=2 * found.threshold)


def placed(network: nn.Module) -> Finding | None:
    images = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(8, dtype=torch.int64)
    found = placement(Specimen(network, images, labels, tuple(range(8)), 8, 0))
    return found[0] if found else None


@pytest.mark.parametrize("surrogate", [Triangle(1.0), Triangle(0.2), Arctan(0.1), Rectangle(0.3)])
@pytest.mark.parametrize("threshold", [0.2, 1.0, 5.0])
def test_a_surrogate_in_its_place_is_not_flagged(surrogate, threshold):
    found = placed(Spiking(LIF(threshold, 0.9, surrogate)))
    assert found is not None and not found.flagged and found.evidence <= 0.1
    assert found.details["against the threshold"] == {"neurons": 0.0}


@pytest.mark.parametrize("away", [0.4, 0.8, -0.6])
def test_the_distance_is_that_between_peak_and_flip(away):
    found = placed(Spiking(adaptive(away, "initial")))
    assert found is not None and found.flagged and found.severity == "caution"
    for distance in found.details["distance by layer and step"]["neurons"].values():
        # The grid is a tenth of the threshold wide, and the membrane moves thresholds a little.
        assert distance == pytest.approx(abs(away), abs=0.11)
    exact = placed(Spiking(adaptive(away, "live")))
    assert exact is not None and not exact.flagged and exact.evidence < FAR


def test_where_no_estimator_reaches_the_neurons_the_number_is_not_believed():
    found = placed(Spiking(adaptive(0.8, "initial"), named=False))
    assert found is not None and found.flagged and found.severity == "invalid"


def test_a_threshold_that_estimators_are_told_wrongly_is_flagged():
    found = placed(Spiking(Lying(1.0, 0.9, Triangle(0.5))))
    assert found is not None and found.flagged and found.severity == "invalid"
    assert found.details["against the threshold"]["neurons"] > 0.05
    assert found.evidence < FAR and "against the threshold" in found.sentence


def test_what_has_no_peak_and_what_does_not_spike_is_left_out():
    found = placed(Spiking(LIF(1.0, 0.9, StraightThrough())))
    assert found is None or not found.flagged
    assert placed(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).eval()) is None


# --- blind scores -------------------------------------------------------------------------------

THREAT = ThreatModel("Linf", "0.05")


class Score(nn.Module):
    """A linear score of four classes, and what is told of it."""

    def __init__(self, told: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.told = nn.Linear(16, 4), told
        self.inner.bias.data[0] += 2
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        z: Tensor = self.inner(images.flatten(1) - 0.5)
        one = F.one_hot(z.argmax(1), 4).to(z)
        if self.told == "all":
            return z
        if self.told == "winner":
            return z * one
        if self.told == "steps":
            return z + ((20 * z).round() / 20 - z).detach()
        return z + (one + 1e-6 * torch.arange(4) - z).detach()


def seen(network: nn.Module) -> tuple[Along, Specimen]:
    images = torch.rand(32, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = network(images).argmax(1)
    specimen = Specimen(network, images, labels, tuple(range(32)), 32, 0)
    return along(specimen, take(specimen, THREAT), THREAT, 64), specimen


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("vote", "of random directions"),
        ("winner", "of the logits change"),
        ("steps", "values"),
        ("all", ""),
    ],
)
def test_a_score_is_blind_where_it_hardly_moves(told, reason):
    network = Score(told)
    looked, specimen = seen(network)
    reading = inner_reading(network, specimen.images, specimen.ids, THREAT, 32, 0)
    layer = None if reading is None else reading.layer
    found = blind_score(looked, layer)
    if not reason:
        assert not found.flagged and found.evidence == 1
        return
    assert found.flagged and reason in found.sentence and "inner" in found.sentence
    assert found.details["layer"] == layer == "inner"


def test_the_gradient_of_a_vote_is_not_taken_for_that_of_a_score():
    looked, _ = seen(Score("vote"))
    assert looked.moved < 0.2
    assert fidelity(looked).flagged and blind_score(looked, None).severity == "invalid"
    honest, _ = seen(Score("all"))
    assert not fidelity(honest).flagged


def test_no_layer_is_found_where_none_says_more():
    class Bare(Score):
        def forward(self, images: Tensor) -> Tensor:
            z = (images.flatten(1) - 0.5) @ self.inner.weight.T + self.inner.bias
            return F.one_hot(z.argmax(1), 4).to(z)

    network = Bare("vote")
    looked, specimen = seen(network)
    assert inner_reading(network, specimen.images, specimen.ids, THREAT, 32, 0) is None
    assert "search by labels" in blind_score(looked, None).sentence
