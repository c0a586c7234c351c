"""Recurrent neurons keep the gradient of their library, which is told, and never make a level A."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustsnn
from robustsnn.estimators.make import make_estimator
from robustsnn.foreign.wrap import wrap
from tests.foreign.networks import forget, images, lively, needs, quiet

STEPS = 4


class Recurrent(nn.Module):
    """A layer of recurrent neurons in front of a linear layer, read out over time."""

    def __init__(self, neurons: nn.Module, sequence: bool = False) -> None:
        super().__init__()
        self.fc, self.lif, self.read = nn.Linear(784, 20), neurons, nn.Linear(20, 10)
        self.sequence = sequence

    def forward(self, x: Tensor) -> Any:
        forget(self)
        current = self.fc(x.flatten(1))
        if self.sequence:
            found = self.lif(torch.stack([current] * STEPS))
            return self.read(found[0] if isinstance(found, tuple) else found).sum(0)
        state: tuple[Any, ...] = ()
        total: Any = 0.0
        for _ in range(STEPS):
            found = self.lif(current, *state)
            spikes, *rest = found if isinstance(found, tuple) else (found,)
            state, total = tuple(rest), total + self.read(spikes)
        return total


def leaky() -> nn.Module:
    import snntorch

    return Recurrent(snntorch.RLeaky(beta=0.9, linear_features=20))


def one_to_one() -> nn.Module:
    import snntorch

    return Recurrent(snntorch.RLeaky(beta=0.9, V=0.5, all_to_all=False))


def synaptic() -> nn.Module:
    import snntorch

    return Recurrent(snntorch.RSynaptic(alpha=0.8, beta=0.9, linear_features=20))


def lstm() -> nn.Module:
    import snntorch

    return Recurrent(snntorch.SLSTM(20, 20))


def cell() -> nn.Module:
    import norse.torch as norse

    return Recurrent(norse.LIFRecurrentCell(20, 20))


def layer() -> nn.Module:
    import norse.torch as norse

    return Recurrent(norse.LIFRecurrent(20, 20), sequence=True)


def adaptive() -> nn.Module:
    import norse.torch as norse

    return Recurrent(norse.LSNNRecurrentCell(20, 20))


def linear_container(mode: str = "s") -> nn.Module:
    from spikingjelly.activation_based import layer, neuron

    made = layer.LinearRecurrentContainer(
        # Before 2.0, the other neurons have no gradient in evaluation mode.
        neuron.ParametricLIFNode(),
        in_features=20,
        out_features=20,
        bias=True,
        step_mode=mode,
    )
    return Recurrent(made, sequence=mode == "m")


def container() -> nn.Module:
    from spikingjelly.activation_based import layer, neuron

    return Recurrent(
        layer.ElementWiseRecurrentContainer(neuron.ParametricLIFNode(), lambda x, y: x + 0.5 * y)
    )


MAKES = [
    *(pytest.param(make, marks=needs("snntorch")) for make in (leaky, one_to_one, synaptic, lstm)),
    *(pytest.param(make, marks=needs("norse")) for make in (cell, layer, adaptive)),
    *(
        pytest.param(make, marks=needs("spikingjelly"))
        for make in (linear_container, lambda: linear_container("m"), container)
    ),
]


@pytest.mark.parametrize("make", MAKES)
@quiet
def test_recurrence_is_cautioned_and_keeps_the_gradient_of_its_library(
    make: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    network = lively(make(), 3).eval().requires_grad_(False)
    x = images().requires_grad_()
    theirs = network(x)
    (gradient,) = torch.autograd.grad(theirs.square().sum(), x)
    assert bool(gradient.any())
    wrapped = wrap(network, images())
    assert not wrapped.reach.reached and "the gradient of their library" in wrapped.reach.caution
    inside = images().requires_grad_()
    ours = wrapped(inside)
    assert torch.equal(ours, theirs)
    (found,) = torch.autograd.grad(ours.square().sum(), inside)
    assert torch.equal(found, gradient)
    # Estimators that need neurons say that there are none, and never do something else instead.
    for text in ("rga", "pdsg", "twin", "bptt:arctan"):
        with pytest.raises(robustsnn.InputError):
            make_estimator(text, wrapped)


@pytest.mark.parametrize("make", [MAKES[0], MAKES[4], MAKES[7]])
@quiet
def test_a_run_of_a_recurrent_network_says_so_and_is_not_level_a(
    make: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    network = lively(make(), 3)
    done = robustsnn.evaluate(network, (images(), torch.arange(8)), attack="fgsm")
    (flag,) = [one for one in done.flags if one["flag"] == "neurons-not-reached"]
    assert flag["severity"] == "caution" and "0 of 1 layer" in flag["sentence"]
    assert done.level != "A" and "neurons-not-reached" in str(done.manifest.diagnosis)
