"""How many passes each image has cost, and how many of its gradients were of no use."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

#: The number of gradients after which the defects that wait are counted.
LONGEST_WAIT = 1000


@dataclass
class Ledger:
    """Counts for each image, int64 `[image]`; a victim and all its selections share one ledger.

    Args:
        forward: The number of forward passes.
        backward: The number of backward passes.
        zero: The number of backward passes whose gradient was all zero.
        nonfinite: The number of backward passes whose gradient held NaN or infinity.

    Defects that are found on another device wait there until somebody asks, so that a step of an
    attack does not wait for the device: `settle` before `zero` or `nonfinite` is read.
    """

    forward: Tensor
    backward: Tensor
    zero: Tensor
    nonfinite: Tensor
    _waiting: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False, repr=False)

    @classmethod
    def empty(cls, images: int) -> Ledger:
        """A ledger of that many images, about which nothing has been asked yet.

        Examples:
            >>> Ledger.empty(2).forward
            tensor([0, 0])
        """
        return cls(*(torch.zeros(images, dtype=torch.int64) for _ in range(4)))

    def defects(self, rows: Tensor, zero: Tensor, nonfinite: Tensor) -> None:
        """Add what a gradient lacked.

        Args:
            rows: The rows of its images, int64 `[batch]`, on the CPU.
            zero: The number of gradients that were all zero, int64 `[batch]`, on any device.
            nonfinite: The number of those with NaN or infinity, of the same form.
        """
        self._waiting.append((rows, torch.stack([zero, nonfinite])))
        if zero.device.type == "cpu" or len(self._waiting) >= LONGEST_WAIT:
            self.settle()

    def settle(self) -> None:
        """Count the defects that wait, with one copy from the device."""
        if not self._waiting:
            return
        rows = torch.cat([rows for rows, _ in self._waiting])
        zero, nonfinite = torch.cat([found for _, found in self._waiting], dim=1).cpu()
        self._waiting.clear()
        self.zero.index_add_(0, rows, zero)
        self.nonfinite.index_add_(0, rows, nonfinite)
