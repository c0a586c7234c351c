"""Import of the official HIRE-SNN state dicts (github.com/ksouvik52/hiresnn2021).

Their keys are `features.N.weight`, `classifier.N.weight`, `threshold.tN` and `leak.lN`; in the
classifier, the N of thresholds and leaks counts on from the features. A missing threshold or leak
is an error here, where the official loader silently leaves 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.models.weights import without_prefix
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.snn.neuron import LIF

NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


def from_official(
    tensors: Mapping[str, Tensor], arch: str, timesteps: int, normalisation: str
) -> Network:
    """The network that an official state dict holds.

    Widths, classifier sizes, classes and input size are read off the tensors.

    Args:
        tensors: The state dict.
        arch: The architecture: `vgg5`, `vgg11` or `vgg16`.
        timesteps: The number of time steps, which the official file does not hold.
        normalisation: `cifar10`, `cifar100`, or `none`, where images enter the first layer as
            they are.

    Raises:
        InputError: The tensors do not fit the architecture, or a threshold or leak is missing.
    """
    tensors = without_prefix(tensors)
    if not arch.startswith("vgg"):
        raise InputError(f"--arch {arch}: official HIRE-SNN state dicts hold vgg5, vgg11 or vgg16.")
    convolutions = _ordered(tensors, "features", 4)
    linears = _ordered(tensors, "classifier", 2)
    if not convolutions or not linears:
        raise InputError(
            "the file is not an official HIRE-SNN state dict: no features.N.weight of a "
            "convolution or no classifier.N.weight of a linear layer in it."
        )
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{name!r} holds NaN or infinity: the file is broken.")
    network = Network(_config(convolutions, linears, arch, timesteps, normalisation))
    loaded = _renamed(tensors, network, arch)
    for name, value in loaded.items():
        if name.endswith("threshold") and value.item() <= 0:
            raise InputError(f"{name} is {value.item():g}: a threshold is positive.")
    network.load_state_dict(loaded)
    network.eval()
    return network


def _config(
    convolutions: list[Tensor],
    linears: list[Tensor],
    arch: str,
    timesteps: int,
    normalisation: str,
) -> NetworkConfig:
    """The description of the network whose weights those are, in order of execution."""
    channels = convolutions[0].shape[1]
    if normalisation == "none":
        mean, std = (0.0,) * channels, (1.0,) * channels
    elif normalisation in NORMALISATIONS:
        mean, std = NORMALISATIONS[normalisation]
    else:
        raise InputError(f"--normalisation {normalisation}: choose cifar10, cifar100 or none.")
    widths = tuple(t.shape[0] for t in convolutions)
    side = _input_side(arch, widths[-1], linears[0].shape[1])
    try:
        return NetworkConfig(
            architecture=arch,
            kind="snn",
            classes=linears[-1].shape[0],
            image=(channels, side, side),
            widths=widths,
            classifier=tuple(t.shape[0] for t in linears[:-1]),
            mean=mean,
            std=std,
            time_steps=timesteps,
        )
    except ValueError as error:
        first = str(error).splitlines()
        raise InputError(f"the tensors make no network: {' '.join(first[:3])}") from None


def _renamed(tensors: Mapping[str, Tensor], network: Network, arch: str) -> dict[str, Tensor]:
    """The tensors under the names that the network has for them; every one must be used."""
    wanted = network.state_dict()
    loaded: dict[str, Tensor] = {}
    used: set[str] = set()
    for theirs, ours in _names(network):
        if theirs not in tensors:
            raise InputError(f"the file lacks {theirs!r}: it does not hold {arch}.")
        value = tensors[theirs].to(torch.float32)
        if value.numel() != wanted[ours].numel():
            raise InputError(
                f"{theirs!r} has shape {list(value.shape)}, {arch} of these sizes "
                f"asks for {list(wanted[ours].shape)}."
            )
        loaded[ours] = value.reshape(wanted[ours].shape)
        used.add(theirs)
    extra = sorted(tensors.keys() - used)
    if extra:
        raise InputError(f"the file also holds {extra[0]!r}: it does not hold {arch}.")
    return loaded


def _names(network: Network) -> Iterator[tuple[str, str]]:
    """The official name of each tensor of a network, and ours."""
    offset = len(network.features) - 1
    for part, layers, start in (
        ("features", network.features, 0),
        ("classifier", network.classifier, offset),
    ):
        for index, layer in enumerate(layers):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                yield f"{part}.{index}.weight", f"{part}.{index}.weight"
            elif isinstance(layer, LIF):
                n = start + index - 1
                yield f"threshold.t{n}", f"{part}.{index}.threshold"
                yield f"leak.l{n}", f"{part}.{index}.leak"


def _ordered(tensors: Mapping[str, Tensor], part: str, dimensions: int) -> list[Tensor]:
    """The weights of one part, in order of execution; each must have that many dimensions."""
    found = []
    for name, tensor in tensors.items():
        pieces = name.split(".")
        if len(pieces) == 3 and pieces[0] == part and pieces[1].isdigit() and pieces[2] == "weight":
            if tensor.dim() != dimensions:
                raise InputError(
                    f"{name!r} has shape {list(tensor.shape)}: this is not a HIRE-SNN layer."
                )
            found.append((int(pieces[1]), tensor))
    return [tensor for _, tensor in sorted(found, key=lambda item: item[0])]


def _input_side(arch: str, channels: int, units: int) -> int:
    """The side of the square input that leaves `units` after the architecture's pools."""
    pools = {"vgg5": 2, "vgg11": 3, "vgg16": 4}
    if arch not in pools:
        raise InputError(f"--arch {arch}: official HIRE-SNN state dicts hold {', '.join(pools)}.")
    side = math.isqrt(units // channels)
    if side * side * channels != units or side == 0:
        raise InputError(
            f"a classifier of {units} inputs after {channels} channels is not a square image: "
            f"the file does not hold {arch}."
        )
    return side << pools[arch]
