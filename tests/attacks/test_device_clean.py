"""Attacks ask the host once in a step: which images are done. A device that stands in counts it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.estimators import assg
from robustsnn.estimators.make import make_estimator
from robustsnn.evaluation.suites import load_suite
from robustsnn.snn.network import Network, NetworkConfig

#: A type of device that torch knows everywhere, and on which nothing of ours runs.
DEVICE = torch.device("meta")
TO_HOST, TO_DEVICE, MASK = "to the host", "to the device", "a mask of unknown length"
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    # What runs on the device; the fused kernel of the CPU rounds gradients in another way.
    monkeypatch.setenv("ROBUSTSNN_LIF", "reference")
    yield
    # It would hold tensors of a device that is gone after the test.
    assg._places.cache_clear()


class There(Tensor):
    """A tensor that says it is on the device and keeps its values `held` elsewhere."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> There:
        made: There = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )
        return made

    def __init__(self, inner: Tensor) -> None:
        self.held = inner.detach()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside the counting")


class Counting(TorchDispatchMode):
    """Everything that such tensors do, on the CPU, and how often the host waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        there = [x for x in given if isinstance(x, There)]
        here = [x for x in given if not isinstance(x, There) and x.dim() > 0]
        goal = kwargs.get("device")
        if there:
            if name in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "unique2"):
                self.seen[TO_HOST] += 1
            if goal is not None and torch.device(goal).type == "cpu":
                self.seen[TO_HOST] += 1
            if name in INDEXING:
                indices = [i for i in args[1] if i is not None]
                # A scalar under a mask is filled in without knowing how many entries there are.
                fills = name != "index" and args[2].numel() == 1
                self.seen[MASK] += any(i.dtype == torch.bool for i in indices) and not fills
                self.seen[TO_DEVICE] += len(here)
            elif name not in ("copy_", "_to_copy"):
                assert not here, f"{name} of tensors here and there"
            elif name == "copy_":
                self.seen[TO_DEVICE if isinstance(args[0], There) else TO_HOST] += bool(here)
        moves = goal is not None and torch.device(goal).type == DEVICE.type
        if moves:
            self.seen[TO_DEVICE] += bool(here) and name == "_to_copy"
            kwargs["device"] = torch.device("cpu")
        inner = tree_map(lambda x: x.held if isinstance(x, There) else x, (args, kwargs))
        found = func(*inner[0], **inner[1])
        stays = bool(there) and not (goal is not None and not moves)
        # What is changed in place stays the same object.
        same = {id(x.held): x for x in there}

        def out(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            if id(x) in same:
                return same[id(x)]
            return There(x) if stays or moves else x

        return tree_map(out, found)


def small() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network(
            NetworkConfig(
                architecture="vgg5", kind="snn", classes=4, image=(1, 8, 8),
                widths=(3, 4, 4), classifier=(8,), mean=(0.2,), std=(0.3,), time_steps=2,
            )
        ).eval()  # fmt: skip
    for layer in network.spiking_layers().values():
        with torch.no_grad():
            layer.threshold.fill_(0.05)
    return network


def moved(network: Network) -> Network:
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(There(parameter.detach()))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = There(buffer)
    return network


def attacked(spec: str, estimator: str, norm: str, on_device: bool):
    """The proposals, the defects of gradients, and what was counted."""
    assg._places.cache_clear()
    attack, network = load_attack(spec), small()
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = network(images).argmax(1)
    threat = ThreatModel(norm, "0.02" if norm == "Linf" else "0.1")
    with Counting() as counting:
        if on_device:
            network, images, labels = moved(network), There(images), There(labels)
        victim = Victim(network, make_estimator(estimator, network), range(5), micro_batch=8)
        victim.start = images
        rng = Rng(0, range(5))
        before = counting.seen.copy()
        found = attack(victim, images, labels, threat, rng)
        seen = counting.seen - before
        zero = victim.zero_grad
        assert found.device == images.device
        found = found.held if isinstance(found, There) else found
    return found, zero, seen


#: Attacks of suites, for a number of steps, and what a step may ask of the host.
ATTACKS = [
    ("sa-pgd:steps={}", 1),
    ("sa-pgd:steps={},early_exit=no", 0),
    ("apgd:steps={},loss=margin", 1),
    ("apgd:steps={},early_exit=no", 0),
    ("apgd:steps={},loss=targeted-dlr,targets=1,early_exit=no", 0),
    ("pgd:steps={},loss=margin", 1),
    ("pgd:steps={},early_exit=no,iterate=last", 0),
    ("square:queries={}", 1),
    ("square:queries={},warm=yes", 1),
]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(("spec", "most"), ATTACKS, ids=[spec for spec, _ in ATTACKS])
def test_a_step_asks_the_host_at_most_once(spec, most, norm):
    counts = []
    for steps in (3, 9):
        text = spec.format(steps)
        found, zero, seen = attacked(text, "bptt", norm, on_device=True)
        wanted, wanted_zero, _ = attacked(text, "bptt", norm, on_device=False)
        # The stand-in computes what the CPU does.
        assert torch.equal(found, wanted)
        assert torch.equal(zero, wanted_zero)
        counts.append(seen)
    few, many = counts
    assert many[MASK] == 0
    # Images that are done leave the batch at the same steps or at later ones; each time costs a
    # few copies, which do not belong to the steps.
    drops = 5
    growth = many[TO_HOST] - few[TO_HOST]
    assert growth <= 6 * most + (drops if most else 0), (few, many)
    assert many[TO_DEVICE] - few[TO_DEVICE] <= (4 * drops if most else 0), (few, many)


def test_fgsm_never_asks_the_host():
    found, zero, seen = attacked("fgsm", "bptt", "Linf", on_device=True)
    wanted, wanted_zero, _ = attacked("fgsm", "bptt", "Linf", on_device=False)
    assert torch.equal(found, wanted) and torch.equal(zero, wanted_zero)
    assert not seen


def estimators() -> list[str]:
    entries = [e for name in ("standard", "light") for e in load_suite(name).entries]
    return sorted({e.estimator for e in entries if e.estimator} - {"best", "auto"})


@pytest.mark.parametrize("estimator", estimators())
def test_no_estimator_of_the_suites_asks_the_host(estimator):
    counts = []
    for steps in (2, 5):
        spec = f"apgd:steps={steps},early_exit=no,loss=margin"
        found, _, seen = attacked(spec, estimator, "Linf", on_device=True)
        wanted, _, _ = attacked(spec, estimator, "Linf", on_device=False)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
        counts.append(seen)
    assert counts[0] == counts[1]


def test_the_stand_in_counts_what_it_is_for():
    with Counting() as counting:
        x = There(torch.tensor([1.0, 2.0, 3.0]))
        bool((x > 1).any())
        x.cpu()
        x.sum().item()
        assert counting.seen[TO_HOST] == 3
        x[x > 1]
        assert counting.seen[MASK] == 1
        x[x > 1] = 0.0
        assert counting.seen[MASK] == 1
        x[torch.tensor([0])]
        torch.zeros(2).to(DEVICE)
        assert counting.seen[TO_DEVICE] == 2
        assert x.held.tolist() == [1.0, 0.0, 0.0]
        with pytest.raises(AssertionError, match="here and there"):
            x + torch.zeros(3)
