"""A network that keeps more at every pass is refused, and one that keeps its last pass is not."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustsnn
from robustsnn.errors import InputError
from tests.foreign.networks import SnnTorch, SpikingJelly, needs, quiet

IMAGES = (torch.arange(8 * 784) * 37 % 256).reshape(8, 1, 28, 28).float() / 255
SEEN: list[Any] = []


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.read = nn.Linear(784, 12), nn.Linear(12, 3)
        self.last: Any = None
        self.all: Any = []

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.read(self.fc(x.flatten(1)).relu())
        return logits


def evaluated(network: nn.Module, output: Path | None = None) -> robustsnn.Evaluation:
    data = (IMAGES, torch.arange(8) % 3)
    return robustsnn.evaluate(network, data, attack="pgd:steps=2", output=output)


def in_an_attribute() -> nn.Module:
    class Keeps(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.all.append(super().forward(x))
            return self.all[-1]  # type: ignore[no-any-return]

    return Keeps()


def in_a_dict_of_lists() -> nn.Module:
    network = Net()
    network.all = {"fc": [], "read": []}
    for name in ("fc", "read"):

        def hook(module: nn.Module, given: Any, out: Tensor, name: str = name) -> None:
            network.all[name].append(out.detach())

        getattr(network, name).register_forward_hook(hook)
    return network


def in_a_variable_around_the_hook() -> nn.Module:
    network, kept = Net(), []
    network.fc.register_forward_hook(lambda module, given, out: kept.append(out))
    return network


def in_a_global() -> nn.Module:
    network = Net()
    network.fc.register_forward_hook(lambda module, given, out: SEEN.append(out))
    return network


def as_arrays() -> nn.Module:
    network, kept = Net(), []
    network.fc.register_forward_hook(lambda m, given, out: kept.append(out.detach().numpy()))
    return network


def by_an_object() -> nn.Module:
    class Recorder:
        def __init__(self) -> None:
            self.found: Any = deque()

        def __call__(self, module: nn.Module, given: Any, out: Tensor) -> None:
            self.found.append(out)

    network = Net()
    network.fc.register_forward_hook(Recorder())
    return network


def of_gradients() -> nn.Module:
    network, kept = Net(), []
    network.fc.register_full_backward_hook(lambda m, given, out: kept.append(out))
    return network


@quiet
def with_a_monitor() -> nn.Module:
    from spikingjelly.activation_based import monitor, neuron

    network: Any = SpikingJelly()
    network.monitor = monitor.OutputMonitor(network, neuron.LIFNode)
    return network  # type: ignore[no-any-return]


@quiet
def with_hooks_on_neurons() -> nn.Module:
    network, spikes = SnnTorch(), []
    network.lif1.register_forward_hook(lambda m, given, out: spikes.append(out[0]))
    return network


GROWING: list[Any] = [
    (in_an_attribute, "keeps more tensors after every pass (in all)"),
    (in_a_dict_of_lists, "keeps more tensors after every pass (in all)"),
    (in_a_variable_around_the_hook, "keeps more tensors after every pass (by a hook of fc)"),
    (in_a_global, "keeps more tensors after every pass (by a hook of fc)"),
    (as_arrays, "keeps more tensors after every pass (by a hook of fc)"),
    (by_an_object, "keeps more tensors after every pass (by a hook of fc)"),
    (of_gradients, "keeps more tensors after every pass (by a hook of fc)"),
    pytest.param(
        with_a_monitor, "keeps more tensors after every pass", marks=needs("spikingjelly")
    ),
    pytest.param(with_hooks_on_neurons, "by a hook of lif1", marks=needs("snntorch")),
]


@pytest.mark.parametrize(("make", "said"), GROWING)
@quiet
def test_what_collects_activations_is_refused(
    make: Callable[[], nn.Module], said: str, tmp_path: Path
) -> None:
    SEEN.clear()
    with pytest.raises(InputError) as caught:
        evaluated(make().eval(), tmp_path / "run")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def keeps_its_last_pass() -> nn.Module:
    network = Net()

    def hook(module: nn.Module, given: Any, out: Tensor) -> None:
        network.last, network.all[:] = out, [out.detach(), given[0]]

    network.fc.register_forward_hook(hook)
    return network


def keeps_numbers() -> nn.Module:
    network = Net()
    network.fc.register_forward_hook(lambda m, given, out: network.all.append(out.mean().item()))
    return network


def keeps_a_few_passes() -> nn.Module:
    network, kept = Net(), deque(maxlen=2)  # type: ignore[var-annotated]
    network.fc.register_forward_hook(lambda m, given, out: kept.append(out))
    return network


def fills_a_cache() -> nn.Module:
    class Caches(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.all = self.all or {}
            scale: Tensor = self.all.setdefault(tuple(x.shape), torch.ones(1))
            return super().forward(x) * scale

    return Caches()


def leads_its_state_from_pass_to_pass() -> nn.Module:
    class Leads(Net):
        """The graph of every pass is held, by a state that does not change what is computed."""

        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            self.last = logits.sum() + (0 if self.last is None else self.last)
            return logits

    return Leads()


def is_a_cycle() -> nn.Module:
    class Cycle(Net):
        def forward(self, x: Tensor) -> Tensor:
            held: list[Any] = [x.clone()]
            held.append(held)
            return super().forward(x)

    return Cycle()


STAYING = [
    keeps_its_last_pass, keeps_numbers, keeps_a_few_passes, fills_a_cache, is_a_cycle,
    leads_its_state_from_pass_to_pass,
]  # fmt: skip


@pytest.mark.parametrize("make", STAYING)
def test_what_stays_of_one_size_is_evaluated(make: Callable[[], nn.Module]) -> None:
    plain, found = evaluated(Net()), evaluated(make())
    assert found.accuracy == plain.accuracy
    wanted = [run.records["prediction"].tolist() for run in (plain, found)]
    assert wanted[0] == wanted[1]
