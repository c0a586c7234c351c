"""How many passes each image has cost, and how many gradients were of no use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Ledger:
    """Counts for each image, int64 `[image]`; a victim and all its selections share one.

    Args:
        forward: Forward passes.
        backward: Backward passes.
        zero: Backward passes whose gradient was all zero.
        nonfinite: Backward passes whose gradient held NaN or infinity.
    """

    forward: Tensor
    backward: Tensor
    zero: Tensor
    nonfinite: Tensor

    @classmethod
    def empty(cls, images: int) -> Ledger:
        """A ledger of so many images that nothing has been asked about."""
        return cls(*(torch.zeros(images, dtype=torch.int64) for _ in range(4)))
