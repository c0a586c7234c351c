"""Synaptic operations and their gradient, as a victim gives them to an attack."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import derive
from robustsnn.errors import InputError
from robustsnn.estimators.backprop import Backprop
from robustsnn.estimators.make import make_estimator
from robustsnn.snn.network import Network
from robustsnn.snn.operations import operations_per_image, with_synapses
from tests.adversary.test_victim import batch, network

ESTIMATORS = ("bptt", "bptt:arctan", "assg", "hart", "bptr", "rga", "pdsg", "twin", "spsa:pairs=2")


def victim(made: nn.Module, estimator="bptt", count=5, **settings) -> Victim:
    return Victim(made, make_estimator(estimator, made), range(count), **settings)


def by_another_way(made: Network, images: torch.Tensor, drawn=None) -> torch.Tensor:
    """The gradient of all spikes times their fan-outs, by convolutions with patterns of weights."""
    x = images.clone().requires_grad_()
    seen: list[tuple[nn.Module, torch.Tensor]] = []
    handles = [
        layer.register_forward_hook(lambda m, args, output: seen.append((m, args[0])))
        for layer in with_synapses(made).values()
    ]
    made.eval()(x, drawn)
    for handle in handles:
        handle.remove()
    total = x.new_zeros(())
    for place, (layer, entering) in enumerate(seen):
        if place == 0 and drawn is None:
            continue  # the image itself
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        weight = layer.weight.detach()
        pattern = torch.where(weight == 0, 0.0, torch.ones_like(weight))
        if place == 0:
            entering = entering * entering.detach().sign()
        if isinstance(layer, nn.Conv2d):
            total = total + F.conv2d(entering, pattern, None, layer.stride, layer.padding).sum()
        else:
            total = total + F.linear(entering, pattern).sum()
    return torch.autograd.grad(total, x)[0]


@pytest.mark.parametrize("micro_batch", [2, 5])
def test_operations_are_those_that_are_counted(micro_batch):
    made = network()
    images, _ = batch(5)
    attacker = victim(made, micro_batch=micro_batch)
    found = attacker.activity(images)
    assert torch.equal(found.operations, operations_per_image(made, images))
    assert torch.equal(found.logits, victim(made, micro_batch=micro_batch).logits(images))
    assert attacker.forward_passes.tolist() == [1] * 5
    assert attacker.backward_passes.tolist() == [0] * 5


def test_the_gradient_is_that_of_all_spikes_times_their_fan_outs():
    made = network()
    with_synapses(made)["features.3"].weight.data[::2] = 0
    images, _ = batch(5)
    attacker = victim(made, micro_batch=2)
    found = attacker.activity_gradient(images)
    assert torch.equal(found.loss, operations_per_image(made, images))
    torch.testing.assert_close(found.gradient, by_another_way(made, images))
    assert bool((found.gradient != 0).flatten(1).any(1).all())
    assert attacker.forward_passes.tolist() == attacker.backward_passes.tolist() == [1] * 5


def test_a_network_that_draws_is_counted_at_the_draws_of_its_keys():
    made = network(encoding="poisson")
    images, _ = batch(3)
    attacker = victim(made, count=3, seed=9)
    keys = torch.tensor([derive(9, "key", i, 0, 0) for i in range(3)])
    found = attacker.activity_gradient(images)
    assert torch.equal(found.loss, operations_per_image(made, images, keys))
    torch.testing.assert_close(found.gradient, by_another_way(made, images, keys))
    mean = victim(made, "bptt:draws=4,average=logits", 3).activity_gradient(images)
    assert len(set(mean.loss.tolist())) == 3 and bool((mean.gradient != 0).any())
    common = [torch.tensor([derive(0, "common", i, d) for i in range(3)]) for d in range(3)]
    several = torch.stack([operations_per_image(made, images, key) for key in common])
    torch.testing.assert_close(
        victim(made, count=3).activity(images, 3).operations, several.mean(0)
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_gives_a_gradient_of_the_true_count(estimator):
    made = network(dtype=torch.float32)
    images, labels = batch(4, torch.float32)
    plain = victim(made, estimator, 4)
    found = plain.activity_gradient(images)
    torch.testing.assert_close(found.loss, operations_per_image(made, images))
    other = victim(made, estimator, 4)
    other.gradient(images, labels)
    assert plain.forward_passes.tolist() == other.forward_passes.tolist()
    assert plain.backward_passes.tolist() == other.backward_passes.tolist()
    assert found.logits.dtype == found.gradient.dtype == torch.float32
    torch.testing.assert_close(found.logits, victim(made, count=4).logits(images))
    assert bool((found.gradient != 0).any())


def test_segments_do_not_change_it_and_nothing_is_left_behind():
    made = network().train()
    images, _ = batch(4)
    whole = victim(made, count=4).activity_gradient(images)
    made.recompute = 2
    cut = victim(made, count=4).activity_gradient(images)
    torch.testing.assert_close(cut.gradient, whole.gradient)
    assert made.recompute == 2 and made.training
    assert not any(m._forward_pre_hooks for m in made.modules())


def test_selections_count_into_one_ledger():
    attacker = victim(network())
    images, _ = batch(5)
    some = attacker.select([3, 1])
    whole = attacker.activity_gradient(images)
    part = some.activity_gradient(images[[3, 1]])
    torch.testing.assert_close(part.gradient, whole.gradient[[3, 1]])
    assert attacker.backward_passes.tolist() == [1, 2, 1, 2, 1]


def test_a_network_without_spikes_is_refused_in_one_line():
    images, _ = batch(2)
    ann = network("ann")
    with pytest.raises(InputError, match="the network has no spikes"):
        Victim(ann, Backprop(), range(2)).activity_gradient(images)

    class Foreign(nn.Module):
        def spiking_layers(self) -> dict[str, nn.Module]:
            return {"one": nn.Identity()}

    with pytest.raises(InputError, match="counted in networks of RobustSNN only"):
        victim(Foreign(), count=2).activity(images)
