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


def _derive(seed: int, key: int) -> int:
    digest = hashlib.sha256(f"poisson/{seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
