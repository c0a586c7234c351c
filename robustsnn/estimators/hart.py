"""HART: no path through the membrane, and the mean over time for every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustsnn.errors import InputError
from robustsnn.estimators.base import Estimator
from robustsnn.snn.backward_rule import Trace
from robustsnn.snn.neuron import rule_kernels


@dataclass(frozen=True)
class Hart(Estimator):
    """`dL/dI[t] = 1/T sum_s g(u[s]) dL/do[s]`, where g is a triangle of that width.

    Args:
        width: The half-support of the triangle, in units of the threshold, above 0.

    Source: Hao et al., HART, ICLR 2024.

    Examples:
        >>> Hart().name
        'hart:width=0.5'
    """

    kind: ClassVar[str] = "hart"
    width: float = 0.5

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise InputError("hart: width must be above 0.")

    @property
    def name(self) -> str:
        """The kind and the width."""
        return self.named(every=True)

    def rule(self, grad: Tensor, trace: Trace) -> Tensor:
        """The gradient of the current, which is the same at every step."""
        if (kernels := rule_kernels(grad, trace)) is not None:
            made: Tensor = kernels.hart(grad, trace, self.width)
            return made
        total = torch.zeros_like(grad[0])
        for t in range(len(trace.membranes)):
            z = trace.over(t).abs_()
            total += grad[t] * (self.width - z).clamp_min_(0)
        scale = self.width**2 * trace.threshold * len(grad)
        return (total / scale).expand_as(grad)


ESTIMATOR = Hart
