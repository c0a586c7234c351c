"""What a victim lends: the passes of a micro-batch to its estimator, the network to libraries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from robustsnn.adversary.victim import Victim


@dataclass(frozen=True, eq=False)
class VictimPasses:
    """The passes of one micro-batch, lent to an estimator; see `robustsnn.estimators.base.Passes`.

    Args:
        victim: The victim whose images are in the micro-batch.
        here: The positions of these images among the images of the victim.
    """

    victim: Victim
    here: slice

    @property
    def network(self) -> nn.Module:
        """The network under attack."""
        return self.victim._network

    @property
    def stochastic(self) -> bool:
        """Whether two passes of the same image may differ, because the network draws."""
        return self.victim.stochastic

    @property
    def rows(self) -> Tensor:
        """The rows of these images in the ledger of the victim, int64 `[batch]`."""
        return self.victim._rows[self.here]

    @property
    def ids(self) -> list[int]:
        """The ids of these images."""
        return list(self.victim.image_ids[self.here])

    @property
    def seed(self) -> int:
        """The seed of the victim's draws."""
        return self.victim.seed

    @property
    def spent(self) -> list[int]:
        """The forward passes that each image has cost so far."""
        return [int(count) for count in self.victim._ledger.forward[self.rows]]

    def spend(self, forward: int = 0, backward: int = 0) -> Tensor | None:
        """Count passes of each image; the keys of their draws, if the network draws."""
        return self.victim._spend(self.rows, forward, backward)

    def logits(self, images: Tensor, keys: Tensor | None, whole: bool = False) -> Tensor:
        """Logits `[batch, class]` from batches of one shape; the passes are not counted."""
        return self.victim._forward(images, keys, whole)

    def padded(self) -> Tensor:
        """`rows`, followed by one entry for each copy that pads the micro-batch."""
        return self.victim._padded(self.rows)

    def nonfinite(self, counts: Tensor) -> None:
        """Add to the counts of gradients that hold NaN or infinity, int64 `[batch]`."""
        self.victim._ledger.nonfinite.index_add_(0, self.rows, counts)


class Exposed(nn.Module):
    """The victim's network, counted and evaluated as in the victim's own calls, in any mode."""

    def __init__(self, victim: Victim) -> None:
        super().__init__()
        # In a tuple, so that no outer call reaches the network's own mode through this module.
        self._victim = (victim,)
        self.training = False

    def train(self, mode: bool = True) -> Exposed:
        """Do nothing: the victim sets the mode in each call."""
        return self

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The parameters of the network, from which libraries take the device."""
        return self._victim[0]._network.parameters(recurse)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[batch, class]` of images in pixel units."""
        victim = self._victim[0]
        keys = victim._count_forward(len(images))
        x = images
        if torch.is_grad_enabled() and images.requires_grad:
            x = images.view_as(images)
            x.register_hook(victim._count_backward)
        with victim._attacked():
            return victim._exposed(x, keys)
