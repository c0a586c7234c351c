"""Which weights of a network may differ from zero while it is trained.

Masks are boolean tensors by the name of the layer, shaped like its weight; True is kept. A layer
without a mask is dense. Every function gives masks for all layers with synapses.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.snn.sparsity import pattern, synapses, weights_of

Masks = dict[str, Tensor]

#: Kernel positions that pSC4 keeps of a 3 x 3 kernel, by (filter + channel + 1) mod 8.
#: Source: Kundu et al., Pre-defined Sparsity for Low-Complexity CNNs, IEEE TC 2020.
PSC4 = {
    0: range(9),
    1: (0, 1, 3, 4),
    2: (1, 2, 4, 5),
    3: (3, 4, 6, 7),
    4: (4, 5, 7, 8),
    5: (0, 1, 3, 4),
    6: (1, 2, 4, 5),
    7: (3, 4, 6, 7),
}
PERIOD = 8


def budget(network: nn.Module, density: float) -> int:
    """The number of weights that a density leaves of a network, at least one of each layer.

    >>> budget(nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10)), 0.1)
    20
    """
    weights = weights_of(network)
    return max(round(density * sum(w.numel() for w in weights.values())), len(weights))


def drawn(network: nn.Module, density: float, generator: torch.Generator) -> Masks:
    """The same share of every layer, at random positions.

    Args:
        network: The network.
        density: The share to keep, in (0, 1].
        generator: The source of the draws, on the CPU.

    Source: the start of Dettmers and Zettlemoyer, Sparse Networks from Scratch, 2019, with exact
    numbers in place of independent draws.
    """
    masks = {}
    for name, weight in weights_of(network).items():
        keep = max(1, round(density * weight.numel()))
        order = torch.randperm(weight.numel(), generator=generator)
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[order[:keep]] = True
        masks[name] = mask.reshape(weight.shape).to(weight.device)
    return masks


def by_magnitude(network: nn.Module, density: float) -> Masks:
    """The largest weights of the whole network, wherever they lie: one-shot magnitude pruning.

    It keeps what `torch.nn.utils.prune.global_unstructured` with `L1Unstructured` keeps.

    Args:
        network: A trained network.
        density: The share to keep, in (0, 1].

    Raises:
        InputError: Nothing would be left of some layer, so that no signal could pass.
    """
    weights = weights_of(network)
    sizes = torch.cat([w.abs().reshape(-1) for w in weights.values()])
    keep = budget(network, density)
    kept = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
    kept[torch.topk(sizes, keep).indices] = True
    parts = kept.split([w.numel() for w in weights.values()])
    masks = {n: part.reshape(w.shape) for part, (n, w) in zip(parts, weights.items(), strict=True)}
    for name, mask in masks.items():
        if not bool(mask.any()):
            raise InputError(f"density {density:g} leaves no weight of {name}: raise it.")
    return masks


def held(network: nn.Module) -> Masks:
    """The weights of a network that are not zero, so that training keeps the zeros.

    Raises:
        InputError: No weight is zero, so there is nothing to hold.
    """
    masks = dict(pattern(network))
    if all(bool(mask.all()) for mask in masks.values()):
        raise InputError("sparsity.start: held, but no weight of init is zero: prune it first.")
    return masks


def predefined(network: nn.Module, density: float) -> Masks:
    """Fixed periodic patterns: pSC4 for 3 x 3 kernels, diagonals for linear layers.

    The first layer, kernels of another size and the last layer are dense, and linear layers in
    between have the same number of weights in each row, give or take one, so that the whole
    network has the density. The published method is silent on linear layers: their pattern is
    ours.

    Args:
        network: The network.
        density: The share of all weights to keep, in (0, 1].

    Raises:
        InputError: The convolutions and the last layer alone keep more than that, or the density
            cannot be reached because only linear layers between them give way.

    Source: Kundu et al., Pre-defined Sparsity for Low-Complexity CNNs, IEEE TC 2020.
    """
    weights = weights_of(network)
    names, masks, free = list(weights), {}, []
    for position, (name, module) in enumerate(synapses(network).items()):
        weight = weights[name]
        masks[name] = torch.ones_like(weight, dtype=torch.bool)
        if position in (0, len(names) - 1):
            continue
        if isinstance(module, nn.Linear):
            free.append(name)
        elif tuple(weight.shape[2:]) == (3, 3):
            masks[name] = _psc4(weight.shape).to(weight.device)
    fixed = sum(int(mask.sum()) for name, mask in masks.items() if name not in free)
    room = sum(weights[n].numel() for n in free)
    share = (budget(network, density) - fixed) / room if room else -1.0
    if not 0 < share <= 1:
        raise InputError(
            f"density {density:g} is out of reach of the predefined patterns: what is not a hidden "
            f"linear layer keeps {fixed:,} weights; choose a density that {room:,} more can meet."
        )
    for name in free:
        masks[name] = _diagonals(weights[name].shape, share).to(weights[name].device)
    return masks


def _psc4(shape: torch.Size) -> Tensor:
    """The mask of a convolution `[filter, channel, 3, 3]`."""
    filters, channels = int(shape[0]), int(shape[1])
    patterns = torch.zeros(PERIOD, 9, dtype=torch.bool)
    for phase, positions in PSC4.items():
        patterns[phase, list(positions)] = True
    phases = torch.arange(filters)[:, None] + torch.arange(channels) + 1
    return patterns[phases % PERIOD].reshape(shape)


def _diagonals(shape: torch.Size, share: float) -> Tensor:
    """The mask of a linear layer `[output, input]`: weights at an even distance in every row."""
    outputs, inputs = int(shape[0]), int(shape[1])
    place = (torch.arange(outputs)[:, None] + torch.arange(inputs)).double()
    mask: Tensor = ((place + 1) * share).floor() > (place * share).floor()
    return mask


@torch.no_grad()
def apply_(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set every masked weight to zero, in place.

    >>> network = nn.Sequential(nn.Linear(2, 1))
    >>> apply_(network, {"0": torch.tensor([[True, False]])})
    >>> network[0].weight[0, 1].item()
    0.0
    """
    layers = synapses(network)
    for name, mask in masks.items():
        weight = layers[name].weight
        assert isinstance(weight, Tensor)
        # A product would leave NaN and infinity where they are.
        weight.masked_fill_(~mask, 0.0)


def kept(masks: Mapping[str, Tensor]) -> int:
    """The number of weights that masks keep."""
    return sum(int(mask.sum()) for mask in masks.values())
