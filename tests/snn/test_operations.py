"""Operations counted by hand, one input and one weight after the other, and what they cost."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from robustsnn.snn.activity import record_activity
from robustsnn.snn.energy import COSTS, Traffic, cost, energies, energy
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.snn.operations import (
    LayerOperations,
    Operations,
    count_operations,
    counted,
    fan_out,
    operations_per_image,
    with_synapses,
)

SHAPE = (2, 8, 8)
CASES = [("vgg5", "snn", "direct"), ("vgg5", "snn", "poisson"), ("vgg5", "ann", "direct")]
CASES += [("resnet12", "snn", "direct")]


def network(architecture="vgg5", kind="snn", encoding="direct", steps=3) -> Network:
    torch.manual_seed(3)
    config = NetworkConfig(
        architecture=architecture, kind=kind, classes=4, image=SHAPE,
        widths=(3, 4, 5) if architecture == "vgg5" else (2, 3, 4, 5),
        classifier=(7,) if architecture == "vgg5" else (), mean=(0.5,) * 2,
        std=(0.5 if encoding == "poisson" else 0.25,) * 2, encoding=encoding,
        time_steps=steps if kind == "snn" else 1,
    )  # fmt: skip
    made = Network(config).eval()
    for layer in made.modules():
        if isinstance(layer, nn.Linear):
            # Positive ones, so that no layer of so small a network is silent.
            nn.init.uniform_(layer.weight, 0.1, 0.5)
    for neurons in made.spiking_layers().values():
        neurons.threshold.data.fill_(0.1)
    return made


def prune(made: Network, share: float = 0.5) -> Network:
    """Set a random share of the weights of each layer to zero."""
    generator = torch.Generator().manual_seed(5)
    for layer in with_synapses(made).values():
        order = torch.randperm(layer.weight.numel(), generator=generator)
        layer.weight.data.view(-1)[order[: int(share * len(order))]] = 0
    return made


def images(count=5):
    return torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(1))


def one_by_one(layer, x: torch.Tensor) -> int:
    """The operations of a layer on one input, by every product that its sum consists of."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        pairs = itertools.product(range(weight.shape[0]), range(weight.shape[1]))
        return sum(bool(weight[o, i] != 0) and bool(x[i] != 0) for o, i in pairs)
    found = 0
    (size, _), (stride, _), (padding, _) = layer.kernel_size, layer.stride, layer.padding
    rows = (x.shape[1] + 2 * padding - size) // stride + 1
    columns = (x.shape[2] + 2 * padding - size) // stride + 1
    places = itertools.product(range(rows), range(columns), range(size), range(size))
    for r, c, i, j in places:
        y, z = r * stride + i - padding, c * stride + j - padding
        if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
            there = (weight[:, :, i, j] != 0) & (x[None, :, y, z] != 0)
            found += int(there.sum())
    return found


