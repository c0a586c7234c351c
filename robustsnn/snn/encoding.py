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
    draws = _uniform(images, steps, keys, f"poisson/{seed}")
    x = images.detach()
    spikes = torch.sign(x) * (draws <= x.abs()).to(images.dtype)
    if not images.requires_grad:
        return spikes
    return spikes + (images - x)


def quantised(images: Tensor, steps: int, levels: int, keys: Tensor, seed: int = 0) -> Tensor:
    """A code that rounds each pixel up or down at random, on a scale of so many levels.

    A pixel x becomes `ceil(x N) / N` with probability `x N - floor(x N)` and `floor(x N) / N`
    otherwise, drawn anew at each step, so that its mean over time is x. With one level it is a
    Poisson code of the pixel, and with many it comes close to direct input.

    Args:
        images: Pixels in [0, 1], `[batch, channel, height, width]`; values outside are clamped.
        steps: The number of time steps.
        levels: The number N of levels above zero, at least 1.
        keys: The key of each image, int64 `[batch]`, by which its draws are made, as in `poisson`.
        seed: The seed of the encoding.

    Returns:
        Values in {0, 1/N, ..., 1}, `[time, batch, channel, height, width]`. The gradient goes
        straight through the sampler: `ds[t]/dx = 1`.

    Source: ours, to lie between the two encodings of the literature by one number.

    Examples:
        >>> quantised(torch.tensor([[[[0.0, 0.25, 1.0]]]]), 2, 4, torch.tensor([0]))[1, 0, 0, 0]
        tensor([0.0000, 0.2500, 1.0000])
    """
    x = images.detach().clamp(0, 1)
    scaled = x * levels
    lower = scaled.floor()
    draws = _uniform(images, steps, keys, f"quantised/{seed}")
    values = (lower + (draws < scaled - lower).to(x.dtype)) / levels
    if not images.requires_grad:
        return values
    return values + (images - images.detach())


def _uniform(images: Tensor, steps: int, keys: Tensor, stream: str) -> Tensor:
    """Draws from U(0, 1) for each step and pixel, `[time, batch, channel, height, width]`."""
    shape = (steps, *images.shape[1:])
    return torch.stack(
        [
            torch.rand(shape, generator=torch.Generator().manual_seed(_derive(stream, key)))
            for key in keys.tolist()
        ],
        dim=1,
    ).to(images.device)


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


def single_spike(images: Tensor, normalised: Tensor, steps: int) -> Tensor:
    """The analog image at the first step, and one spike of each pixel at one of the others.

    Args:
        images: Pixels in [0, 1], `[batch, channel, height, width]`.
        normalised: The same pixels as the first layer is to see them, of the same shape.
        steps: The number of time steps T; with one step, the analog image is all there is.

    Returns:
        Values `[time, batch, channel, height, width]`: `normalised` at the first step, then the
        spikes of `latency` over the other T - 1 steps, by which a pixel x fires at step
        `2 + round((T - 2) (1 - x))`, counted from 1. The gradient of the first step is exact, and
        that of the others is the one of `latency`.

    Source: the form is that of Datta et al., IJCNN 2021 (arXiv 2107.12374), whose exact code is not
    public; that brightness decides, linearly, and that spikes are 1 is our choice.

    Examples:
        >>> x = torch.tensor([[[[0.0, 0.5, 1.0]]]])
        >>> single_spike(x, 2 * x - 1, 4)[:, 0, 0, 0].tolist()
        [[-1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    analog = normalised.unsqueeze(0)
    return analog if steps == 1 else torch.cat([analog, latency(images, steps - 1)])


def first_spikes(spikes: Tensor) -> Tensor:
    """The first spike of each neuron, `[time, batch, ...]`; later ones are taken away.

    Which spikes are first is held fixed in the backward pass.

    Examples:
        >>> first_spikes(torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]))
        tensor([[0., 1.],
                [1., 0.],
                [0., 0.]])
    """
    held = spikes.detach()
    return spikes * (held.cumsum(0) - held == 0)


def _derive(stream: str, key: int) -> int:
    digest = hashlib.sha256(f"{stream}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
