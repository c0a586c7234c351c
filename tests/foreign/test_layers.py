"""Which layers are found and how: order, containers, spike functions, thresholds, two libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustsnn
from robustsnn.foreign.wrap import wrap
from robustsnn.foreign.wrapped import Wrapped
from robustsnn.models.checkpoint import load_model
from robustsnn.snn.backward_rule import spiking_layers
from tests.foreign.networks import SnnTorch, SpikingJelly, forget, images, lively, needs, quiet
from tests.foreign.test_reach import ByRule, gradient
from tests.foreign.zoo_in_spikingjelly import TriangleOfTheZoo, _Spike


def holds(wrapped: Wrapped, x: Tensor) -> None:
    """The rule gives the gradient of the library, as the network is now."""
    expected = gradient(wrapped.inner, x)
    inside = x.clone().requires_grad_()
    with ByRule().applied(wrapped):
        logits = wrapped(inside)
    (found,) = torch.autograd.grad((logits * torch.linspace(-1, 1, 10)).sum(), inside)
    assert float(expected.norm()) > 0
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def triangle(x: Tensor) -> Any:
    return _Spike.apply(x, 0.6, 1.5, 0.8)


def of(name: str, package: str, make: Callable[[], nn.Module]) -> Any:
    return pytest.param(quiet(make), id=name, marks=needs(package))


class SpikeModule(nn.Module):
    """A spike function that is a module with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        hard = (x >= 0).to(x.dtype)
        soft = torch.sigmoid(self.width * x)
        return (hard - soft).detach() + soft


def _changed(network: nn.Module, name: str, value: Any) -> nn.Module:
    """The network whose neurons have another spike function than they were made with."""
    for module in network.modules():
        if hasattr(module, name):
            setattr(module, name, value)
    return network


FUNCTIONS = [
    of("spikingjelly-object", "spikingjelly", lambda: SpikingJelly(
        "s", surrogate_function=TriangleOfTheZoo(0.6, _surrogate()))),
    of("spikingjelly-module-m", "spikingjelly", lambda: SpikingJelly(
        "m", surrogate_function=SpikeModule())),
    of("spikingjelly-lambda", "spikingjelly", lambda: SpikingJelly(
        "m", "IFNode", surrogate_function=lambda x: triangle(x))),
    of("snntorch-function", "snntorch", lambda: SnnTorch(spike_grad=triangle)),
    of("snntorch-lambda-later", "snntorch", lambda: _changed(
        SnnTorch(), "spike_grad", lambda x: triangle(2 * x))),
    of("snntorch-object", "snntorch", lambda: SnnTorch(hidden=True, spike_grad=SpikeModule())),
]  # fmt: skip


def _surrogate() -> Any:
    from robustsnn.snn.surrogate import Triangle

    return Triangle(width=1.5, amplitude=0.8)