def inputs_of(made: Network, some: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each layer with synapses receives from one image, `[pass, ...]`."""
    seen: dict[str, torch.Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda m, a, n=name: seen.__setitem__(n, a[0].clone()))
        for name, layer in with_synapses(made).items()
    ]
    with torch.no_grad():
        made(some)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize(("architecture", "kind", "encoding"), CASES)
def test_every_product_is_counted_once(architecture, kind, encoding, pruned):
    made = network(architecture, kind, encoding)
    if pruned:
        prune(made)
    one = images(1)
    layers, seen = with_synapses(made), inputs_of(made, one)
    by_hand = {n: sum(one_by_one(layers[n], x) for x in inputs) for n, inputs in seen.items()}
    found = count_operations(made, one)
    assert {layer.name: layer.synaptic for layer in found.layers} == by_hand
    assert operations_per_image(made, one).tolist() == [sum(by_hand.values())]
    assert all(value > 0 for value in by_hand.values())
    ones = {n: torch.ones_like(x) for n, x in seen.items()}
    for layer in found.layers:
        plain = layers[layer.name]
        plain.weight.data.fill_(1)
        assert layer.dense == sum(one_by_one(plain, x) for x in ones[layer.name])
        assert layer.passes == len(seen[layer.name])


@pytest.mark.parametrize(("architecture", "kind", "encoding"), CASES)
def test_counts_do_not_depend_on_the_batch(architecture, kind, encoding):
    made = network(architecture, kind, encoding)
    some, keys = images(7), torch.arange(10, 17)
    alone = torch.cat(
        [operations_per_image(made, some[i : i + 1], keys[i : i + 1]) for i in range(7)]
    )
    assert torch.equal(operations_per_image(made, some, keys, batch_size=3), alone)
    assert len(set(alone.tolist())) > 1 or kind == "ann"
    whole = count_operations(made, some, keys, batch_size=4)
    assert whole.images == 7
    assert whole.synaptic_operations == pytest.approx(float(alone.mean()), rel=1e-12)


def test_what_a_layer_receives_is_told_apart():
    kinds = [layer.inputs for layer in count_operations(network(), images()).layers]
    assert kinds == ["analog", "pooled", "spikes", "pooled", "spikes"]
    kinds = [x.inputs for x in count_operations(network(encoding="poisson"), images()).layers]
    assert kinds == ["spikes", "pooled", "spikes", "pooled", "spikes"]
    ann = count_operations(network(kind="ann"), images())
    assert {layer.inputs for layer in ann.layers} == {"analog"}
    assert ann.effective_macs == ann.synaptic_operations and ann.membrane_updates == 0


def test_a_static_image_is_convolved_once_whatever_the_time_steps():
    few, many = (count_operations(network(steps=t), images()) for t in (2, 6))
    assert few.layers[0] == many.layers[0] and few.layers[0].passes == 1
    assert [layer.passes for layer in many.layers[1:]] == [6] * 4
    assert many.membrane_updates == 3 * few.membrane_updates


def test_neurons_and_activations_are_those_of_the_record():
    made, some = network(), images()
    found, recorded = count_operations(made, some), record_activity(made, some)
    neurons = sum(layer.neurons for layer in recorded.layers)
    assert found.membrane_updates == neurons * made.time_steps
    spikes = sum(layer.neurons * sum(layer.spikes_per_step) for layer in recorded.layers)
    rate = spikes / (neurons * made.time_steps)
    assert found.activation_sparsity == pytest.approx(1 - rate)
    held = sum(p.numel() for p in made.parameters()) + 2 * SHAPE[0]
    assert found.footprint_bytes == 4 * held


def test_half_of_the_weights_make_half_of_the_operations():
    """Of the same inputs; what the network fires after pruning is another matter."""
    made, some = network(), images(3)
    seen = inputs_of(made, some)
    before = {n: fan_out(layer, seen[n].shape[1:]) for n, layer in with_synapses(made).items()}
    prune(made)
    found = count_operations(made, some)
    assert found.connection_sparsity == pytest.approx(0.5, abs=0.01)
    for name, layer in with_synapses(made).items():
        active = (seen[name] != 0).double()
        whole = (active * before[name]).sum()
        left = (active * fan_out(layer, seen[name].shape[1:])).sum()
        # Which weights are left is random, and the first layer has few of them.
        assert 0.35 < float(left / whole) < 0.65, name
    assert found.synaptic_operations < 0.65 * found.dense
    assert [layer.kept for layer in found.layers] == [
        layer.weights - layer.weights // 2 for layer in found.layers
    ]
    assert energy(made, record_activity(made, some)).ann_uj == pytest.approx(
        0.5 * energy(network(), record_activity(network(), some)).ann_uj, rel=0.05
    )


def test_counting_leaves_the_passes_as_they_are():
    made, some = network(), images()
    plain = made(some)
    with counted(made) as passes:
        assert torch.equal(made(some), plain)
        made(some[:2])
    assert [len(p) for p in passes] == [5, 2]
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in made.modules())


def test_padding_of_every_kind_is_that_of_the_layer():
    x = torch.Size([1, 4, 4])
    around = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    assert fan_out(around, x).unique().tolist() == [9]
    strided = nn.Conv2d(1, 2, 2, stride=2, bias=True)
    assert fan_out(strided, x).unique().tolist() == [2]
    grouped = nn.Conv2d(4, 4, 1, groups=2, bias=False)
    assert fan_out(grouped, torch.Size([4, 2, 2])).unique().tolist() == [2]


def test_costs_are_those_of_the_sources():
    assert {n: (t.mac_pj, t.ac_pj, t.width) for n, t in COSTS.items()} == {
        "fp32": (4.6, 0.9, 4),
        "fp16": (1.5, 0.4, 2),
        "int32": (3.2, 0.1, 4),
        "int8": (0.23, 0.03, 1),
    }
    assert {table.memory_pj_per_byte for table in COSTS.values()} == {8 * 3.12}


def test_energy_is_worked_out_by_hand():
    layers = (
        LayerOperations("a", "analog", 1, 10, 10, 1000.0, 900.0, 5.0),
        LayerOperations("b", "pooled", 4, 10, 5, 4000.0, 600.0, 0.0),
        LayerOperations("c", "spikes", 4, 10, 5, 4000.0, 300.0, 0.0),
    )
    found = Operations(1, layers, membrane_updates=50.0, activation_sparsity=0.9, footprint_bytes=0)
    assert (found.effective_macs, found.effective_acs, found.pooled_operations) == (1500, 300, 600)
    assert Traffic.of(found) == (1800, 5, 50, 50)
    fp32 = cost(found, COSTS["fp32"])
    assert fp32.compute_uj == pytest.approx((1500 * 4.6 + 300 * 0.9) * 1e-6)
    assert fp32.memory_uj == pytest.approx(1905 * 4 * 24.96e-6)
    literature = cost(found, COSTS["fp32"], pooled_as_spikes=True)
    assert literature.compute_uj == pytest.approx((900 * 4.6 + 900 * 0.9) * 1e-6)
    by_name = energies(found)
    assert by_name["memory_int8_uj"] == pytest.approx(1905 * 24.96e-6)
    assert by_name["compute_fp32_pooled_as_spikes_uj"] == literature.compute_uj
    assert found.connection_sparsity == pytest.approx(1 / 3)


def test_the_energy_of_papers_stays_for_dense_networks_and_falls_for_pruned_ones():
    """Without zero weights it is the sum that this module has always computed, bit for bit."""
    made, some = network(), images()
    recorded = record_activity(made, some)
    macs = [float(s.macs) for s in recorded.synapses]
    entering = [sum(s.input_per_step) for s in recorded.synapses]
    total = 0.0
    for place, (dense, rate) in enumerate(zip(macs, entering, strict=True)):
        total += 4.6 * dense if place == 0 else 0.9 * dense * rate
    assert energy(made, recorded).snn_input_uj == total * 1e-6
    assert energy(made, recorded).ann_uj == 4.6 * sum(macs) * 1e-6
