"""The passes of one micro-batch, which a victim lends to its estimator and counts by image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from robustsnn.adversary.victim import Victim


@dataclass(frozen=True, eq=False)
class VictimPasses:
    """The passes of one micro-batch, lent to an estimator; see `robustsnn.estimators.base.Passes`.

    Args:
        victim: The victim whose images they are.
        here: Which of them.
    """

    victim: Victim
    here: slice

    @property
    def network(self) -> nn.Module:
        """The network under attack."""
        return self.victim._network

    @property
    def stochastic(self) -> bool:
        """Whether the network draws."""
        return self.victim.stochastic

    @property
    def rows(self) -> Tensor:
        """Which of the victim's images these are, int64 `[batch]`."""
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
        """Count passes of each image, and give the keys of their draws."""
        return self.victim._spend(self.rows, forward, backward)

    def logits(self, images: Tensor, keys: Tensor | None, whole: bool = False) -> Tensor:
        """Logits in batches of one shape, nothing counted."""
        return self.victim._forward(images, keys, whole)

    def padded(self) -> Tensor:
        """`rows`, and the copies that pad the pass."""
        return self.victim._padded(self.rows)

    def nonfinite(self, counts: Tensor) -> None:
        """Add to the counts of gradients without numbers."""
        self.victim._ledger.nonfinite.index_add_(0, self.rows, counts)
