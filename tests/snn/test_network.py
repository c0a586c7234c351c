from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn

from robustsnn.errors import InputError
from robustsnn.snn import lif_fused
from robustsnn.snn.activity import record_activity
from robustsnn.snn.architectures import architectures
from robustsnn.snn.conversion import calibrate, convert, percentile
from robustsnn.snn.encoding import poisson
from robustsnn.snn.energy import energy, energy_from_counts
from robustsnn.snn.network import Network, NetworkConfig

SMALL = {
    "vgg5": (4, 6, 6),
    "vgg11": (4, 4, 4, 6, 6, 6, 6, 6),
    "vgg16": (4,) * 13,
    "resnet12": (4, 6, 6, 8),
}


def small(name="vgg5", kind="snn", **changes):
    torch.manual_seed(0)
    settings = {
        "architecture": name,
        "kind": kind,
        "classes": 5,
        "image": (3, 32, 32),
        "widths": SMALL[name],
        "classifier": () if name == "resnet12" else (8,),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "time_steps": 1 if kind == "ann" else 4,
        **changes,
    }
    network = Network(NetworkConfig(**settings)).eval()
    for layer in network.spiking_layers().values():
        layer.threshold.data.fill_(0.1)
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.normal_(0, 0.3)
    return network


def images(n=4, shape=(3, 32, 32)):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(5))


def test_published_parameter_counts():
    """The published CIFAR networks have 50.60, 61.73 and 39.92 million parameters."""
    for name, classes, millions in (
        ("vgg5", 10, 50.60),
        ("vgg11", 100, 61.73),
        ("vgg16", 10, 39.92),
    ):
        with torch.device("meta"):
            network = Network(
                NetworkConfig(
                    architecture=name,
                    kind="ann",
                    classes=classes,
                    image=(3, 32, 32),
                    mean=(0,) * 3,
                    std=(1,) * 3,
                )
            )
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(
            millions, abs=0.006
        )


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_architecture_as_twins(name):
    assert set(SMALL) == set(architectures())
    ann, snn = small(name, "ann"), small(name, "snn")
    theirs = {k: tuple(v.shape) for k, v in ann.state_dict().items()}
    ours = {k: tuple(v.shape) for k, v in snn.state_dict().items()}
    dynamics = {k for k in ours if k.endswith((".threshold", ".leak"))}
    assert {k: ours[k] for k in ours.keys() - dynamics} == theirs
    assert len(dynamics) == 2 * len(snn.spiking_layers())
    for network in (ann, snn):
        leaf = images().requires_grad_()
        logits = network(leaf)
        assert logits.shape == (4, 5)
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), leaf)
        assert gradient.shape == leaf.shape and torch.isfinite(gradient).all()


