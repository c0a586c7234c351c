"""Plain backpropagation: exact for a network without spikes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robustsnn.estimators.base import Estimator


@dataclass(frozen=True)
class Backprop(Estimator):
    """The derivative of the network as torch computes it.

    Examples:
        >>> Backprop().name
        'backprop'
    """

    kind: ClassVar[str] = "backprop"
    spikes: ClassVar[bool | None] = False

    @contextmanager
    def applied(self, network: nn.Module, rows: Tensor | None = None) -> Iterator[None]:
        """Leave the network as it is."""
        yield


ESTIMATOR = Backprop
