"""How many passes each image has cost, and how many of its gradients were of no use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Ledger:
    """Counts for each image, int64 `[image]`; a victim and all its selections share one ledger.

    Args:
        forward: The number of forward passes.
        backward: The number of backward passes.
        zero: The number of backward passes whose gradient was all zero.
        nonfinite: The number of backward passes whose gradient held NaN or infinity.
    """

    forward: Tensor
    backward: Tensor
    zero: Tensor
    nonfinite: Tensor

    @classmethod
    def empty(cls, images: int) -> Ledger:
        """A ledger of that many images, about which nothing has been asked yet.

        Examples:
            >>> Ledger.empty(2).forward
            tensor([0, 0])
        """
        return cls(*(torch.zeros(images, dtype=torch.int64) for _ in range(4)))
