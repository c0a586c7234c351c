"""RGA: the slope of the firing rate as a function of the mean current."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustsnn.errors import InputError
from robustsnn.estimators.base import Estimator
from robustsnn.snn.backward_rule import Trace
from robustsnn.snn.neuron import rule_kernels


@dataclass(frozen=True)
class Rga(Estimator):
    """The derivative of the firing rate as a function of the current's mean over time.

    With leak `tau` and threshold V it is `(1 - gamma V + gamma V tau) / ((tau + beta - 1) V)` where
    the mean current lies in `[(1 - tau) V, beta V]`, gamma where it lies in `[0, (1 - tau) V)`, and
    0 where it lies outside both. A neuron that may spike more than once in a step does not
    saturate, so there the first interval has no upper end.

    Args:
        gamma: The derivative below the current that makes a neuron fire, at least 0.
        beta: The mean current at which the rate saturates, in units of the threshold, above 1.

    Source: Bu et al., Rate Gradient Approximation, CVPR 2023.

    Examples:
        >>> Rga(gamma=0.3).name
        'rga:gamma=0.3'
    """

    kind: ClassVar[str] = "rga"
    gamma: float = 0.2
    beta: float = 2.0

    def __post_init__(self) -> None:
        if self.beta <= 1 or self.gamma < 0:
            raise InputError("rga: beta must be above 1, gamma at least 0.")

    def rule(self, grad: Tensor, trace: Trace) -> Tensor:
        """The gradient of the current: `grad` times the same derivative at every step."""
        if (kernels := rule_kernels(grad, trace)) is not None:
            made: Tensor = kernels.rga(grad, trace, self.gamma, self.beta)
            return made
        mean = trace.current.mean(0, keepdim=True)
        v = trace.threshold if trace.live is None else trace.live.mean(0)
        tau = trace.leak
        slope = (1 - self.gamma * v + self.gamma * v * tau) / ((tau + self.beta - 1) * v)
        firing = mean >= (1 - tau) * v
        if not trace.graded:
            firing &= mean <= self.beta * v
        below = (mean >= 0) & (mean < (1 - tau) * v)
        return grad * (slope * firing + self.gamma * below)


ESTIMATOR = Rga
