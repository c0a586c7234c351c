"""A network of the user's own: it is copied, and its identity follows what it computes."""

from __future__ import annotations

import copy
import functools
import hashlib

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from robustsnn.models.identity import digest_of
from robustsnn.models.subject import subject_of
from robustsnn.snn.network import Network, NetworkConfig


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(1), nn.Linear(64, 3))


def image() -> Tensor:
    return torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def with_prune(mask: Tensor) -> nn.Module:
    network = plain()
    prune.custom_from_mask(network[3], "weight", mask)
    return network


class Masked(nn.Linear):
    """A layer with its mask in a plain attribute."""

    mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


def with_attribute(mask: Tensor) -> nn.Module:
    network = plain()
    layer = Masked(64, 3)
    layer.load_state_dict(network[3].state_dict())
    layer.mask = mask
    network[3] = layer
    return network


def with_dictionary(mask):
    network = plain()
    network[3].masks = {"weight": [mask]}
    network[3].forward = functools.partial(_masked, network[3])
    return network


def _masked(layer: nn.Linear, x: Tensor) -> Tensor:
    masks: dict[str, list[Tensor]] = layer.masks  # type: ignore[assignment]
    return nn.functional.linear(x, layer.weight * masks["weight"][0], layer.bias)


def with_unsaved_buffer(mask: Tensor) -> nn.Module:
    network = plain()
    layer = Masked(64, 3)
    layer.load_state_dict(network[3].state_dict())
    layer.register_buffer("mask", mask, persistent=False)
    network[3] = layer
    return network


class Times(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def with_parametrisation(mask: Tensor) -> nn.Module:
    network = plain()
    parametrize.register_parametrization(network[3], "weight", Times(mask))
    return network


def with_closure(mask: Tensor) -> nn.Module:
    network = plain()

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out * mask.amax(1)

    network[3].register_forward_hook(hook)
    return network


class Pruner:
    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def hold(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        layer.weight.data.mul_(self.mask)  # type: ignore[operator]


def with_bound_method(mask: Tensor) -> nn.Module:
    network = plain()
    network[3].register_forward_pre_hook(Pruner(mask).hold)
    return network


def with_partial(mask: Tensor) -> nn.Module:
    network = plain()
    network[3].register_forward_pre_hook(functools.partial(_hold, mask))
    return network


def _hold(mask: Tensor, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    layer.weight.data.mul_(mask)  # type: ignore[operator]


BUILDERS = [
    with_prune,
    with_attribute,
    with_dictionary,
    with_unsaved_buffer,
    with_parametrisation,
    with_closure,
    with_bound_method,
    with_partial,
]


@pytest.mark.parametrize("build", BUILDERS)
def test_the_identity_changes_with_the_mask(build):
    ones = torch.ones(3, 64)
    other = ones.clone()
    other[1] = 0
    assert not torch.equal(build(ones)(image()), build(other)(image()))
    same = digest_of(build(ones))
    assert digest_of(build(ones.clone())) == same
    assert digest_of(build(other)) != same
    assert subject_of(build(other)).identity != subject_of(build(ones)).identity


@pytest.mark.parametrize("build", BUILDERS)
def test_a_pass_does_not_change_the_identity(build):
    network = build(torch.ones(3, 64))
    before = digest_of(network)
    network(image()).sum().backward()
    assert digest_of(network) == before
    assert digest_of(copy.deepcopy(plain())) == digest_of(plain())


def test_a_membrane_that_is_kept_is_not_part_of_the_identity():
    network = plain()
    network[1].membrane = torch.zeros(2, 4, 4, 4)
    before = digest_of(network)
    network[1].membrane = torch.ones(2, 4, 4, 4)
    assert digest_of(network) == before


def test_a_mask_changed_in_the_copy_of_a_pruned_network_is_seen():
    network = with_prune(torch.ones(3, 64))
    before = subject_of(network)
    network[3].weight_mask[2, 5] = 0
    assert subject_of(network).identity != before.identity


def with_norm() -> nn.Module:
    network = plain()
    parametrizations.weight_norm(network[3])
    return network


def recorded_digest(network: nn.Module) -> str:
    """The digest as it was before masks counted, on which published runs rest."""
    digest = hashlib.sha256(str(network).encode())
    if isinstance(network, Network):
        digest.update(f"{network.config.model_dump_json()} {network.time_steps}".encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_networks_without_such_masks_keep_their_identity(kind):
    settings = {
        "architecture": "resnet12",
        "kind": kind,
        "classes": 3,
        "image": (3, 16, 16),
        "widths": (4, 4, 4, 4),
        "classifier": (),
        "mean": (0.5,) * 3,
        "std": (0.2,) * 3,
    }
    network = Network(NetworkConfig.model_validate(settings))
    batch_norm = nn.Sequential(*plain(), nn.BatchNorm1d(3))
    for one in (network, plain(), batch_norm, with_norm()):
        assert digest_of(one) == recorded_digest(one)


def test_types_that_numpy_does_not_know():
    network = plain().to(torch.bfloat16)
    before = digest_of(network)
    network[3].weight.data[0, 0] += 1
    assert digest_of(network) != before


def test_a_pruned_network_is_frozen_in_the_copy_and_not_in_the_original():
    network = with_prune((torch.arange(192) % 3 == 0).float().reshape(3, 64))
    network(image()).sum().backward()
    subject = subject_of(network)
    loaded, again = subject.load(), subject.load()
    assert torch.equal(loaded(image()), network.eval()(image()))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert all(p.requires_grad and p.grad is not None for p in network.parameters())
    loaded[3].weight_mask.zero_()
    assert torch.equal(again(image()), network(image()))
    assert torch.equal(subject.load()(image()), network(image()))