def test_an_ann_is_the_plain_sequence_of_its_layers():
    ann = small(kind="ann")
    x = (images() - 0.5) / 0.5
    for module in (*ann.features, *ann.classifier):
        x = module(x)
    torch.testing.assert_close(ann(images()), x)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_state_is_fresh_and_nothing_leaks_across_images(name):
    network = small(name).double()
    batch = images().double()
    first = network(batch)
    network(torch.rand_like(batch))
    assert torch.equal(network(batch), first)
    alone = torch.cat([network(batch[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(alone, first, rtol=1e-12, atol=1e-12)


def test_resnet_sums_the_shortcut_into_the_same_membrane():
    network = small("resnet12").double()
    block = network.features[-2]
    x = torch.rand(2, 3, 6, 4, 4, dtype=torch.float64)
    seen = {}
    block.outer.register_forward_pre_hook(lambda m, a: seen.update(current=a[0]))

    def step(module, y):
        if module in (block.inner, block.outer):
            return module(y, 2, None)[0]
        if module is block.drop:
            return module(y)
        return module(y.flatten(0, 1)).unflatten(0, y.shape[:2])

    block.run(x, step)
    y = block.inner(block.first(x.flatten(0, 1)).unflatten(0, (2, 3)), 2)[0]
    expected = block.second(y.flatten(0, 1)) + block.shortcut(x.flatten(0, 1))
    torch.testing.assert_close(seen["current"].flatten(0, 1), expected)


def test_membranes_carry_over_between_runs():
    network = small().double()
    batch = images().double()
    whole, _ = network.run(batch, steps=4)
    first, state = network.run(batch, steps=2)
    second, _ = network.run(batch, steps=2, state=state)
    torch.testing.assert_close(first + second, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 9])
@pytest.mark.parametrize("options", [{}, {"readout": "mean"}, {"encoding": "poisson"}])
def test_recomputing_in_segments_changes_nothing_but_memory(options, length):
    network = small(time_steps=7, **options).double()
    state = {
        name: torch.full_like(membrane, 0.03).requires_grad_()
        for name, membrane in network.run(images().double())[1].items()
    }
    found = []
    for network.recompute in (None, length):
        batch = images().double().requires_grad_()
        logits, final = network.run(batch, state=state)
        score = logits.square().sum() + sum(m.square().sum() for m in final.values())
        leaves = [batch, *state.values(), *network.parameters()]
        found.append([logits, *final.values(), *torch.autograd.grad(score, leaves)])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)


def test_segments_bound_what_a_gradient_keeps():
    """The bytes saved for the backward pass, counted by the hooks of autograd."""
    network = small(time_steps=64).requires_grad_(False)
    kept = {}
    for network.recompute in (None, 8):
        batch = images().requires_grad_()
        held = {}

        def pack(tensor, held=held):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = network(batch)
        kept[network.recompute] = sum(held.values())
        assert logits.requires_grad
    assert kept[8] < kept[None] / 4, kept


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_finished_gradient_leaves_nothing_for_the_garbage_collector(name):
    network = small(name).requires_grad_(False)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for network.recompute in (None, 2):
            batch = images().requires_grad_()
            torch.autograd.grad(network(batch).sum(), batch)
        gc.collect()
        assert not [o for o in gc.garbage if isinstance(o, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_pool_taken_with_the_spikes_changes_nothing(name):
    network = small(name)
    found = []
    for watched in (False, True):
        handles = []
        if watched:
            # A hook must see the spikes themselves, so the pool is computed separately then.
            seen = []
            for layer in network.spiking_layers().values():
                hook = layer.register_forward_hook(lambda m, a, o, seen=seen: seen.append(o[0]))
                handles.append(hook)
        x = images().requires_grad_()
        logits = network(x)
        found.append((logits, torch.autograd.grad(logits.square().sum(), x)[0]))
        for handle in handles:
            handle.remove()
    assert {v for o in seen for v in o.unique().tolist()} <= {0.0, 1.0}
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * a.abs().max().item())


class HalfPool(nn.AvgPool2d):
    """A pool of its own."""

    def forward(self, x):
        return super().forward(x) / 2


def test_only_a_plain_pool_is_taken_with_the_spikes(monkeypatch):
    network = small("vgg5")
    taken = []
    kernel = lif_fused.forward_pooled
    monkeypatch.setenv("ROBUSTSNN_LIF", "fused")
    monkeypatch.setattr(lif_fused, "forward_pooled", lambda *a: (taken.append(1), kernel(*a)))
    plain = network(images())
    assert len(taken) == 2
    pools = [i for i, m in enumerate(network.features) if isinstance(m, nn.AvgPool2d)]

    def taken_with(pool):
        taken.clear()
        for i in pools:
            network.features[i] = pool
        return network(images()), len(taken)

    for other in (HalfPool(2), nn.AvgPool2d(2, ceil_mode=True), nn.AvgPool2d(2, 2, 0)):
        logits, count = taken_with(other)
        plainly = type(other) is nn.AvgPool2d and not other.ceil_mode
        assert count == (2 if plainly else 0)
        assert torch.equal(logits, plain) != isinstance(other, HalfPool)
    for spoil in (
        lambda pool: setattr(pool, "divisor_override", 1),
        lambda pool: setattr(pool, "forward", lambda x: nn.functional.avg_pool2d(x, 2) * 3),
        lambda pool: pool.register_full_backward_pre_hook(lambda m, g: None),
    ):
        pool = nn.AvgPool2d(2)
        spoil(pool)
        assert taken_with(pool)[1] == 0


def test_training_mode_does_not_recompute():
    network = small(time_steps=4, dropout=0.5).train()
    results = []
    for network.recompute in (None, 2):
        torch.manual_seed(3)
        results.append(network(images()))
    assert torch.equal(*results)


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_layout_of_the_images_does_not_matter(name, kind):
    network = small(name, kind).double()
    batch = images().double()
    found = []
    for given in (batch, batch.contiguous(memory_format=torch.channels_last)):
        x = given.clone().requires_grad_()
        logits = network(x)
        found.append((logits, torch.autograd.grad(logits.square().sum(), x)[0]))
    assert found[0][1].is_contiguous()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_first_layer_sees_a_static_image_once():
    network = small()
    seen = []
    network.features[0].register_forward_hook(lambda m, a, o: seen.append(len(a[0])))
    network(images())
    assert seen == [4]


def test_mean_readout_divides_by_time():
    torch.testing.assert_close(small(readout="mean")(images()) * 4, small()(images()))


def test_wrong_shape_names_both():
    with pytest.raises(InputError, match=r"3, 32, 32.*\[2, 1, 28, 28\]"):
        small()(torch.zeros(2, 1, 28, 28))


def test_deepcopy_runs_on_its_own_layers():
    network = small()
    copied = copy.deepcopy(network)
    for layer in copied.spiking_layers().values():
        layer.threshold.data.fill_(100.0)
    assert copied(images()).abs().sum() == 0
    assert network(images()).abs().sum() > 0


def test_poisson_draws_belong_to_the_key_and_average_to_the_pixel():
    x = torch.linspace(-1, 1, 12).reshape(1, 3, 2, 2).repeat(3, 1, 1, 1)
    keys = torch.tensor([11, 4, 11])
    spikes = poisson(x, 4000, keys)
    assert set(spikes.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert torch.equal(spikes[:, 0], spikes[:, 2])
    assert not torch.equal(spikes[:, 0], spikes[:, 1])
    assert (spikes.mean(0) - x).abs().max() < 0.05
    assert torch.equal(poisson(x[1:2].double(), 4000, keys[1:2])[:, 0], spikes[:, 1].double())
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(poisson(leaf, 5, keys).sum(), leaf)
    assert torch.equal(gradient, torch.full_like(x, 5.0))


def test_poisson_network_is_seeded_by_keys():
    network = small(encoding="poisson")
    assert network.stochastic
    batch = images(1).repeat(2, 1, 1, 1)
    same = network(batch, torch.tensor([3, 3]))
    other = network(batch, torch.tensor([3, 8]))
    assert torch.equal(same[0], same[1])
    assert not torch.equal(other[0], other[1])


def test_percentile_is_the_published_rank():
    values = torch.randperm(1001).float()
    assert percentile(values, 99.7) == sorted(values.tolist())[1 + round(0.997 * 1000) - 1]


def test_conversion_calibrates_each_layer_on_spikes_of_those_before():
    ann = small(kind="ann")
    config = small().config
    batch = images(8)
    snn = convert(ann, config, [batch], scale=0.5, steps=3)
    assert torch.equal(snn.features[0].weight, ann.features[0].weight)
    x = (batch - 0.5) / 0.5
    current = ann.features[0](x)
    expected = 0.5 * percentile(current, 99.7)
    assert snn.features[1].threshold.item() == pytest.approx(expected, rel=1e-6)
    spikes, _ = snn.features[1](current.unsqueeze(0), 3)
    second = [snn.features[3](snn.features[2](s)) for s in spikes]
    expected = 0.5 * max(percentile(c, 99.7) for c in second)
    assert snn.features[4].threshold.item() == pytest.approx(expected, rel=1e-6)
    before = {n: p.clone() for n, p in snn.named_parameters()}
    calibrate(snn, [batch], steps=3, q=99.7, scale=0.5)
    assert all(torch.equal(p, before[n]) for n, p in snn.named_parameters())


def test_activity_counts_what_fires():
    network = small().train()
    network.requires_grad_(False)
    activity = record_activity(network, images(5), batch_size=2)
    assert network.training
    fired = {}
    for name, layer in network.spiking_layers().items():
        layer.register_forward_hook(lambda m, a, o, n=name: fired.update({n: o[0]}))
    network.eval()(images(5))
    assert [layer.name for layer in activity.layers] == list(fired)
    for layer in activity.layers:
        expected = fired[layer.name].flatten(1).mean(1).tolist()
        assert list(layer.spikes_per_step) == pytest.approx(expected, rel=1e-6)
        assert layer.neurons == fired[layer.name][0, 0].numel()
    assert [s.feeds for s in activity.synapses] == [*fired, None]
    assert len(activity.synapses[0].input_per_step) == 1


VGG11_MACS = [1.77, 18.87, 75.50, 75.50, 150.99, 150.99, 37.75, 37.75, 33.55, 16.78, 0.41]


def test_energy_reproduces_the_worked_example():
    """VGG11 on CIFAR-100 with the published spike counts, direct coding and T = 8."""
    macs = [m * 1e6 for m in VGG11_MACS]
    same = [1, 0.67, 0.16, 0.20, 0.12, 0.07, 0.16, 0.12, 0.29, 0.29, 0.0]
    entering = [1, 0.97, 0.67, 0.46, 0.20, 0.12, 0.16, 0.16, 0.12, 0.29, 0.29]
    assert energy_from_counts(macs, same, True) == pytest.approx(92.5, abs=0.2)
    assert energy_from_counts(macs, entering, True) == pytest.approx(163.9, abs=0.5)


def test_macs_are_those_published():
    with torch.device("meta"):
        network = Network(
            NetworkConfig(
                architecture="vgg11",
                kind="ann",
                classes=100,
                image=(3, 32, 32),
                mean=(0,) * 3,
                std=(1,) * 3,
            )
        )
    network = network.to_empty(device="cpu")
    for parameter in network.parameters():
        parameter.data.fill_(0.01)
    activity = record_activity(network, images(1))
    assert [round(s.macs / 1e6, 2) for s in activity.synapses] == VGG11_MACS
    assert energy(network, activity).ann_uj == pytest.approx(2759, abs=1)
