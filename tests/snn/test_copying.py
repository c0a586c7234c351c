"""A copy says what the network says, and neither knows of the other."""

from __future__ import annotations

import copy
import functools
import threading
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from robustsnn.errors import InputError
from robustsnn.snn.copying import copy_of
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.snn.sparsity import synapses


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(1), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3)
    )


def pruned() -> nn.Module:
    network = plain()
    prune.l1_unstructured(network[0], "weight", amount=0.5)
    prune.ln_structured(network[3], "weight", amount=0.4, n=2, dim=0)
    # A second pruning of the same weight makes a container of both.
    prune.random_unstructured(network[3], "weight", amount=0.3)
    prune.l1_unstructured(network[3], "bias", amount=2)
    return network


def pruned_globally() -> nn.Module:
    network = plain()
    layers = [(network[place], "weight") for place in (0, 3, 5)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.8)
    return network


def with_weight_norm() -> nn.Module:
    network = plain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(network[0])
    return network


def with_spectral_norm() -> nn.Module:
    network = plain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.spectral_norm(network[3])
    return network


def parametrised() -> nn.Module:
    network = plain()
    parametrizations.weight_norm(network[0])
    parametrizations.spectral_norm(network[3])
    parametrizations.orthogonal(network[5])
    return network


class Mask(nn.Module):
    """A parametrisation whose mask is the result of a computation, in a plain attribute."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.mask = torch.sigmoid(100 * weight)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def parametrised_by_a_result():
    network = plain()
    parametrize.register_parametrization(network[3], "weight", Mask(network[3].weight))
    return network


@dataclass
class Settings:
    gains: dict[str, list[Tensor]]


class Holder(nn.Module):
    """A network that holds results wherever a user could put them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain()
        root = nn.Parameter(torch.tensor(0.5))
        self.root = root
        self.attribute = root * 2
        self.listed: Any = [root.exp(), (root.sin(), {"deep": root.cos()})]
        self.settings = Settings({"gains": [root**2]})
        self.leaf = torch.tensor(1.5, requires_grad=True)
        self.leaf.note = root * 3  # type: ignore[attr-defined]
        self.register_buffer("buffered", root.tanh())

    def forward(self, x: Tensor) -> Tensor:
        deep: Any = self.listed[1]
        scale = self.attribute + self.listed[0] + deep[0] + deep[1]["deep"] + self.buffered
        scale = scale + self.settings.gains["gains"][0] + self.leaf * self.leaf.note  # type: ignore[attr-defined]
        out: Tensor = self.inner(x * self.root) * scale
        return out


class Leaky(nn.Module):
    """A neuron that keeps its membrane, and its graph, from pass to pass until it is reset."""

    def __init__(self) -> None:
        super().__init__()
        self.membrane: Any = 0.0
        self.history: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.membrane = 0.5 * self.membrane + x
        self.history.append(self.membrane)
        return torch.sigmoid(5 * (self.membrane - 1))


def stateful() -> nn.Module:
    network = plain()
    network[1] = Leaky()
    network(shown_to(network))
    return network


class Subclass(Tensor):
    """A tensor type of the user's own."""


def with_a_subclass():
    network = plain()
    network[0].scale = (network[0].weight * 2).as_subclass(Subclass)
    return network


def ours():
    torch.manual_seed(0)
    network = Network(
        NetworkConfig(
            architecture="vgg5",
            kind="snn",
            classes=3,
            image=(1, 8, 8),
            widths=(4, 4, 4),
            classifier=(6,),
            mean=(0.5,),
            std=(0.25,),
            time_steps=3,
        )
    ).eval()
    for layer in network.spiking_layers().values():
        layer.threshold.data.fill_(0.3)
    for layer in synapses(network).values():
        nn.init.normal_(layer.weight, 0, 0.5)
    prune.l1_unstructured(network.features[0], "weight", amount=0.5)
    return network


