"""Channels of a VGG: what removing some leaves, and the smaller network without them.

Between two layers with synapses lie channels: filters of the first, and slices of the weight of
the second (an input channel of a convolution, or the features that a channel becomes after
flattening). Only networks whose layers follow one another have them; the shortcuts of a ResNet add
channels of several layers, which cannot be removed one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.snn.architectures.description import Residual
from robustsnn.snn.network import Network
from robustsnn.snn.sparsity import synapses


@dataclass(frozen=True)
class Boundary:
    """The channels between two layers that follow one another, by the names of the layers."""

    producer: str
    consumer: str
    channels: int


def boundaries(network: Network) -> tuple[Boundary, ...]:
    """The channels that could be removed, in order of the layers.

    >>> from robustsnn.snn.network import NetworkConfig
    >>> config = NetworkConfig(architecture="vgg5", kind="ann", classes=10, image=(1, 28, 28),
    ...                        widths=(16, 32, 32), classifier=(128,), mean=(0.5,), std=(0.5,))
    >>> [b.channels for b in boundaries(Network(config))]
    [16, 32, 32, 128]

    Raises:
        InputError: The network has shortcuts.
    """
    if any(isinstance(module, Residual) for module in network.modules()):
        raise InputError(
            f"{network.config.architecture}: its shortcuts add channels of several layers, so "
            "channels cannot be removed; prune single weights, or use a VGG."
        )
    layers = list(synapses(network).items())
    return tuple(
        Boundary(name, following, _outputs(module))
        for (name, module), (following, _) in itertools.pairwise(layers)
    )


def _outputs(module: nn.Module) -> int:
    """The output channels of a convolution, or the outputs of a linear layer."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return len(weight)


def slices(weight: Tensor, channels: int) -> Tensor:
    """A weight as `[output, channel, rest]`, for a layer that reads so many channels."""
    return weight.reshape(len(weight), channels, -1)


def weights_left(network: Network, kept: Sequence[int]) -> int:
    """The synaptic weights of the network with only so many channels at each boundary.

    Args:
        network: The network before any channel is removed.
        kept: The number of channels to keep at each of its `boundaries`.
    """
    weights = [module.weight for module in synapses(network).values()]
    between = [boundary.channels for boundary in boundaries(network)]
    total = 0
    for position, weight in enumerate(weights):
        assert isinstance(weight, Tensor)
        size = weight.numel()
        if position < len(kept):
            size = size // between[position] * kept[position]
        if position > 0:
            size = size // between[position - 1] * kept[position - 1]
        total += size
    return total


@torch.no_grad()
def unused(network: Network) -> dict[str, Tensor]:
    """The channels that change nothing, bool `[channel]`, by the name of the layer that reads them.

    A channel changes nothing if all weights that read it are zero, or if all weights that make it
    are: a neuron without current neither spikes nor passes anything on.
    """
    found = {}
    layers = synapses(network)
    for boundary in boundaries(network):
        made, read = layers[boundary.producer].weight, layers[boundary.consumer].weight
        assert isinstance(made, Tensor) and isinstance(read, Tensor)
        silent = ~made.reshape(boundary.channels, -1).ne(0).any(1)
        unread = ~slices(read, boundary.channels).ne(0).any(2).any(0)
        found[boundary.consumer] = silent | unread
    return found


@torch.no_grad()
def slim(network: Network) -> Network:
    """The same function in fewer channels: a network without those that change nothing.

    Removing one channel can leave others without use, so it is repeated until none is. At least
    one channel stays at each boundary.

    Args:
        network: An ANN or an SNN without shortcuts; it is left as it is.

    Returns:
        A network in the same mode, on the same device and of the same type, whose `config` has
        the smaller sizes; the network itself if every channel is of use.

    Raises:
        InputError: The network has shortcuts, or weights that are computed in each pass.
    """
    for name in synapses(network):
        if f"{name}.weight" not in network.state_dict():
            raise InputError(
                f"the weight of {name} is computed in each pass, as torch.nn.utils.prune does: "
                "make it permanent (prune.remove) before channels are removed."
            )
    while True:
        removed = {name: mask.clone() for name, mask in unused(network).items()}
        for mask in removed.values():
            if bool(mask.all()):
                mask[0] = False
        if not any(bool(mask.any()) for mask in removed.values()):
            return network
        network = _without(network, removed)


def _without(network: Network, removed: Mapping[str, Tensor]) -> Network:
    """The network without the channels that are marked, bool `[channel]` by their reader."""
    tensors = dict(network.state_dict())
    sizes = []
    for boundary in boundaries(network):
        keep = ~removed[boundary.consumer]
        sizes.append(int(keep.sum()))
        made, read = f"{boundary.producer}.weight", f"{boundary.consumer}.weight"
        tensors[made] = tensors[made][keep]
        shape = tensors[read].shape
        thinner = slices(tensors[read], boundary.channels)[:, keep]
        tensors[read] = (
            thinner.reshape(shape[0], sizes[-1], *shape[2:])
            if len(shape) > 2
            else thinner.reshape(shape[0], -1)
        )
    convolutions = len(network.config.sizes().widths)
    config = network.config.model_copy(
        update={
            "widths": tuple(sizes[:convolutions]),
            "classifier": tuple(sizes[convolutions:]),
        }
    )
    first = next(network.parameters())
    smaller = Network(config).to(first.device, first.dtype)
    smaller.load_state_dict(tensors)
    smaller.train(network.training)
    smaller.time_steps, smaller.recompute = network.time_steps, network.recompute
    spiking = (n.spiking_layers().values() for n in (smaller, network))
    for ours, theirs in zip(*spiking, strict=True):
        ours.surrogate, ours.reset = theirs.surrogate, theirs.reset
        ours.detach_reset, ours.rule = theirs.detach_reset, theirs.rule
    wanted = {name: p.requires_grad for name, p in network.named_parameters()}
    for name, parameter in smaller.named_parameters():
        parameter.requires_grad_(wanted[name])
    return smaller
