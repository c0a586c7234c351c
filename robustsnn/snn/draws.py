"""Several draws of a stochastic network, taken together."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_of_draws(logits: Tensor) -> Tensor:
    """Mean `[batch, class]` of logits `[draw, batch, class]` over the draws that are all finite.

    NaN where that is half of them or less: a vote would then hardly give a class either, and one
    draw of many without numbers must not count as an error, or attacks would stop there.

    Examples:
        >>> mean_of_draws(torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]))
        tensor([[2., 3.]])
    """
    finite = logits.isfinite().all(2, keepdim=True)
    count = finite.sum(0)
    # Divided first: a sum of half-precision logits overflows.
    mean = (torch.where(finite, logits, 0.0) / count.clamp_min(1)).sum(0)
    return torch.where(2 * count > len(logits), mean, torch.nan)