BUILDERS = [
    plain,
    pruned,
    pruned_globally,
    with_weight_norm,
    with_spectral_norm,
    parametrised,
    parametrised_by_a_result,
    Holder,
    stateful,
    with_a_subclass,
    ours,
]
#: What `copy.deepcopy` refuses as it is built; the rest it refuses at most after a pass.
REFUSED = [
    pruned,
    pruned_globally,
    with_weight_norm,
    parametrised_by_a_result,
    Holder,
    stateful,
    with_a_subclass,
    ours,
]


def shown_to(network: nn.Module) -> Tensor:
    """Images that fit the network."""
    size = 8 if isinstance(network, Network) else 6
    return torch.rand(4, 1, size, size, generator=torch.Generator().manual_seed(1))


def said(network: nn.Module) -> tuple[Tensor, Tensor]:
    """The logits, and the gradient of their weighted sum for the images."""
    x = shown_to(network).requires_grad_()
    logits = network(x)
    (gradient,) = torch.autograd.grad((logits * torch.arange(1.0, 4)).sum(), x)
    return logits.detach(), gradient


@pytest.mark.parametrize("build", REFUSED)
def test_torch_refuses_these(build):
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(build())


@pytest.mark.parametrize("after_a_pass", [False, True], ids=["new", "after backward"])
@pytest.mark.parametrize("build", BUILDERS)
def test_a_copy_says_the_same_and_leaves_the_network_alone(build, after_a_pass):
    network = build().eval()
    if after_a_pass:
        network(shown_to(network)).square().sum().backward()
    before = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    gradients = {
        n: p.grad if p.grad is None else p.grad.clone() for n, p in network.named_parameters()
    }
    held = {name: id(tensor) for name, tensor in network.named_parameters()}

    copied = copy_of(network)

    assert type(copied) is type(network)
    assert {name: id(tensor) for name, tensor in network.named_parameters()} == held
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert torch.equal(copied.state_dict()[name], before[name]), name
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == (gradients[name] is None)
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[name])
        assert dict(copied.named_parameters())[name].requires_grad == parameter.requires_grad
    # The copy speaks first: what it did must not show in what the network says.
    theirs, ours_ = said(copied), said(network)
    for one, other in zip(ours_, theirs, strict=True):
        assert torch.equal(one, other)
        assert one.abs().sum() > 0


@pytest.mark.parametrize("build", BUILDERS)
def test_a_copy_shares_no_memory(build):
    network = build().eval()
    copied = copy_of(network)
    before = said(copy_of(network))
    with torch.no_grad():
        for tensor in [*copied.parameters(), *copied.buffers()]:
            tensor.zero_()
    for one, other in zip(said(network), before, strict=True):
        assert torch.equal(one, other)


def test_results_become_constants_and_stay_results_in_the_network():
    network = Holder()
    copied = copy_of(network)
    assert network.attribute.grad_fn is not None and network.listed[0].grad_fn is not None
    assert copied.attribute.is_leaf and not copied.attribute.requires_grad
    assert copied.listed[0].is_leaf and copied.settings.gains["gains"][0].is_leaf
    assert copied.leaf.is_leaf and copied.leaf.requires_grad
    assert torch.equal(copied.leaf.note, network.leaf.note) and copied.leaf.note.is_leaf


def test_pruned_weights_of_a_copy_follow_its_own_mask():
    network = pruned()
    copied = copy_of(network)
    copied[0].weight_mask.zero_()
    assert copied[0](torch.ones(1, 1, 6, 6)).std() != network[0](torch.ones(1, 1, 6, 6)).std()
    assert torch.equal(copied[0](torch.ones(1, 1, 6, 6))[0, :, 0, 0], copied[0].bias.detach())


def test_gradients_of_parameters_are_those_of_the_network():
    network = pruned_globally()
    copied = copy_of(network)
    for one in (network, copied):
        one(shown_to(one)).square().sum().backward()
    for ours_, theirs in zip(network.parameters(), copied.parameters(), strict=True):
        assert torch.equal(ours_.grad, theirs.grad)


