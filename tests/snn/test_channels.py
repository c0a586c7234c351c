"""A network without the channels that change nothing is the same function."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from robustsnn.errors import InputError
from robustsnn.snn.channels import boundaries, slices, slim, unused, weights_left
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.snn.sparsity import densities, synapses


def network(kind="snn", encoding="direct", seed=0, **changes):
    """A small VGG5 in float64, where no spike hangs on the order of a sum."""
    torch.manual_seed(seed)
    known = {
        "architecture": "vgg5",
        "kind": kind,
        "classes": 3,
        "image": (1, 8, 8),
        "widths": (3, 4, 5),
        "classifier": (6, 4),
        "mean": (0.5,),
        "std": (0.5,),
        "time_steps": 1 if kind == "ann" else 3,
        "encoding": encoding,
    }
    made = Network(NetworkConfig.model_validate({**known, **changes})).double().eval()
    for layer in synapses(made).values():
        nn.init.normal_(layer.weight, 0, 1.5 / math.sqrt(layer.weight[0].numel()))
    for layer in made.spiking_layers().values():
        layer.threshold.data.fill_(0.3)
        layer.leak.data.fill_(0.9)
    return made


def images(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(5, 1, 8, 8, generator=generator, dtype=torch.float64)


def erase(made, where, how):
    """Set the weights that make a channel, those that read it, or both to zero."""
    layers = synapses(made)
    with torch.no_grad():
        for place, boundary in enumerate(boundaries(made)):
            for channel in where.get(place, ()):
                if how in ("made", "both"):
                    layers[boundary.producer].weight[channel] = 0
                if how in ("read", "both"):
                    read = layers[boundary.consumer].weight
                    slices(read, boundary.channels)[:, channel] = 0


def logits(made: Network) -> Tensor:
    with torch.no_grad():
        found: Tensor = made(images(), keys=torch.arange(5)) if made.stochastic else made(images())
    return found


REMOVED = st.fixed_dictionaries(
    {
        place: st.sets(st.integers(0, size - 1), max_size=size)
        for place, size in enumerate((3, 4, 5, 6, 4))
    }
)


@pytest.mark.parametrize(
    ("kind", "encoding"), [("ann", "direct"), ("snn", "direct"), ("snn", "poisson")]
)
@given(removed=REMOVED, how=st.sampled_from(["made", "read", "both"]), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_the_slim_network_says_the_same(kind, encoding, removed, how, seed):
    made = network(kind, encoding, seed)
    erase(made, removed, how)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    wanted = logits(made)

    smaller = slim(made)

    assert torch.allclose(logits(smaller), wanted, rtol=1e-9, atol=1e-12)
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    kept = [boundary.channels for boundary in boundaries(smaller)]
    # What was erased is gone, except that a layer keeps one channel.
    for place, size in enumerate((3, 4, 5, 6, 4)):
        assert 1 <= kept[place] <= max(1, size - len(removed[place]))
    assert sum(layer.weights for layer in densities(smaller)) == weights_left(made, kept)
    assert smaller.config.widths == tuple(kept[:3])
    assert smaller.config.classifier == tuple(kept[3:])
    assert not any(bool(mask.any()) for name, mask in unused(smaller).items() if len(mask) > 1), (
        "removing channels left others without use"
    )


def test_nothing_is_erased_by_the_test_itself_when_all_channels_count():
    made = network()
    assert logits(made).abs().sum() > 0
    assert slim(made) is made


def test_a_channel_counts_as_long_as_one_weight_does():
    made = network()
    erase(made, {1: {0, 2}}, "made")
    layers = synapses(made)
    boundary = boundaries(made)[1]
    with torch.no_grad():
        layers[boundary.producer].weight[2, 0, 1, 1] = 1e-30
    assert unused(made)[boundary.consumer].tolist() == [True, False, False, False]
    assert boundaries(slim(made))[1].channels == 3


def test_what_loses_its_readers_goes_too():
    """A channel that feeds only a removed one is removed in the next round."""
    made = network()
    layers = synapses(made)
    first, second = boundaries(made)[:2]
    with torch.no_grad():
        # Channel 1 of the first layer is read by channel 2 of the second alone, which nobody reads.
        only = layers[first.consumer].weight[2, 1].clone()
        layers[first.consumer].weight[:, 1] = 0
        layers[first.consumer].weight[2, 1] = only
        layers[second.consumer].weight[:, 2] = 0
    wanted = logits(made)
    smaller = slim(made)
    assert [b.channels for b in boundaries(smaller)] == [2, 3, 5, 6, 4]
    assert torch.allclose(logits(smaller), wanted, rtol=1e-9, atol=1e-12)


def test_weights_left_by_hand():
    """Of 1 -> 3 -> 4 -> 5 channels, 5 x 2 x 2 features -> 6 -> 4 -> 3 outputs."""
    made = network()
    sizes = [layer.weight.numel() for layer in synapses(made).values()]
    last = sizes[3] // 6
    assert sizes == [27, 108, 180, 6 * last, 24, 12]
    assert weights_left(made, [3, 4, 5, 6, 4]) == sum(sizes)
    by_hand = 9 * 2 + 9 * 2 * 1 + 9 * 1 * 5 + last * 3 + 3 * 2 + 2 * 3
    assert weights_left(made, [2, 1, 5, 3, 2]) == by_hand


def test_the_slim_network_is_like_the_one_it_came_from():
    made = network()
    erase(made, {0: {1}, 3: {0, 5}}, "read")
    made.train()
    made.time_steps, made.recompute = 7, 2
    made.classifier.requires_grad_(False)
    for layer in made.spiking_layers().values():
        layer.reset = "hard"
    smaller = slim(made)
    assert smaller is not made and smaller.training
    assert (smaller.time_steps, smaller.recompute) == (7, 2)
    assert {p.dtype for p in smaller.parameters()} == {torch.float64}
    assert smaller.mean.dtype == torch.float64
    for name, parameter in smaller.named_parameters():
        assert parameter.requires_grad == (not name.startswith("classifier"))
    assert torch.allclose(logits(smaller.eval()), logits(made.eval()), rtol=1e-9, atol=1e-12)


def test_shortcuts_are_refused_in_one_line():
    made = network(architecture="resnet12", widths=(4, 4, 4, 4), classifier=(), image=(1, 16, 16))
    for refused in (boundaries, slim, unused):
        with pytest.raises(InputError, match="shortcuts") as told:
            refused(made)
        assert "\n" not in str(told.value) and "prune single weights" in str(told.value)


def test_weights_that_are_computed_in_each_pass_are_refused_in_one_line():
    made = network()
    prune.ln_structured(made.features[0], "weight", amount=1, n=2, dim=0)
    with pytest.raises(InputError, match=r"prune\.remove"):
        slim(made)
    prune.remove(made.features[0], "weight")
    assert boundaries(slim(made))[0].channels == 2
