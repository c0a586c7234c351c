"""PDSG: a Gaussian surrogate as wide as the membranes are spread."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustsnn.estimators.base import Estimator
from robustsnn.estimators.bptt import through_time
from robustsnn.snn.backward_rule import Trace


@dataclass(frozen=True)
class Pdsg(Estimator):
    """Backpropagation through time with a potential-dependent surrogate.

    `g(u) = exp(-(u - s/2)^2 / (2 s^2)) / (sqrt(2 pi) s)`, where s is the standard deviation of u
    over the steps so far and the pixels, per channel (over all neurons of a flat layer), and 1
    where it is 0. As published s is that of the whole batch; here it is that of each image, so that
    a verdict does not depend on the other images.

    Source: Lun et al., CVPR 2025 (arXiv 2503.03272).

    Examples:
        >>> Pdsg().name
        'pdsg'
    """

    kind: ClassVar[str] = "pdsg"

    def rule(self, grad: Tensor, trace: Trace) -> Tensor:
        """Through time with that derivative."""
        first = trace.membranes[0]
        over = tuple(range(2, first.dim())) if first.dim() > 2 else (1,)
        mean, square = 0.0 * first, 0.0 * first
        derivative = []
        for t, membrane in enumerate(trace.membranes):
            u = membrane - trace.threshold
            # Moments of the means: a running mean keeps the digits that a sum would lose.
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
