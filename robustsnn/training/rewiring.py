"""Sparse learning: the smallest weights go, and others grow where the gradient asks for them.

Pruning is by magnitude in each layer; what was pruned grows again where the momentum of the
gradient is largest, and layers with more momentum get more of it, so that one density of the whole
network finds the densities of its layers. Source: Dettmers and Zettlemoyer, Sparse Networks from
Scratch, 2019, on which Kundu et al. build Spike-Thrift (WACV 2021) and DNR (ASP-DAC 2021). Ours:
the total is met exactly after every step, where the source corrects it over the next ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from robustsnn.training.masks import Masks

#: The share of its empty positions that one layer may grow into at once.
ROOM = 0.99
#: A momentum below this share of the largest in its layer is what is left of a gradient that
#: vanished: a weight that grew there would hardly move.
LEAST_MOMENTUM = 1e-6
#: A layer that is denser than this and matters more than the mean loses fewer weights.
NEARLY_DENSE = 0.8


def significance(masks: Mapping[str, Tensor], momenta: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean size of the momentum over the kept weights of each layer, as shares of their sum.

    >>> kept = {"a": torch.tensor([True, False]), "b": torch.tensor([True, True])}
    >>> significance(kept, {"a": torch.tensor([3.0, 9.0]), "b": torch.tensor([1.0, -1.0])})
    {'a': 0.75, 'b': 0.25}
    """
    means = {}
    for name, mask in masks.items():
        some = momenta[name][mask].abs()
        means[name] = float(some.double().mean()) if len(some) else 0.0
    total = sum(means.values())
    if not total > 0 or not math.isfinite(total):
        return dict.fromkeys(means, 1 / len(means))
    return {name: mean / total for name, mean in means.items()}


def allocate(amount: int, shares: Sequence[float], rooms: Sequence[int]) -> list[int]:
    """Split an amount in proportion to shares, with a cap for each; the sum is exact.

    What a cap refuses goes to the others in proportion to their shares, and in equal parts where
    those are 0.

    Args:
        amount: What is split, at most the sum of the caps.
        shares: The share of each, >= 0.
        rooms: The cap of each, >= 0.

    Examples:
        >>> allocate(10, [0.8, 0.1, 0.1], [4, 100, 100])
        [4, 3, 3]

    Raises:
        ValueError: The caps do not hold the amount.
    """
    if amount > sum(rooms):
        raise ValueError(f"{amount} does not fit in {sum(rooms)}")
    given = [0] * len(rooms)
    left = amount
    while left:
        places = [i for i, room in enumerate(rooms) if given[i] < room]
        weights = [shares[i] for i in places]
        whole = sum(weights)
        if whole <= 0:
            weights, whole = [1.0] * len(places), float(len(places))
        quotas = [left * w / whole for w in weights]
        full = [i for i, q in zip(places, quotas, strict=True) if q >= rooms[i] - given[i]]
        if full:
            for i in full:
                left -= rooms[i] - given[i]
                given[i] = rooms[i]
            continue
        for i, quota in zip(places, quotas, strict=True):
            given[i] += math.floor(quota)
            left -= math.floor(quota)
        by_rest = sorted(zip(places, quotas, strict=True), key=lambda p: math.floor(p[1]) - p[1])
        for i, _ in by_rest[:left]:
            given[i] += 1
        left -= min(left, len(by_rest))
    return given


def removals(kept: int, weights: int, share: float, rate: float, layers: int) -> int:
    """The number of weights that a layer loses, at least one fewer than it has.

    Args:
        kept: The number of weights that it has.
        weights: The number that it could have.
        share: Its significance, as a share of the sum over layers.
        rate: The share of its weights to prune, in [0, 1].
        layers: The number of layers.

    >>> removals(kept=100, weights=1000, share=0.1, rate=0.25, layers=5)
    25
    """
    empty = 1 - kept / weights
    if empty < 1 - NEARLY_DENSE and share > 1 / layers:
        rate = min(empty, rate)
    return min(math.ceil(rate * kept), max(kept - 1, 0))


@torch.no_grad()
def rewired(
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    momenta: Mapping[str, Tensor],
    rate: float,
    total: int,
) -> Masks:
    """The masks after one step of pruning and growing.

    Args:
        weights: The weights of each layer, zero where they are masked.
        masks: The masks, bool.
        momenta: The momentum of the gradient of each weight, of masked ones too.
        rate: The share of its weights that each layer loses, in [0, 1].
        total: The number of weights that the new masks keep, in all layers together.

    Returns:
        Masks that keep exactly `total` weights; what grows was masked before or just pruned.

    Raises:
        ValueError: The pruned masks already keep more than `total`, or the layers have no room
            for it.
    """
    shares = significance(masks, momenta)
    pruned: Masks = {}
    for name, mask in masks.items():
        have = int(mask.sum())
        lose = removals(have, mask.numel(), shares[name], rate, len(masks))
        sizes = weights[name].abs().masked_fill(~mask, torch.inf).reshape(-1)
        smaller = mask.reshape(-1).clone()
        smaller[torch.topk(sizes, lose, largest=False).indices] = False
        pruned[name] = smaller.reshape(mask.shape)
    left = {name: int(mask.sum()) for name, mask in pruned.items()}
    grow = total - sum(left.values())
    if grow < 0:
        raise ValueError(f"{sum(left.values())} weights are kept, more than {total}")
    rooms = _rooms(pruned, momenta, grow)
    gains = allocate(grow, [shares[name] for name in pruned], rooms)
    for (name, mask), gain in zip(pruned.items(), gains, strict=True):
        sizes = momenta[name].abs().nan_to_num(nan=0.0).masked_fill(mask, -1.0).reshape(-1)
        larger = mask.reshape(-1).clone()
        larger[torch.topk(sizes, gain).indices] = True
        pruned[name] = larger.reshape(mask.shape)
    return pruned


def _rooms(masks: Mapping[str, Tensor], momenta: Mapping[str, Tensor], grow: int) -> list[int]:
    """How many weights each layer can take.

    A weight without momentum would stay at zero, so it counts only where the others do not
    suffice, as the last share of the empty positions does.
    """
    empty = [mask.numel() - int(mask.sum()) for mask in masks.values()]
    moving = [_moving(momenta[name], mask) for name, mask in masks.items()]
    share = [math.floor(ROOM * e) for e in empty]
    for rooms in ([min(s, m) for s, m in zip(share, moving, strict=True)], share):
        if sum(rooms) >= grow:
            return rooms
    return empty


def _moving(momentum: Tensor, mask: Tensor) -> int:
    """The number of masked weights of a layer that would move if they grew."""
    sizes = momentum.abs().nan_to_num(nan=0.0)
    return int((sizes[~mask] > LEAST_MOMENTUM * sizes.max()).sum())


def cosine(start: float, end: float, progress: float) -> float:
    """The rate at a point of training, between its start (0) and its end (1), along a cosine.

    >>> cosine(0.5, 0.25, 1.0)
    0.25
    """
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
