"""BPTR: the gradient passes where a neuron fired at all, whenever that was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustsnn.errors import InputError
from robustsnn.estimators.base import Estimator
from robustsnn.snn.backward_rule import Trace
from robustsnn.snn.neuron import rule_kernels


@dataclass(frozen=True)
class Bptr(Estimator):
    """Backpropagation through the rate.

    Args:
        leak: The share of the gradient that passes through a neuron that never fired, in [0, 1].
            With 0, as published, the gradient cannot make a silent neuron fire.

    Source: Ding et al., SNN-RAT, NeurIPS 2022.

    Examples:
        >>> Bptr(0.1).name
        'bptr:leak=0.1'
    """

    kind: ClassVar[str] = "bptr"
    leak: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.leak <= 1:
            raise InputError("bptr: leak must lie in [0, 1].")

    def rule(self, grad: Tensor, trace: Trace) -> Tensor:
        """The gradient of the current, `grad * max(1[mean over time of spikes > 0], leak)`."""
        if (kernels := rule_kernels(grad, trace)) is not None:
            made: Tensor = kernels.bptr(grad, trace, self.leak)
            return made
        fired = trace.spikes.amax(0, keepdim=True)
        if trace.graded:
            fired = fired.clamp(max=1)
        return grad * (fired.clamp_min(self.leak) if self.leak else fired)


ESTIMATOR = Bptr
