"""What an attack is: the protocol that every file in `attacks/` keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from robustsnn.adversary.threat import ThreatModel
    from robustsnn.adversary.victim import Victim
    from robustsnn.common.randomness import Rng


class Attack(Protocol):
    """Hyper-parameters are the fields of a frozen dataclass; all else is an argument.

    `kind` is one of `KINDS`. `steps`, `restarts`, `norms` (the norms it can work in) and
    `gradient_free` (it follows none, so records name no estimator) are read where an attack has
    them. A class may define `from_spec(text)` to read what follows its name.
    """

    kind: ClassVar[str]

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, shaped like the images, which it leaves untouched.

        Args:
            victim: The network under attack.
            images: `[batch, channel, height, width]`, pixel units within the threat's range.
            labels: True classes, int64 `[batch]`.
            threat: Norm, radius and range to stay in.
            rng: A generator per image.
        """