def test_tensors_that_are_one_stay_one():
    network = Holder()
    network.again = network.attribute
    network.view = network.attribute.detach()
    copied = copy_of(network)
    assert copied.again is copied.attribute
    copied.attribute.fill_(9.0)
    assert copied.view == 9 and network.view == 1
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    copied = copy_of(tied)
    assert copied[1].weight is copied[0].weight


def test_a_gradient_that_has_a_graph_itself_is_no_obstacle():
    network = Holder()
    (network.leaf.grad,) = torch.autograd.grad(network.leaf**3, network.leaf, create_graph=True)
    assert network.leaf.grad.grad_fn is not None
    assert copy_of(network).leaf.item() == 1.5


def test_what_cannot_be_copied_is_one_line():
    network = plain()
    network.lock = threading.Lock()
    with pytest.raises(
        InputError, match=r"^Sequential cannot be copied \(TypeError: .*lock"
    ) as told:
        copy_of(network)
    assert "\n" not in str(told.value)


def test_deep_copies_outside_are_as_before():
    copy_of(pruned())
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(pruned())


class Kept(nn.Module):
    """A network that calls its layers by functions which it keeps."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2)
        self.seen: list[Tensor] = []
        inner = self.linear
        if how == "lambda":
            self.act: Any = lambda x: self.linear(x)
        elif how == "default":
            self.act = lambda x, layer=inner: layer(x)
        elif how == "keyword":

            def act(x: Tensor, *, layer: nn.Module = inner) -> Any:
                return layer(x)

            self.act = act
        elif how == "nested":

            def outer(x: Tensor) -> Any:
                return run(x)

            def run(x: Tensor, depth: int = 1) -> Any:
                return run(x, depth - 1) if depth else inner(x)

            self.act = {"now": [outer]}["now"]
        elif how == "partial":
            self.act = functools.partial(lambda layer, x: layer(x) + inner.bias, inner)
        elif how == "method":
            self.act = self.linear.forward
        elif how == "hook":
            self.act = nn.Identity()
            self.act.register_forward_hook(lambda module, args, output: inner(output))
        elif how == "list":
            self.linear.register_forward_hook(lambda m, args, output: self.seen.append(output))
            self.act = lambda x: (inner(x), self.seen.pop())[1]

    def forward(self, x: Tensor) -> Any:
        act = self.act[0] if isinstance(self.act, list) else self.act
        return act(x)


@pytest.mark.parametrize(
    "how", ["lambda", "default", "keyword", "nested", "partial", "method", "hook", "list"]
)
def test_functions_of_a_copy_work_on_its_own_layers(how):
    network, x = Kept(how), torch.ones(1, 3)
    with torch.no_grad():
        before = network(x).clone()
        copied = copy_of(network)
        assert torch.equal(copied(x), before)
        copied.linear.weight.zero_()
        copied.linear.bias.zero_()
        assert not copied(x).any()
        assert torch.equal(network(x), before)
        assert torch.equal(copy_of(copied)(x), copied(x))
    assert network.seen == []


def test_functions_that_refer_to_nothing_stay_what_they_are():
    factor = 2.0
    network = plain()
    network.scale, network.hook = (lambda x: factor * x), len
    copied = copy_of(network)
    assert copied.scale is network.scale and copied.hook is len


def test_neurons_of_other_libraries_after_a_pass():
    snntorch = pytest.importorskip("snntorch")
    sequential = nn.Sequential(
        nn.Flatten(1), nn.Linear(36, 3), snntorch.Leaky(beta=0.9, init_hidden=True)
    )
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    for network in (sequential, nn.Sequential(nn.Flatten(1), nn.Linear(36, 3), neuron.LIFNode())):
        network(shown_to(network)).sum().backward()
        with pytest.raises(RuntimeError, match="graph leaves"):
            copy.deepcopy(network)
        copied = copy_of(network)
        # Both go on from the membrane that the pass left.
        assert torch.equal(copied(shown_to(network)), network(shown_to(network)))
