"""What an attack is: the protocol that the class in every file of `attacks/` keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from robustsnn.adversary.threat import ThreatModel
    from robustsnn.adversary.victim import Victim
    from robustsnn.common.randomness import Rng


class Attack(Protocol):
    """A frozen dataclass whose fields are the hyper-parameters; all else is an argument.

    `kind` is one of `robustsnn.common.kinds.KINDS`. If an attack has `steps`, `restarts`, `norms`
    (the norms that it can work in) or `gradient_free` (whether it follows no gradient, so that
    records name no estimator), they are read too. A class may define `from_spec(text)` to read the
    text after its name.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Nothing:
        ...     kind = "none"
        ...     def __call__(self, victim, images, labels, threat, rng):
        ...         return images.clone()
        >>> Nothing().kind
        'none'
    """

    kind: ClassVar[str]

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """The proposed images, shaped like the images, which stay untouched.

        Args:
            victim: The network under attack.
            images: The clean images, `[batch, channel, height, width]`, in pixel units within the
                range of the threat model.
            labels: The true classes, int64 `[batch]`.
            threat: The threat model: norm, radius and pixel range to stay in.
            rng: One generator for each image.
        """
