"""How many passes each image has cost, and how many gradients were of no use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class _Ledger:
    """Counts per image, int64 `[image]`; shared by a victim and all its selections."""

    forward: Tensor
    backward: Tensor
    zero: Tensor
    nonfinite: Tensor

    @classmethod
    def empty(cls, images: int) -> _Ledger:
        return cls(*(torch.zeros(images, dtype=torch.int64) for _ in range(4)))
