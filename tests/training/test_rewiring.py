"""Prune and grow: what holds for every mask, weight and momentum."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustsnn.errors import InputError
from robustsnn.snn.channels import boundaries, slim, weights_left
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.snn.sparsity import weights_of
from robustsnn.training import channel_rewiring, masks, rewiring
from tests.training.test_masks import SMALL, small


@st.composite
def layers(draw: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Weights, masks and momenta of two to five layers; at least one weight of each is kept."""
    weights, kept, momenta = {}, {}, {}
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    for number in range(draw(st.integers(2, 5))):
        size = draw(st.integers(2, 60))
        mask = torch.rand(size, generator=generator) < draw(st.floats(0.05, 1.0))
        mask[draw(st.integers(0, size - 1))] = True
        weights[str(number)] = torch.randn(size, generator=generator) * mask
        kept[str(number)] = mask
        scale = draw(st.sampled_from([0.0, 1e-6, 1.0, 1e6]))
        momenta[str(number)] = scale * torch.randn(size, generator=generator)
    return weights, kept, momenta


@given(network=layers(), rate=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_density_is_conserved_and_only_masked_weights_grow(network: Any, rate: float):
    weights, kept, momenta = network
    total = masks.kept(kept)
    new = rewiring.rewired(weights, kept, momenta, rate, total)
    assert masks.kept(new) == total
    shares = rewiring.significance(kept, momenta)
    for name, mask in new.items():
        had = int(kept[name].sum())
        lost = rewiring.removals(had, mask.numel(), shares[name], rate, len(new))
        assert bool(mask.any()), "no layer is cut off"
        pruned = kept[name] & ~mask
        assert int(pruned.sum()) <= lost
        if bool(pruned.any()):
            stayed = weights[name][kept[name] & mask].abs()
            grown_again = lost - int(pruned.sum())
            # Of what was kept, all but what was pruned and grown again is at least as large.
            smaller = (stayed < weights[name][pruned].abs().max()).sum()
            assert int(smaller) <= grown_again


@given(network=layers(), rate=st.floats(0.01, 0.9))
@settings(max_examples=100, deadline=None)
def test_what_grows_has_the_largest_momentum_of_what_was_empty(network: Any, rate: float):
    weights, kept, momenta = network
    new = rewiring.rewired(weights, kept, momenta, rate, masks.kept(kept))
    for name, mask in new.items():
        grown = mask & ~kept[name]
        empty = ~mask & ~kept[name]
        if bool(grown.any()) and bool(empty.any()):
            assert momenta[name][grown].abs().min() >= momenta[name][empty].abs().max()


def test_a_hand_worked_step():
    """Two layers of four: each loses one of two, and the one with more momentum gets both."""
    kept = {n: torch.tensor([True, True, False, False]) for n in "ab"}
    weights = {
        "a": torch.tensor([0.1, 0.9, 0.0, 0.0]),
        "b": torch.tensor([0.8, -0.2, 0.0, 0.0]),
    }
    momenta = {
        "a": torch.tensor([9.0, 9.0, 3.0, 5.0]),
        "b": torch.tensor([1e-3, 1e-3, 1.0, 1.0]),
    }
    new = rewiring.rewired(weights, kept, momenta, 0.5, 4)
    assert new["a"].tolist() == [True, True, False, True]
    assert new["b"].tolist() == [True, False, False, False]


@given(
    rooms=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_an_amount_is_split_exactly_within_caps(rooms: list[int], data: Any):
    amount = data.draw(st.integers(0, sum(rooms)))
    shares = data.draw(st.lists(st.floats(0, 1), min_size=len(rooms), max_size=len(rooms)))
    given_ = rewiring.allocate(amount, shares, rooms)
    assert sum(given_) == amount
    assert all(0 <= g <= r for g, r in zip(given_, rooms, strict=True))


def test_an_amount_without_caps_is_split_in_proportion():
    assert rewiring.allocate(100, [0.5, 0.3, 0.2], [1000] * 3) == [50, 30, 20]
    with pytest.raises(ValueError, match="does not fit"):
        rewiring.allocate(3, [1.0], [2])


def test_rates_fall_along_a_cosine():
    assert rewiring.cosine(0.5, 0.005, 0.0) == 0.5
    assert rewiring.cosine(0.5, 0.005, 1.0) == pytest.approx(0.005)
    assert rewiring.cosine(0.5, 0.005, 0.25) == pytest.approx(
        0.005 + 0.495 * (1 + math.sqrt(0.5)) / 2
    )


@given(
    share=st.floats(0.15, 0.9),
    rate=st.floats(0, 0.9),
    seed=st.integers(0, 1000),
    room=st.floats(0, 1),
)
@settings(max_examples=40, deadline=None)
def test_channels_come_and_go_whole_and_the_weights_stay(
    share: float, rate: float, seed: int, room: float
):
    # Weights go with the square of the channels: any layer share above this root can be reached.
    widest = min(1.0, share**0.5 * 1.1) * (1 - room) + room
    network = Network(
        NetworkConfig(**{**SMALL.model_dump(), "widths": (16, 24, 24), "classifier": (64,)})
    )
    generator = torch.Generator().manual_seed(seed)
    kept = channel_rewiring.drawn_channels(network, share, generator, widest)
    total = sum(w.numel() for w in weights_of(network).values())
    for _ in range(2):
        masks.apply_(network, kept)
        places = boundaries(network)
        channels = channel_rewiring.kept_channels(kept, places)
        left = weights_left(network, [int(m.sum()) for m in channels.values()])
        assert left == pytest.approx(share * total, rel=channel_rewiring.TOLERANCE)
        assert all(bool(m.any()) for m in channels.values())
        for place in places:
            assert int(channels[place.consumer].sum()) <= max(1, widest * place.channels + 1e-6)
            mask = kept[place.consumer].reshape(len(kept[place.consumer]), place.channels, -1)
            assert torch.equal(mask.flatten(2).all(2).all(0), channels[place.consumer])
        momenta = {
            n: torch.randn(w.shape, generator=generator) for n, w in weights_of(network).items()
        }
        kept = channel_rewiring.rewired_channels(network, kept, momenta, rate, share, widest)


def test_the_network_that_is_saved_has_the_weights_that_were_counted():
    network = small()
    kept = channel_rewiring.drawn_channels(network, 0.5, torch.Generator().manual_seed(3))
    masks.apply_(network, kept)
    channels = channel_rewiring.kept_channels(kept, boundaries(network))
    left = weights_left(network, [int(m.sum()) for m in channels.values()])
    smaller = slim(network)
    assert sum(w.numel() for w in weights_of(smaller).values()) == left
    images = torch.rand(5, *SMALL.image)
    with torch.no_grad():
        torch.testing.assert_close(smaller.eval()(images), network.eval()(images))


def test_a_density_that_no_channels_leave_is_refused():
    network = Network(
        NetworkConfig(**{**SMALL.model_dump(), "widths": (1, 1, 2), "classifier": (2,)})
    )
    with pytest.raises(InputError, match="no number of channels leaves"):
        channel_rewiring.drawn_channels(network, 0.77, torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"larger sparsity\.widest"):
        channel_rewiring.drawn_channels(small(), 0.5, torch.Generator().manual_seed(0), 0.4)
