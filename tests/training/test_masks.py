"""Masks: what they keep, and what PyTorch's own pruning keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from robustsnn.errors import InputError
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.snn.sparsity import densities, density, synapses, weights_of
from robustsnn.training import masks

SMALL = NetworkConfig(
    architecture="vgg5",
    kind="ann",
    classes=10,
    image=(1, 12, 12),
    widths=(4, 8, 8),
    classifier=(20,),
    mean=(0.5,),
    std=(0.5,),
)


def small(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(SMALL)


@given(share=st.floats(0.02, 1.0), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_drawn_masks_keep_the_share_of_every_layer(share: float, seed: int):
    network = small()
    found = masks.drawn(network, share, torch.Generator().manual_seed(seed))
    for name, mask in found.items():
        assert int(mask.sum()) == max(1, round(share * mask.numel())), name
    again = masks.drawn(network, share, torch.Generator().manual_seed(seed))
    assert all(torch.equal(found[n], again[n]) for n in found)


@pytest.mark.parametrize("share", [0.03, 0.1, 0.5])
def test_magnitude_keeps_what_torch_keeps(share: float):
    network = small()
    for weight in weights_of(network).values():
        weight /= weight.std()
    peer = copy.deepcopy(network)
    layers = [(module, "weight") for module in synapses(peer).values()]
    total = sum(w.numel() for w in weights_of(network).values())
    prune.global_unstructured(
        layers,
        pruning_method=prune.L1Unstructured,
        amount=total - masks.budget(network, share),
    )
    found = masks.by_magnitude(network, share)
    for (name, mask), (module, _) in zip(found.items(), layers, strict=True):
        kept = module.weight_mask
        assert isinstance(kept, torch.Tensor)
        assert torch.equal(mask, kept.bool()), name


def test_magnitude_refuses_to_cut_a_layer_off():
    network = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 2))
    nn.init.constant_(network[0].weight, 1.0)
    nn.init.constant_(network[1].weight, 0.1)
    with pytest.raises(InputError, match=r"leaves no weight of 1: raise it"):
        masks.by_magnitude(network, 0.5)


def test_held_masks_are_the_weights_that_are_not_zero():
    network = small()
    kept = masks.drawn(network, 0.2, torch.Generator().manual_seed(1))
    masks.apply_(network, kept)
    found = masks.held(network)
    assert all(torch.equal(found[n], kept[n]) for n in kept)
    with pytest.raises(InputError, match="no weight of init is zero"):
        masks.held(small())


def test_psc4_has_the_published_patterns():
    """Positions in a 3 x 3 kernel, written out for the eight phases of filter 0."""
    network = small()
    found = masks.predefined(network, 0.4)
    assert bool(found["features.0"].all()), "the first convolution is dense"
    assert bool(found["classifier.3"].all()), "the last layer is dense"
    kernel = found["features.3"]
    published = {
        1: "110110000",
        2: "011011000",
        3: "000110110",
        4: "000011011",
        5: "110110000",
        6: "011011000",
        7: "000110110",
        0: "111111111",
    }
    for filter_ in range(8):
        for channel in range(4):
            rows = "".join(str(int(v)) for v in kernel[filter_, channel].flatten())
            assert rows == published[(filter_ + channel + 1) % 8]


@pytest.mark.parametrize("share", [0.3, 0.4, 0.7])
def test_predefined_masks_reach_the_density_with_even_rows(share: float):
    network = small()
    found = masks.predefined(network, share)
    total = sum(mask.numel() for mask in found.values())
    assert masks.kept(found) / total == pytest.approx(share, rel=0.01)
    rows = found["classifier.0"].sum(1)
    assert int(rows.max() - rows.min()) <= 1


def test_predefined_masks_say_what_they_cannot_reach():
    with pytest.raises(InputError, match="out of reach of the predefined patterns"):
        masks.predefined(small(), 0.01)


def test_a_masked_nan_is_zero_and_densities_count_zeros():
    network = nn.Sequential(nn.Linear(4, 2))
    with torch.no_grad():
        network[0].weight[0, 0] = torch.nan
    masks.apply_(network, {"0": torch.tensor([[False, True, True, True], [True] * 4])})
    assert densities(network)[0].kept == 7
    assert density(network) == 7 / 8
