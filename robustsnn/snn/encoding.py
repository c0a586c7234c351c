"""Encodings: how a still image becomes a sequence of inputs."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def direct(images: Tensor) -> Tensor:
    """The same analog image at every step, as a static input `[1, batch, ...]`.

    The first layer runs on it once, and not once for each step.
    """
    return images.unsqueeze(0)


def poisson(images: Tensor, steps: int, keys: Tensor, seed: int = 0) -> Tensor:
    """A signed rate code: `s[t] = sign(x) * 1[r <= |x|]` with a new `r ~ U(0, 1)` at each step.

    Args:
        images: Values scaled to [-1, 1], `[batch, channel, height, width]`; |x| > 1 saturates.
        steps: The number of time steps.
        keys: The key of each image, int64 `[batch]`. The draws of an image depend on its key, the
            seed and its shape only, so they are the same alone, in any batch and in any precision.
        seed: The seed of the encoding.

    Returns:
        Spikes in {-1, 0, 1}, `[time, batch, channel, height, width]`. The gradient goes straight
        through the sampler: `ds[t]/dx = 1`.

    Source: Rathi et al., ICLR 2020; Sharmin et al., ECCV 2020 (gradient).
    """
    shape = (steps, *images.shape[1:])
    draws = torch.stack(
        [
            torch.rand(shape, generator=torch.Generator().manual_seed(_derive(seed, key)))
            for key in keys.tolist()
        ],
        dim=1,
    ).to(images.device)
    x = images.detach()
    spikes = torch.sign(x) * (draws <= x.abs()).to(images.dtype)
    if not images.requires_grad:
        return spikes
    return spikes + (images - x)


#: A pixel up to this value never fires in a latency code, as in snnTorch's `spikegen.latency`.
SILENT = 0.01


def latency(images: Tensor, steps: int) -> Tensor:
    """A code in which each pixel fires once, the brighter the earlier; a dark one never does.

    Args:
        images: Values in [0, 1], `[batch, channel, height, width]`.
        steps: The number of time steps T, at least 2.

    Returns:
        Spikes in {0, 1}, `[time, batch, channel, height, width]`: a value x above 0.01 fires at
        step `round((T - 1) (1 - x))`. The gradient goes straight through the rounding: a spike
        between two steps is shared by them, so that a brighter pixel takes from the step after its
        own and gives to the one before.

    Source: the linear code of Diehl et al. as in snnTorch 1.0.0, `spikegen.latency(linear=True,
    normalize=True)`; the gradient is ours, where that function has none.

    Examples:
        >>> latency(torch.tensor([[[[0.0, 0.5, 1.0]]]]), 3)[:, 0, 0, 0].tolist()
        [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    x = images.detach()
    fires = torch.round((steps - 1) * (1 - x.clamp(0, 1)))
    fires = torch.where(x > SILENT, fires, torch.full_like(fires, steps))
    time = torch.arange(steps, device=x.device, dtype=x.dtype).reshape(-1, *[1] * x.dim())
    spikes = (time == fires).to(x.dtype)
    if not images.requires_grad:
        return spikes
    earlier, later = (time == fires - 1).to(x.dtype), (time == fires + 1).to(x.dtype)
    # The first and the last step have one neighbour each, and no spike comes from beyond them.
    first, last = (fires == 0).to(x.dtype), (fires == steps - 1).to(x.dtype)
    silent = (fires == steps).to(x.dtype)
    inner = 1 - first - last - silent
    slope = (steps - 1) * (
        inner * (earlier - later) / 2
        + first * (spikes - later)
        + last * (earlier - spikes)
        + silent * earlier
    )
    return spikes + slope * (images - x)


def _derive(seed: int, key: int) -> int:
    digest = hashlib.sha256(f"poisson/{seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
