"""Threshold-adapting neurons: their dynamics step by step, and their exact gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustsnn.estimators.bptt import ThroughTime
from robustsnn.estimators.make import make_estimator
from robustsnn.snn.backward_rule import Trace
from robustsnn.snn.homeostasis import HomeostaticLIF
from robustsnn.snn.neuron import LIF
from robustsnn.snn.surrogate import Triangle

STEPS, NEURONS = 5, 7


def layer(place: str = "live", follows: float = 0.4) -> HomeostaticLIF:
    torch.manual_seed(0)
    made = HomeostaticLIF(1.2, 0.8, STEPS, (NEURONS,), Triangle(0.9), place).double()  # type: ignore[arg-type]
    made.follows.data = follows * torch.rand(NEURONS, dtype=torch.float64)
    made.signature.copy_(torch.rand(STEPS, NEURONS))
    return made


def current() -> torch.Tensor:
    draws = torch.Generator().manual_seed(1)
    return 2 * torch.rand(STEPS, 3, NEURONS, generator=draws, dtype=torch.float64)


def test_the_dynamics_are_the_published_ones():
    made, x = layer(), current()
    spikes, _ = made(x, STEPS)
    trace = made.trace(x, STEPS)
    follows = made.follows.tolist()
    for image in range(3):
        for i in range(NEURONS):
            post, threshold = 0.0, 1.2
            for t in range(STEPS):
                m = 0.8 * post + float(x[t, image, i])
                threshold += follows[i] * (m - float(made.signature[t, i]))
                fires = m > threshold
                assert float(trace.live[t, image, i]) == pytest.approx(threshold)
                assert float(trace.membranes[t][image, i]) == pytest.approx(m)
                assert bool(trace.spikes[t, image, i]) is fires
                post = 0.0 if fires else m
    assert torch.equal(spikes, trace.spikes) and 0.1 < float(trace.spikes.mean()) < 0.9


def test_without_adaptation_it_is_a_plain_neuron():
    made, x = layer("initial", follows=0.0), current()
    plain = LIF(1.2, 0.8, Triangle(0.9), reset="hard").double()
    grads = []
    for one in (made, plain):
        leaf = x.clone().requires_grad_()
        spikes, _ = one(leaf, STEPS)
        grads.append(torch.autograd.grad((spikes * x.flip(0)).sum(), leaf)[0])
        assert torch.equal(spikes, plain(x, STEPS).spikes)
    assert torch.allclose(*grads, atol=1e-12)


def by_rule(made: HomeostaticLIF, x: torch.Tensor, rule: object) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    made.rule = rule  # type: ignore[assignment]
    spikes, _ = made(leaf, STEPS)
    made.rule = None
    return torch.autograd.grad((spikes * x.flip(0)).sum(), leaf)[0]


@pytest.mark.parametrize("detach", [True, False])
def test_a_rule_reads_the_live_threshold_and_what_moves_it(detach):
    made, x = layer("live"), current()
    made.detach_reset = detach
    leaf = x.clone().requires_grad_()
    spikes, _ = made(leaf, STEPS)
    (exact,) = torch.autograd.grad((spikes * x.flip(0)).sum(), leaf)
    assert torch.allclose(by_rule(made, x, ThroughTime()), exact, atol=1e-12)
    # The published backward pass is of another network.
    made.place = "initial"
    leaf = x.clone().requires_grad_()
    spikes, _ = made(leaf, STEPS)
    (published,) = torch.autograd.grad((spikes * x.flip(0)).sum(), leaf)
    assert float((published - exact).abs().max()) > 0.1
    # And estimators do not follow it.
    assert torch.allclose(by_rule(made, x, ThroughTime()), exact, atol=1e-12)


def test_the_threshold_learns_in_either_place():
    for place in ("initial", "live"):
        made, x = layer(place), current()
        spikes, _ = made(x, STEPS)
        spikes.sum().backward()
        assert made.follows.grad is not None and bool((made.follows.grad != 0).any())


@pytest.mark.parametrize(
    "text", ["bptt:arctan:width=0.1", "assg", "hart", "pdsg", "rga", "bptr", "bptt:reset=attached"]
)
def test_every_estimator_sees_thresholds_where_they_are(text):
    """Far from the initial threshold, a shift of both membranes and thresholds changes nothing."""

    class One(nn.Module):
        def __init__(self, made: HomeostaticLIF) -> None:
            super().__init__()
            self.made = made

        def spiking_layers(self) -> dict[str, HomeostaticLIF]:
            return {"made": self.made}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.made(x, STEPS)[0].sum(0)
            return logits

    network = One(layer("initial"))
    estimator = make_estimator(text, network)
    leaf = current().requires_grad_()
    seen: list[Trace] = []
    with estimator.applied(network):
        rule = network.made.rule
        if rule is not None:
            network.made.rule = lambda grad, trace: (seen.append(trace), rule(grad, trace))[1]
        (found,) = torch.autograd.grad(network(leaf).sum(), leaf)
    assert found.shape == leaf.shape and bool(found.isfinite().all()) and bool((found != 0).any())
    for trace in seen:
        over = torch.stack([trace.over(t) for t in range(STEPS)])
        assert torch.equal(over > 0, trace.spikes > 0)
