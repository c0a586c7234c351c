"""Sparse learning of whole channels, so that the network can be made smaller.

As `robustsnn.training.rewiring`, with channels in place of weights: a channel is as large as the
Frobenius norm of the weights that read it, and grows where the norm of their momentum is largest.
Only the weights that read a channel are masked. Those that make it stay, so that it can grow again.
Source: Kundu et al., DNR, ASP-DAC 2021, as described; the budget in weights is ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from robustsnn.errors import InputError
from robustsnn.snn.channels import Boundary, boundaries, slices, weights_left
from robustsnn.snn.network import Network
from robustsnn.snn.sparsity import weights_of
from robustsnn.training.masks import Masks
from robustsnn.training.rewiring import allocate, removals

#: How far the weights that are left may be from those that were asked for, as a share.
TOLERANCE = 0.01


def drawn_channels(
    network: Network, density: float, generator: torch.Generator, widest: float = 1.0
) -> Masks:
    """Masks that keep about the same share of the channels of every boundary, at random.

    Args:
        network: The network, without shortcuts.
        density: The share of the synaptic weights that is left without the other channels.
        generator: The source of the draws, on the CPU.
        widest: The largest share of its channels that a boundary may keep, in (0, 1].

    Raises:
        InputError: The network has shortcuts, or no number of channels leaves that density.
    """
    places = boundaries(network)
    total = sum(w.numel() for w in weights_of(network).values())
    numbers = fitted(
        network,
        [1] * len(places),
        [float(b.channels) for b in places],
        round(density * total),
        limits_of(places, widest),
    )
    chosen = {}
    for boundary, number in zip(places, numbers, strict=True):
        order = torch.randperm(boundary.channels, generator=generator)
        mask = torch.zeros(boundary.channels, dtype=torch.bool)
        mask[order[:number]] = True
        chosen[boundary.consumer] = mask
    return _masks(network, places, chosen)


def kept_channels(masks: Mapping[str, Tensor], places: Sequence[Boundary]) -> dict[str, Tensor]:
    """The channels that masks keep, bool `[channel]`, by the name of the layer that reads them."""
    return {
        b.consumer: slices(masks[b.consumer], b.channels).flatten(2).any(2).any(0) for b in places
    }


@torch.no_grad()
def rewired_channels(
    network: Network,
    masks: Mapping[str, Tensor],
    momenta: Mapping[str, Tensor],
    rate: float,
    density: float,
    widest: float = 1.0,
) -> Masks:
    """The masks after one step of pruning and growing channels.

    Args:
        network: The network, with masked weights at zero.
        masks: The masks, which keep or leave whole channels.
        momenta: The momentum of the gradient of each weight, of masked ones too.
        rate: The share of its channels that each boundary loses, in [0, 1].
        density: The share of all weights that the network without the other channels has.
        widest: The largest share of its channels that a boundary may keep, in (0, 1].

    Raises:
        InputError: The network has shortcuts, or no number of channels leaves that density.
    """
    places = boundaries(network)
    weights = weights_of(network)
    kept = kept_channels(masks, places)
    sizes = {b.consumer: _norms(weights[b.consumer], b) for b in places}
    pulls = {b.consumer: _norms(momenta[b.consumer].nan_to_num(nan=0.0), b) for b in places}
    means = [float(pulls[b.consumer][kept[b.consumer]].mean()) for b in places]
    whole = sum(means)
    shares = [m / whole if whole > 0 else 1 / len(means) for m in means]
    for boundary, share in zip(places, shares, strict=True):
        mask = kept[boundary.consumer]
        lose = removals(int(mask.sum()), boundary.channels, share, rate, len(places))
        norms = sizes[boundary.consumer].masked_fill(~mask, torch.inf)
        mask[torch.topk(norms, lose, largest=False).indices] = False
    total = sum(w.numel() for w in weights.values())
    left = [int(kept[b.consumer].sum()) for b in places]
    limits = limits_of(places, widest)
    numbers = fitted(network, left, shares, round(density * total), limits)
    for boundary, number in zip(places, numbers, strict=True):
        mask = kept[boundary.consumer]
        have = int(mask.sum())
        if number > have:
            pull = pulls[boundary.consumer].masked_fill(mask, -1.0)
            mask[torch.topk(pull, number - have).indices] = True
        else:
            norms = sizes[boundary.consumer].masked_fill(~mask, torch.inf)
            mask[torch.topk(norms, have - number, largest=False).indices] = False
    return _masks(network, places, kept)


def limits_of(places: Sequence[Boundary], widest: float) -> list[int]:
    """The largest number of channels that each boundary may keep, at least 1.

    Args:
        places: The boundaries.
        widest: The largest share, in (0, 1].
    """
    return [max(1, math.floor(widest * b.channels + 1e-9)) for b in places]


def fitted(
    network: Network,
    least: Sequence[int],
    shares: Sequence[float],
    target: int,
    limits: Sequence[int],
) -> list[int]:
    """Numbers of channels that leave so many weights: some more than there are, by shares.

    Args:
        network: The network before any channel is removed.
        least: The number of channels at each boundary to start from.
        shares: What is added to each goes by these.
        target: The number of weights to leave.
        limits: The largest number of channels at each boundary.

    Raises:
        InputError: The nearest number of weights is more than 1 % away.
    """
    rooms = [limit - n for limit, n in zip(limits, least, strict=True)]

    def added(number: int) -> list[int]:
        return [n + a for n, a in zip(least, allocate(number, shares, rooms), strict=True)]

    low, high = 0, sum(rooms)
    while low < high:
        middle = (low + high + 1) // 2
        if weights_left(network, added(middle)) <= target:
            low = middle
        else:
            high = middle - 1
    numbers = _nearest(network, added(low), target, limits)
    off = abs(weights_left(network, numbers) - target)
    if off > TOLERANCE * target:
        raise InputError(
            f"no number of channels leaves {target:,} weights to {100 * TOLERANCE:g} %: the "
            f"nearest found leaves {weights_left(network, numbers):,}; choose another "
            "sparsity.density, or a larger sparsity.widest."
        )
    return numbers


def _nearest(network: Network, numbers: list[int], target: int, limits: Sequence[int]) -> list[int]:
    """Small steps, each the one that comes nearest to the target, until it is met or none helps.

    A step adds or removes a channel at one boundary, or up to two at each of two boundaries where
    no single one helps. The largest number of each boundary is its limit, and the least is 1.
    """

    def off(some: Sequence[int]) -> int:
        return abs(weights_left(network, some) - target)

    def moved(*moves: tuple[int, int]) -> list[int]:
        some = list(numbers)
        for place, step in moves:
            some[place] += step
        return some

    singles = [(place, step) for place in range(len(limits)) for step in (-1, 1)]
    doubles = [(place, step) for place in range(len(limits)) for step in (-2, -1, 1, 2)]
    pairs = [p for p in itertools.combinations(doubles, 2) if p[0][0] != p[1][0]]
    while off(numbers) > TOLERANCE * target:
        for kind in ([(one,) for one in singles], pairs):
            steps = [moved(*moves) for moves in kind]
            allowed = [s for s in steps if all(1 <= n <= m for n, m in zip(s, limits, strict=True))]
            best = min(allowed, key=off, default=numbers)
            if off(best) < off(numbers):
                numbers = best
                break
        else:
            return numbers
    return numbers


def _norms(weight: Tensor, boundary: Boundary) -> Tensor:
    """The Frobenius norm of the weights that read each channel, `[channel]`."""
    return slices(weight, boundary.channels).double().square().sum((0, 2)).sqrt()


def _masks(network: Network, places: Sequence[Boundary], kept: Mapping[str, Tensor]) -> Masks:
    """The masks of all layers: only the weights that read a channel that is gone are masked."""
    masks = {
        n: torch.ones(w.shape, dtype=torch.bool, device=w.device)
        for n, w in weights_of(network).items()
    }
    for boundary in places:
        mask = masks[boundary.consumer]
        keep = kept[boundary.consumer].to(mask.device)
        slices(mask, boundary.channels)[:, ~keep] = False
    return masks
