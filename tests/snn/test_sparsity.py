"""Densities, counted on weights whose zeros are known."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from robustsnn.snn.sparsity import (
    LayerDensity,
    compression,
    densities,
    density,
    pattern,
    synapses,
    weights_of,
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(1), nn.Linear(12, 4))


@given(st.integers(0, 54), st.integers(0, 48), st.integers(0, 999))
@settings(deadline=None, max_examples=50)
def test_zeros_are_counted_layer_by_layer(first, second, seed):
    made = network()
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer, zeros in ((made[0], first), (made[3], second)):
            places = torch.randperm(layer.weight.numel())[:zeros]
            layer.weight.view(-1)[places] = torch.where(places % 2 == 0, 0.0, -0.0)
    conv, linear = LayerDensity("0", 54, 54 - first), LayerDensity("3", 48, 48 - second)
    assert densities(made) == (conv, linear)
    assert density(made) == pytest.approx((102 - first - second) / 102)
    found = pattern(made)
    assert {name: int(mask.sum()) for name, mask in found.items()} == {
        "0": conv.kept,
        "3": linear.kept,
    }
    assert all(found[name].shape == w.shape for name, w in weights_of(made).items())


def test_biases_and_normalisation_are_not_synapses():
    assert list(synapses(network())) == ["0", "3"]
    assert densities(nn.Sequential(nn.ReLU())) == ()
    assert math.isnan(density(nn.Sequential(nn.ReLU())))
    assert math.isnan(LayerDensity("empty", 0, 0).density)


def test_compression_is_a_quotient():
    assert compression(1000, 30) == pytest.approx(33.3333, abs=1e-3)
    assert compression(10, 0) == math.inf


def test_masks_of_torch_count_as_their_next_pass_will_have_them():
    made = network()
    prune.l1_unstructured(made[0], "weight", amount=44)
    prune.random_unstructured(made[3], "weight", amount=12)
    prune.random_unstructured(made[3], "weight", amount=12)
    assert [layer.kept for layer in densities(made)] == [10, 24]
    # A mask that is loaded shows in the attribute `weight` only after the next pass.
    state = made.state_dict()
    state["0.weight_mask"] = torch.zeros(3, 2, 3, 3)
    state["0.weight_mask"][0, 0] = 1
    made.load_state_dict(state)
    held = made[0].weight
    assert [layer.kept for layer in densities(made)] == [9, 24]
    assert made[0].weight is held, "the network is left as it is"
    made(torch.rand(2, 2, 4, 4))
    assert int(torch.count_nonzero(made[0].weight)) == 9


def test_norms_of_weights_keep_their_zeros():
    made = network()
    with torch.no_grad():
        made[0].weight[0] = 0
        made[0].weight[0, 0, 0, 0] = 1
        made[3].weight[:, :5] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(made[0])
        nn.utils.spectral_norm(made[3])
    assert [layer.kept for layer in densities(made)] == [37, 28]
    again = network()
    with torch.no_grad():
        again[3].weight[:, :5] = 0
    parametrizations.spectral_norm(again[3])
    assert [layer.kept for layer in densities(again)] == [54, 28]


class Half(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(weight)
        mask.view(-1)[::2] = 0
        return weight * mask


def test_a_parametrisation_counts_as_it_computes():
    made = network()
    parametrize.register_parametrization(made[3], "weight", Half())
    assert [layer.kept for layer in densities(made)] == [54, 24]
    assert not weights_of(made)["3"].requires_grad
