"""Neurons that are none of the layers found in a network are seen where they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustsnn
from robustsnn.foreign.elsewhere import spiking_elsewhere
from robustsnn.foreign.wrap import wrap
from robustsnn.snn.backward_rule import spiking_layers
from tests.foreign.networks import EACH_LIBRARY, images, lively, needs, quiet

STEPS = 4


class Spike(torch.autograd.Function):
    """1 where a number is above 0, with a triangle for a derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        found: Tensor = grads[0] * (1 - x.abs()).clamp(min=0)
        return found


class Home(nn.Module):
    """Neurons that its user wrote, `step(current, membrane)` to spikes and membrane."""

    def __init__(self, step: Callable[..., Any]) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(784, 40), nn.Linear(40, 10)
        self.held = [step]

    def forward(self, x: Tensor) -> Tensor:
        current, membrane, total = self.fc1(x.flatten(1)), None, x.new_zeros(1)
        for _ in range(STEPS):
            spikes, membrane = self.held[0](current, membrane)
            total = total + self.fc2(spikes)
        return total


def _by(spike: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def step(current: Tensor, membrane: Tensor | None) -> tuple[Tensor, Tensor]:
        membrane = current if membrane is None else 0.5 * membrane + current
        spikes = spike(membrane - 0.3)
        return spikes, membrane * (1 - spikes)

    return step


def by_hand() -> nn.Module:
    return Home(_by(Spike.apply))


def surrogate_of_spikingjelly() -> nn.Module:
    from spikingjelly.activation_based import surrogate

    return Home(_by(surrogate.ATan()))


def neuron_in_a_list() -> nn.Module:
    import snntorch

    return Home(snntorch.Leaky(beta=0.5, threshold=0.3))


def step_of_norse() -> nn.Module:
    from norse.torch.functional import lif

    def step(current: Tensor, state: Any) -> Any:
        zero = torch.zeros_like(current)
        state = state or lif.LIFFeedForwardState(zero, zero)
        return lif.lif_feed_forward_step(30 * current, state, lif.LIFParameters())

    return Home(step)


def neuron_of_another_base(name: str, **settings: Any) -> nn.Module:
    from spikingjelly.activation_based import layer, neuron

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                layer.Linear(784, 40, step_mode="m"),
                getattr(neuron, name)(**settings),
                layer.Linear(40, 10, step_mode="m"),
            )

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x.flatten(1).repeat(STEPS, 1, 1)).mean(0)
            return out

    return Net()


def parallel() -> nn.Module:
    import snntorch

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif, self.fc = snntorch.LeakyParallel(784, 40, beta=0.5), nn.Linear(40, 10)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.lif(x.flatten(1).repeat(STEPS, 1, 1))).sum(0)
            return out

    return Net()


ELSEWHERE = [
    pytest.param(by_hand, "Spike", id="by-hand"),
    pytest.param(surrogate_of_spikingjelly, "atan", id="sj", marks=needs("spikingjelly")),
    pytest.param(neuron_in_a_list, "Leaky", id="list", marks=needs("snntorch")),
    pytest.param(step_of_norse, "SuperSpike", id="norse", marks=needs("norse")),
    pytest.param(parallel, "LeakyParallel", id="parallel", marks=needs("snntorch")),
    *(
        pytest.param(
            lambda n=name, s=settings: neuron_of_another_base(n, **s),
            name,
            id=name,
            marks=needs("spikingjelly"),
        )
        for name, settings in (
            ("PSN", {"T": STEPS}),
            ("SlidingPSN", {"k": 2, "step_mode": "m"}),
            ("DSRIFNode", {"T": STEPS}),
        )
    ),
]


@pytest.mark.parametrize(("make", "named"), ELSEWHERE)
@quiet
def test_neurons_that_no_estimator_reaches_are_cautioned_wherever_they_are(
    make: Callable[[], nn.Module], named: str
) -> None:
    torch.manual_seed(0)
    try:
        network = lively(make(), 3)
    except AttributeError:
        pytest.skip("not in this release of the library")
    done = robustsnn.evaluate(network, (images(), torch.arange(8)), attack="fgsm")
    (flag,) = [one for one in done.flags if one["flag"] == "neurons-not-reached"]
    assert flag["severity"] == "caution" and named in flag["sentence"]
    assert done.level != "A" and "neurons-not-reached" in str(done.manifest.diagnosis)


@pytest.mark.parametrize("make", EACH_LIBRARY)
@quiet
def test_the_functions_of_layers_that_were_found_are_not_elsewhere(
    make: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    network = wrap(lively(make(), 3).eval().requires_grad_(False), images())
    assert network.reach.reached and spiking_elsewhere(network, images()) == []


def test_layers_that_a_network_names_are_not_elsewhere() -> None:
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            spikes: Tensor = Spike.apply(x - 0.1)
            return spikes

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.layer = nn.Linear(784, 10), Layer()

        def spiking_layers(self) -> dict[str, nn.Module]:
            return {"layer": self.layer}

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(self.fc(x.flatten(1)))
            return out

    network = Named().eval().requires_grad_(False)
    assert spiking_layers(network) and spiking_elsewhere(network, images()) == []


def test_functions_that_do_not_spike_are_left_alone() -> None:
    """A smooth function of the user's own, and weights that are rounded, are those of an ANN."""

    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x.sigmoid()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            s = x.sigmoid()
            found: Tensor = grads[0] * (s + x * s * (1 - s))
            return found

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(784, 20), nn.Linear(20, 10)

        def forward(self, x: Tensor) -> Tensor:
            rounded = Spike.apply(self.fc2.weight)
            return nn.functional.linear(Swish.apply(self.fc1(x.flatten(1))), rounded)

    assert spiking_elsewhere(Net().eval().requires_grad_(False), images()) == []


def membranes_of_spikingjelly() -> nn.Module:
    from spikingjelly.activation_based import layer, neuron

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = layer.Linear(784, 40), layer.Linear(40, 10)
            self.one, self.out = neuron.IFNode(), neuron.LIFNode(v_threshold=float("inf"))

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(STEPS):
                self.out(self.fc2(self.one(self.fc1(x.flatten(1)))))
            last: Tensor = self.out.v
            return last

    return Net()


def membranes_of_snntorch() -> nn.Module:
    import snntorch

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(784, 40), nn.Linear(40, 10)
            self.one = snntorch.Leaky(beta=0.9)
            self.out = snntorch.Leaky(beta=0.9, threshold=float("inf"), reset_mechanism="none")

        def forward(self, x: Tensor) -> Tensor:
            one, out = self.one.reset_mem(), self.out.reset_mem()
            for _ in range(STEPS):
                spikes, one = self.one(self.fc1(x.flatten(1)), one)
                _, out = self.out(self.fc2(spikes), out)
            last: Tensor = out
            return last

    return Net()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(membranes_of_spikingjelly, marks=needs("spikingjelly")),
        pytest.param(membranes_of_snntorch, marks=needs("snntorch")),
    ],
)
@quiet
def test_a_neuron_that_cannot_spike_is_a_read_out(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = lively(make(), 3).eval().requires_grad_(False)
    wrapped = wrap(network, images())
    assert wrapped.reach.complete and list(wrapped.reach.layers) == ["one"]
    assert spiking_elsewhere(wrapped, images()) == []
    wrapped.reset()
    assert torch.equal(wrapped(images()), wrapped(images()))
    x = images().requires_grad_()
    (gradient,) = torch.autograd.grad(wrapped(x).square().sum(), x)
    assert bool(gradient.isfinite().all()) and bool(gradient.any())
