"""Copies of networks of other libraries: whatever they hold, a copy says what the library says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustsnn
from robustsnn.errors import InputError
from robustsnn.foreign.wrap import adapted, wrap
from robustsnn.foreign.wrapped import Wrapped
from robustsnn.models.subject import subject_of
from robustsnn.snn.copying import copy_of
from tests.foreign.networks import SnnTorch, SpikingJelly, forget, images, lively, needs, quiet

STEPS = 4


class Recurrent(nn.Module):
    """A layer of recurrent neurons whose output is read out over time."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.fc1, self.fc2 = nn.Linear(784, 20), nn.Linear(20, 10)
        self.lif = self._neurons(kind)
        lively(self, 3)

    def _neurons(self, kind: str) -> Any:
        if kind.startswith("snntorch"):
            import snntorch

            hidden = {"init_hidden": True} if kind.endswith("hidden") else {}
            if "RLeaky" in kind:
                return snntorch.RLeaky(beta=0.9, linear_features=20, **hidden)
            if "RSynaptic" in kind:
                return snntorch.RSynaptic(alpha=0.8, beta=0.9, linear_features=20, **hidden)
            return snntorch.SLSTM(20, 20, **hidden)
        if kind.startswith("norse"):
            import norse.torch as norse

            return norse.LIFRecurrentCell(20, 20)
        from spikingjelly.activation_based import layer, neuron

        recurrent = {"step_mode": "m" if kind.endswith("multi") else "s"}
        return layer.LinearRecurrentContainer(
            neuron.LIFNode(), in_features=20, out_features=20, bias=True, **recurrent
        )

    def forward(self, x: Tensor) -> Any:
        current = self.fc1(x.flatten(1))
        if self.kind.endswith("multi"):
            return self.fc2(self.lif(torch.stack([current] * STEPS))).sum(0)
        state: Any = None
        total: Any = 0.0
        for _ in range(STEPS):
            if self.kind.startswith("spikingjelly") or self.kind.endswith("hidden"):
                found = self.lif(current)
            elif self.kind.startswith("norse"):
                found, state = self.lif(current, state)
            else:
                found, *state = self.lif(current, *(state or ()))
            total = total + self.fc2(found[0] if isinstance(found, tuple) else found)
        return total


class Shared(nn.Module):
    """One linear layer and one kind of neuron in two places, in a list and under two names."""

    def __init__(self) -> None:
        super().__init__()
        import snntorch

        torch.manual_seed(0)
        linear = nn.Linear(20, 20)
        self.fc = nn.Linear(784, 20)
        self.blocks = nn.ModuleList([linear, snntorch.Leaky(beta=0.9), linear])
        self.again, self.read = self.blocks[1], nn.Linear(20, 10)
        lively(self, 3)

    def forward(self, x: Tensor) -> Any:
        one, two = self.blocks[1].reset_mem(), self.again.reset_mem()  # type: ignore[operator]
        total: Any = 0.0
        for _ in range(STEPS):
            spikes, one = self.blocks[1](self.blocks[0](self.fc(x.flatten(1))), one)
            spikes, two = self.again(self.blocks[2](spikes), two)
            total = total + self.read(spikes)
        return total


def of(name: str, package: str, make: Callable[[], nn.Module]) -> Any:
    return pytest.param(quiet(make), id=name, marks=needs(package))


NETWORKS = [
    of(kind, kind.split("-")[0], lambda kind=kind: Recurrent(kind))  # type: ignore[misc]
    for kind in (
        "snntorch-RLeaky", "snntorch-RLeaky-hidden", "snntorch-RSynaptic", "snntorch-SLSTM",
        "norse-LIFRecurrentCell", "spikingjelly-single", "spikingjelly-multi",
    )
] + [of("snntorch-shared", "snntorch", Shared)]  # fmt: skip


