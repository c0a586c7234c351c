"""PDSG: a Gaussian surrogate as wide as the membranes are spread."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustsnn.estimators.base import Estimator
from robustsnn.snn.backward_rule import Trace, through_time


@dataclass(frozen=True)
class Pdsg(Estimator):
    """Backpropagation through time with a potential-dependent surrogate.

    `g(u) = exp(-(u - s/2)^2 / (2 s^2)) / (sqrt(2 pi) s)`, where u is the membrane minus the
    threshold and s the standard deviation of u over the steps so far and the pixels, per channel
    (over all neurons of a flat layer), or 1 if that is 0. As published, s is taken over the whole
    batch; here it is taken over each image, so that an image is attacked in the same way in any
    batch.

    Source: Lun et al., CVPR 2025 (arXiv 2503.03272).

    Examples:
        >>> Pdsg().name
        'pdsg'
    """

    kind: ClassVar[str] = "pdsg"

    def rule(self, grad: Tensor, trace: Trace) -> Tensor:
        """The gradient of the current, through time with that derivative."""
        first = trace.membranes[0]
        over = tuple(range(2, first.dim())) if first.dim() > 2 else (1,)
        mean, square = 0.0 * first, 0.0 * first
        derivative = []
        for t, membrane in enumerate(trace.membranes):
            u = membrane - trace.threshold_at(t)
            # Running means of the moments keep the digits that sums would lose.
            here = u.mean(over, keepdim=True)
            spread = (u - here).square().mean(over, keepdim=True)
            if t == 0:
                mean, square = here, spread
            else:
                weight = t / (t + 1)
                square = (
                    weight * square
                    + (1 - weight) * spread
                    + weight * (1 - weight) * (here - mean).square()
                )
                mean = weight * mean + (1 - weight) * here
            sigma = square.sqrt()
            sigma = torch.where(sigma > 0, sigma, torch.ones_like(sigma))
            shifted = (u - sigma / 2) / sigma
            derivative.append(torch.exp(-0.5 * shifted.square()) / (math.sqrt(2 * math.pi) * sigma))
        return through_time(grad, trace, derivative)


ESTIMATOR = Pdsg
