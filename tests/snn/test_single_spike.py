"""The single-spike encoding against a loop over neurons, written out step by step."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from robustsnn.adversary.victim import Victim
from robustsnn.estimators.catalogue import estimator_names
from robustsnn.estimators.make import make_estimator
from robustsnn.snn.activity import record_activity
from robustsnn.snn.encoding import single_spike
from robustsnn.snn.energy import AC_PJ, MAC_PJ, energy
from robustsnn.snn.network import Network, NetworkConfig

FIELDS = {
    "architecture": "vgg5", "kind": "snn", "classes": 5, "image": (1, 8, 8), "widths": (4, 6, 6),
    "classifier": (12,), "mean": (0.4,), "std": (0.3,), "time_steps": 5, "dropout": 0.0,
    "encoding": "single-spike", "time_weight": 0.5,
}  # fmt: skip


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def network(**changes: object) -> Network:
    torch.manual_seed(0)
    found = Network(NetworkConfig.model_validate({**FIELDS, **changes})).eval()
    for module in found.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.4)
    for layer in found.spiking_layers().values():
        layer.threshold.data.fill_(0.4)
        layer.leak.data.fill_(0.9)
    return found


def once(current: torch.Tensor, threshold: float, leak: float) -> torch.Tensor:
    """The first spike of each neuron, by the equations of a neuron that then stays silent."""
    membrane = torch.zeros_like(current[0])
    silent = torch.zeros_like(current[0], dtype=torch.bool)
    out = []
    for now in current:
        membrane = leak * membrane + now
        fires = (membrane / threshold - 1 > 0) & ~silent
        silent |= fires
        out.append(fires.float())
    return torch.stack(out)


def by_hand(net: Network, x: torch.Tensor) -> torch.Tensor:
    """The logits of METHODS 4.3 written out: T = 5, kappa = 1/2, nothing but torch functions."""
    weights = {name: tensor for name, tensor in net.state_dict().items() if "weight" in name}
    frames = [(x - 0.4) / 0.3]
    for step in (2, 3, 4, 5):
        when = 2 + torch.round(3 * (1 - x))
        frames.append(((when == step) & (x > 0.01)).float())
    h = torch.stack(frames)
    for index in (0, 3, 6):
        current = torch.stack(
            [F.conv2d(now, weights[f"features.{index}.weight"], padding=1) for now in h]
        )
        h = once(current, 0.4, 0.9)
        if index in (0, 6):
            h = torch.stack([F.avg_pool2d(now, 2) for now in h])
    h = once(
        torch.stack([now.flatten(1) @ weights["classifier.0.weight"].T for now in h]), 0.4, 0.9
    )
    current = torch.stack([now @ weights["classifier.3.weight"].T for now in h])
    fired = once(current, 0.4, 0.9)
    time = torch.arange(1.0, 6.0).reshape(5, 1, 1)
    # Where an output never fires, its time is T, so that nothing is left.
    spike_time = torch.where(fired.sum(0) > 0, (time * fired).sum(0), 5.0)
    return current.sum(0) + 0.5 * (5 - spike_time)


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_logits_are_those_of_neurons_that_fire_once(kernel: str, monkeypatch) -> None:
    monkeypatch.setenv("ROBUSTSNN_LIF", kernel)
    net = network()
    logits = net(images())
    torch.testing.assert_close(logits, by_hand(net, images()), atol=1e-4, rtol=1e-4)
    # The times of spikes are part of them.
    silent = network(time_weight=0.0)
    assert not torch.equal(logits, silent(images()))


def most_spikes(net: Network) -> float:
    """The most spikes of a single neuron of any layer."""
    seen: list[float] = []
    for layer in net.spiking_layers().values():
        layer.register_forward_hook(
            lambda _, args, out: seen.append(float(out[0].detach().sum(0).max()))
        )
    net(images())
    return max(seen)


def test_every_neuron_fires_at_most_once_and_some_would_fire_again() -> None:
    free = network()
    for layer in free.spiking_layers().values():
        layer.once = False
    assert most_spikes(network()) == 1 and most_spikes(free) > 1


def test_a_pixel_fires_once_and_the_brighter_the_earlier() -> None:
    x = torch.tensor([0.0, 0.2, 0.5, 1.0]).reshape(1, 1, 1, 4)
    code = single_spike(x, (x - 0.4) / 0.3, 6)
    torch.testing.assert_close(code[0], (x - 0.4) / 0.3)
    when = [code[1:, 0, 0, 0, i].nonzero().flatten().tolist() for i in range(4)]
    assert when == [[], [3], [2], [0]]  # round(4 (1 - x))
    assert single_spike(x, x, 1).shape == (1, 1, 1, 1, 4)


def test_the_gradient_goes_through_the_image_and_through_the_spike_times() -> None:
    x = torch.full((1, 1, 1, 1), 0.5, requires_grad=True)
    code = single_spike(x, (x - 0.4) / 0.3, 5)
    weight = torch.tensor([3.0, 8.0, 5.0, 2.0, 1.0]).reshape(5, 1, 1, 1, 1)
    (code * weight).sum().backward()
    assert x.grad is not None
    # The pixel fires at round(3 (1 - 0.5)) = 2 of the later steps 0 to 3: a brighter one takes from
    # step 3 and gives to step 1, by half of the three steps of a whole change.
    assert float(x.grad) == pytest.approx(3.0 / 0.3 + 3 * (5.0 - 1.0) / 2)


@pytest.mark.parametrize("name", [n for n in estimator_names() if n != "backprop"])
def test_estimators_reach_it_and_leave_its_spikes_alone(name: str) -> None:
    net = network().requires_grad_(False)
    victim = Victim(net, make_estimator(name, net), range(6))
    found = victim.gradient(images(), torch.arange(6) % 5)
    torch.testing.assert_close(found.logits, net(images()))
    assert (found.gradient.abs().amax((1, 2, 3)) > 0).all()


def test_segments_in_time_do_not_let_a_neuron_fire_twice() -> None:
    net = network()
    whole = net(images())
    net.recompute = 2
    torch.testing.assert_close(net(images().requires_grad_()), whole)


def test_the_first_layer_costs_one_image_and_then_spikes() -> None:
    ann = Network(NetworkConfig.model_validate(
        {**{k: v for k, v in FIELDS.items() if k not in ("encoding", "time_weight")},
         "kind": "ann", "time_steps": 1}
    ))  # fmt: skip
    net = network()
    for layer in net.spiking_layers().values():
        torch.nn.init.constant_(layer.threshold, 1e6)
    first = 9 * 8 * 8 * 4
    bright = torch.ones(6, 1, 8, 8)
    # Every pixel fires once after the first step.
    spent = energy(net, record_activity(net, bright))
    assert spent.snn_input_uj == pytest.approx((MAC_PJ + AC_PJ) * first * 1e-6)
    assert spent.ann_uj == pytest.approx(energy(ann, record_activity(ann, bright)).ann_uj)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"time_weight": None}, "time_weight goes with the single-spike encoding"),
        ({"encoding": "direct"}, "time_weight goes with the single-spike encoding"),
        ({"time_steps": 1}, "at least 2 time_steps"),
    ],
)
def test_malformed_descriptions(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        network(**changes)


def test_it_does_not_draw_and_other_networks_are_described_as_before() -> None:
    net = network()
    assert not net.stochastic and net.output is not None
    assert NetworkConfig.model_validate(net.config.model_dump(mode="json")) == net.config
    plain = {k: v for k, v in FIELDS.items() if k not in ("encoding", "time_weight")}
    other = Network(NetworkConfig.model_validate(plain))
    assert "time_weight" not in json.loads(other.config.model_dump_json())
    assert not any(name.startswith("output") for name in other.state_dict())