@pytest.mark.parametrize("make", NETWORKS)
def test_a_copy_right_after_a_training_step_says_what_the_library_says(
    make: Callable[[], nn.Module],
) -> None:
    network, x = make(), images()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    nn.functional.cross_entropy(network(x), torch.arange(8)).backward()
    optimizer.step()
    # The states of the last pass are still there, with their graph.
    network.eval()
    copied = copy_of(adapted(network))
    assert isinstance(copied, Wrapped)
    done = robustsnn.evaluate(network, (x, torch.arange(8)), attack="fgsm", batch_size=8)
    said = done.records[done.records["attack"] == "clean"].sort_values("image_id")
    _forget_all(network)
    with torch.no_grad():
        expected = network(x)
        assert torch.equal(copied(x), expected) and torch.equal(copied(x), expected)
    assert said["prediction"].tolist() == expected.argmax(1).tolist()
    flags = {flag["flag"] for flag in done.manifest.flags}
    assert not flags & {"state-leak", "repeatable", "randomised", "alone-as-in-batch"}
    ours = {id(one) for one in network.modules()}
    assert not any(id(one) in ours for one in copied.modules())


def _forget_all(network: nn.Module) -> None:
    """Reset as the documentation of the library says, recurrent neurons too."""
    forget(network)
    for module in network.modules():
        if hasattr(module, "reset_mem"):
            module.reset_mem()  # type: ignore[operator]


@needs("snntorch")
@quiet
def test_neurons_that_are_called_by_a_function_are_those_of_the_copy() -> None:
    class Called(SnnTorch):
        def __init__(self) -> None:
            super().__init__()
            self.first = lambda x, mem: self.lif1(x, mem)

        def forward(self, x: Tensor) -> Any:
            mem, found = self.lif1.reset_mem(), []
            for _ in range(self.steps):
                spikes, mem = self.first(self.conv(x), mem)
                found.append(self.fc(self.pool(spikes).flatten(1)))
            return torch.stack(found).sum(0)

    torch.manual_seed(0)
    network: Any = lively(Called(), 3).eval()
    done = robustsnn.evaluate(network, (images(), torch.arange(8)), attack="fgsm")
    assert done.manifest.foreign is not None
    assert (
        "estimators reach 1 of 1 layer, 1 layer never called" in done.manifest.foreign["sentence"]
    )
    copied: Any = copy_of(adapted(network))
    with torch.no_grad():
        before = network(images())
        copied.inner.lif1.threshold.fill_(1e9)
        assert not torch.equal(copied(images()), before)
        assert torch.equal(network(images()), before)


FACTORY = """
import threading, torch
from tests.foreign.networks import SpikingJelly

made = []

def build():
    network = SpikingJelly("s")
    network.lock = threading.Lock()
    made.append(network)
    return network

def same():
    return made[0] if made else build()
"""


@needs("spikingjelly")
@quiet
def test_what_cannot_be_copied_its_factory_makes_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "factory_with_a_lock.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    data = (images(), torch.arange(8))
    torch.manual_seed(0)
    done = robustsnn.evaluate("factory_with_a_lock:build", data, attack="fgsm")
    assert done.manifest.foreign is not None and done.manifest.foreign["reached"] == 2
    import factory_with_a_lock  # type: ignore[import-not-found]

    first, *others = factory_with_a_lock.made
    # Weights are drawn anew at every call, and each network has been given those of the first.
    assert len(others) > 1
    for other in others:
        assert all(
            torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)
        )
    network = SpikingJelly("s")
    network.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(InputError, match="cannot be copied"):
        robustsnn.evaluate(network, data, attack="fgsm")
    with pytest.raises(InputError, match="one and the same network at every call"):
        subject_of("factory_with_a_lock:same").load()


@needs("snntorch")
@quiet
def test_wrap_works_on_the_network_itself() -> None:
    torch.manual_seed(0)
    network = lively(SnnTorch(), 3).eval()
    assert wrap(network).inner is network
