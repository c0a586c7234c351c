"""The quantised encoding between its two ends, Poisson and direct, and what it costs."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError

from robustsnn.adversary.victim import Victim
from robustsnn.estimators.make import make_estimator
from robustsnn.snn.activity import record_activity
from robustsnn.snn.encoding import quantised
from robustsnn.snn.energy import MAC_PJ, energy
from robustsnn.snn.network import Network, NetworkConfig

FIELDS = {
    "architecture": "vgg5", "kind": "snn", "classes": 5, "image": (1, 8, 8), "widths": (4, 6, 6),
    "classifier": (12,), "mean": (0.4,), "std": (0.3,), "time_steps": 4, "dropout": 0.0,
}  # fmt: skip


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def network(**changes: object) -> Network:
    torch.manual_seed(0)
    return Network(NetworkConfig.model_validate({**FIELDS, **changes})).eval()


@pytest.mark.parametrize("levels", [1, 2, 4, 16])
def test_values_are_the_two_levels_around_a_pixel(levels: int) -> None:
    x = images()
    values = quantised(x, 50, levels, torch.arange(6))
    assert values.shape == (50, 6, 1, 8, 8)
    scaled = values * levels
    assert torch.equal(scaled, scaled.round())
    assert (scaled >= (x * levels).floor()).all() and (scaled <= (x * levels).ceil()).all()


@pytest.mark.parametrize("levels", [1, 3])
def test_the_mean_over_time_is_the_pixel_and_the_variance_is_binomial(levels: int) -> None:
    x = images(2)
    values = quantised(x, 4000, levels, torch.tensor([5, 6]))
    part = x * levels - (x * levels).floor()
    deviation = (part * (1 - part)).sqrt() / levels
    # 128 pixels: 4.5 standard errors are exceeded once in a thousand such tests.
    assert ((values.mean(0) - x).abs() <= 4.5 * deviation / 4000**0.5 + 1e-6).all()
    torch.testing.assert_close(values.var(0), deviation**2, atol=0.02, rtol=0)


def test_many_levels_are_the_image_itself() -> None:
    assert (quantised(images(), 3, 10_000, torch.arange(6)) - images()).abs().max() <= 1e-4
    # A pixel that lies on a level is never moved.
    grid = torch.arange(5).reshape(1, 1, 1, 5) / 4
    assert torch.equal(quantised(grid, 100, 4, torch.tensor([1])), grid.expand(100, 1, 1, 1, 5))


def test_draws_belong_to_the_key_and_are_new_at_each_step() -> None:
    x = images()
    whole = quantised(x, 4, 2, torch.arange(6))
    alone = quantised(x[3:4], 4, 2, torch.tensor([3]))
    assert torch.equal(whole[:, 3:4], alone)
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(alone, quantised(x[3:4], 4, 2, torch.tensor([4])))


def test_the_gradient_goes_straight_through() -> None:
    x = images().requires_grad_()
    weight = torch.rand(4, 6, 1, 8, 8)
    (quantised(x, 4, 2, torch.arange(6)) * weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.sum(0))


def test_a_network_draws_by_its_keys_and_anew_in_training() -> None:
    net = network(encoding="quantised", levels=2)
    assert net.stochastic
    keys = torch.arange(6) + 100
    assert torch.equal(net(images(), keys), net(images(), keys))
    inputs: list[torch.Tensor] = []
    net.features[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    net.train()
    torch.manual_seed(1)
    net(images()), net(images())
    torch.manual_seed(1)
    net(images())
    assert not torch.equal(inputs[0], inputs[1]) and torch.equal(inputs[0], inputs[2])
    # The first layer sees the normalised levels: (0, 1/2 or 1, less the mean) over the deviation.
    levels = torch.tensor([(v - 0.4) / 0.3 for v in (0.0, 0.5, 1.0)])
    assert (inputs[0].unsqueeze(-1) - levels).abs().amin(-1).max() < 1e-6


def test_an_attacker_meets_new_draws_in_every_pass() -> None:
    net = network(encoding="quantised", levels=1, time_steps=2).requires_grad_(False)
    for module in net.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.4)
    labels = torch.arange(6) % 5

    def agreement(spec: str) -> float:
        """How alike the signs of two gradients are that one victim finds one after the other."""
        victim = Victim(net, make_estimator(spec, net), range(6))
        one, two = (victim.gradient(images(), labels).gradient for _ in range(2))
        return float((one.sign() == two.sign()).float().mean())

    single, averaged = agreement("bptt"), agreement("bptt:draws=32,average=logits")
    assert single < 0.9 and averaged > single + 0.05


def test_the_first_layer_is_computed_at_every_step() -> None:
    ann = network(kind="ann", time_steps=1)
    net = network(encoding="quantised", levels=2)
    for layer in net.spiking_layers().values():
        # Nothing spikes, so that only the first layer costs anything.
        torch.nn.init.constant_(layer.threshold, 1e6)
    first = 9 * 8 * 8 * 4
    spent = energy(net, record_activity(net, images(), torch.arange(6)))
    assert spent.snn_input_uj == pytest.approx(MAC_PJ * 4 * first * 1e-6)
    assert spent.ann_uj == pytest.approx(energy(ann, record_activity(ann, images())).ann_uj)


def test_levels_go_with_the_encoding_and_do_not_change_other_networks() -> None:
    for changes in ({"levels": 2}, {"encoding": "quantised"}):
        with pytest.raises(ValidationError, match="levels goes with the quantised encoding"):
            network(**changes)
    assert "levels" not in json.loads(network().config.model_dump_json())
    config = network(encoding="quantised", levels=2).config
    assert NetworkConfig.model_validate(config.model_dump(mode="json")) == config