@pytest.mark.parametrize("make", FUNCTIONS)
def test_a_spike_function_of_a_users_own_is_asked(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = lively(make(), 3).eval().requires_grad_(False)
    wrapped = wrap(network, images())
    assert wrapped.reach.complete, wrapped.reach.caution
    holds(wrapped, images())


@needs("snntorch")
@quiet
def test_a_threshold_and_a_leak_that_are_learnt_are_read_as_they_are() -> None:
    torch.manual_seed(0)
    network: Any = lively(SnnTorch(learn_threshold=True, learn_beta=True), 3).eval()
    wrapped = wrap(network.requires_grad_(False), images())
    layer = wrapped.spiking_layers()["lif1"]
    holds(wrapped, images())
    with torch.no_grad():
        # As a training step between two evaluations changes them.
        network.lif1.threshold.fill_(0.45)
        network.lif2.threshold.fill_(1.3)
        network.lif1.beta.fill_(0.6)
    assert float(layer.threshold) == pytest.approx(0.45)
    holds(wrapped, images())


@needs("spikingjelly")
@quiet
def test_a_threshold_that_is_set_between_passes_is_read_as_it_is() -> None:
    torch.manual_seed(0)
    network: Any = lively(SpikingJelly("s", "ParametricLIFNode", norm=False), 3).eval()
    wrapped = wrap(network.requires_grad_(False), images())
    network.net[1].v_threshold, network.net[1].v_reset = 0.4, None
    network.net[1].surrogate_function = SpikeModule()
    with torch.no_grad():
        network.net[5].w.fill_(1.2)
    holds(wrapped, images())


class Backwards(nn.Module):
    """Its parts are defined in another order than they run in, in containers, in two libraries."""

    def __init__(self) -> None:
        super().__init__()
        import snntorch
        from spikingjelly.activation_based import neuron

        self.spare = nn.ModuleList([neuron.IFNode()])
        self.late = nn.ModuleDict({"read": nn.Linear(20, 10), "lif": snntorch.Leaky(beta=0.8)})
        self.early = nn.ModuleList([nn.ModuleList([nn.Linear(784, 30), neuron.LIFNode(tau=1.5)])])
        self.between = nn.Sequential(nn.Linear(30, 20), nn.Sequential(neuron.IFNode(v_reset=None)))

    def forward(self, x: Tensor) -> Any:
        early: Any = self.early[0]
        first, lif = early
        mem, total = self.late["lif"].reset_mem(), 0.0  # type: ignore[operator]
        for _ in range(4):
            spikes = self.between(lif(first(x.flatten(1))))
            last, mem = self.late["lif"](self.late["read"](spikes), mem)
            total = total + last
        return total


@needs("snntorch")
@needs("spikingjelly")
@quiet
def test_layers_of_two_libraries_are_listed_in_the_order_in_which_they_run() -> None:
    torch.manual_seed(0)
    network = lively(Backwards(), 4).eval().requires_grad_(False)
    wrapped = wrap(network, images())
    assert list(wrapped.spiking_layers()) == ["early.0.1", "between.1.0", "late.lif"]
    assert wrapped.reach.unused == ["spare.0"]
    said = wrapped.reach.sentence
    assert "SpikingJelly" in said and "snnTorch" in said and "LIFNode, IFNode and Leaky" in said
    assert "estimators reach 3 of 3 layers, 1 layer never called" in said
    assert wrapped.reach.caution == ""
    holds(wrapped, images())
    done = robustsnn.evaluate(network, (images(), torch.arange(8)), attack="fgsm")
    assert "neurons-not-reached" not in {flag["flag"] for flag in done.manifest.flags}
    assert done.manifest.foreign is not None and done.manifest.foreign["unused"] == ["spare.0"]


@needs("spikingjelly")
@quiet
def test_a_neuron_of_which_only_a_part_is_used_is_not_taken_for_idle() -> None:
    class Parts(SpikingJelly):
        def forward(self, x: Tensor) -> Tensor:
            net: Any = self.net
            conv, lif, rest = net[0], net[1], net[2:]
            # The user's own loop over the methods of a neuron, which is never called itself.
            total: Any = 0.0
            for _ in range(self.steps):
                total = total + rest(lif.single_step_forward(conv(x)))
            return total  # type: ignore[no-any-return]

    torch.manual_seed(0)
    wrapped = wrap(lively(Parts("s", "IFNode", norm=False), 3).eval(), images())
    assert wrapped.reach.unused == []
    assert not wrapped.reach.complete and "estimators reach 1 of 2 layers" in wrapped.reach.sentence
    assert "net.1: its forward is not called" in wrapped.reach.caution


@needs("spikingjelly")
@quiet
def test_a_neuron_whose_forward_is_called_by_hand_is_reached() -> None:
    class ByHand(SpikingJelly):
        def forward(self, x: Tensor) -> Tensor:
            net: Any = self.net
            conv, lif, rest = net[0], net[1], net[2:]
            steps = [rest(lif.forward(conv(x))) for _ in range(self.steps)]
            return torch.stack(steps).mean(0)

    torch.manual_seed(0)
    wrapped = wrap(
        lively(ByHand("s", "IFNode", norm=False), 3).eval().requires_grad_(False), images()
    )
    assert wrapped.reach.complete and len(wrapped.spiking_layers()) == 2
    holds(wrapped, images())


@needs("spikingjelly")
@quiet
def test_a_neuron_that_runs_twice_in_a_step_is_told() -> None:
    """Its second call begins with the state of the first, which no rule knows."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            from spikingjelly.activation_based import neuron

            self.fc1, self.fc2 = nn.Linear(784, 10), nn.Linear(10, 10)
            self.lif = neuron.IFNode(v_reset=None)

        def forward(self, x: Tensor) -> Any:
            total: Any = 0.0
            for _ in range(4):
                total = total + self.lif(self.fc2(self.lif(self.fc1(x.flatten(1)))))
            return total

    torch.manual_seed(0)
    wrapped = wrap(lively(Twice(), 3).eval(), images())
    assert not wrapped.reach.reached and wrapped.reach.caution
    forget(wrapped.inner)
    with torch.no_grad():
        assert torch.equal(wrapped(images()), wrapped.inner(images()))


def test_a_module_around_a_network_of_ours_names_its_layers() -> None:
    ours = load_model("fashion-mnist/vgg5-snn")
    outside = wrap(nn.Sequential(nn.Identity(), nn.Sequential(ours)), images(2))
    names = [f"1.0.{name}" for name in spiking_layers(ours)]
    assert list(outside.spiking_layers()) == names
    assert outside.reach.complete and outside.reach.steps == 4
    assert outside.reach.unused == []
