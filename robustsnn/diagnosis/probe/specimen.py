"""A few images and a network under measurement: what every part of the probe works on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustsnn.adversary.victim import Gradient, Victim
from robustsnn.common.randomness import Rng, derive
from robustsnn.errors import InputError
from robustsnn.estimators.base import Estimator
from robustsnn.estimators.make import make_estimator
from robustsnn.models.scoring import score
from robustsnn.snn.backward_rule import spiking_layers

OWN = "bptt"
#: Of every family one, as the probes of a cascade have them; widths in units of the threshold.
ESTIMATORS = (
    OWN,
    "bptt:triangle:width=0.5",
    "bptt:arctan:width=0.0796",
    "assg:vanishing=0.425",
    "hart:width=0.5",
    "bptr",
    "rga",
)


@dataclass(frozen=True)
class Sizes:
    """How much a probe measures.

    Args:
        wide: Images of what costs little an image.
        narrow: Images of what costs much.
        directions: Random signs of the gradient check.
        draws: Of noise, for each image.
        steps: Of the attack whose path is looked at.
        far: Of the attack that may go anywhere.
        checked: Images of the gradient check; fewer are taken several times over.
    """

    wide: int = 64
    narrow: int = 32
    directions: int = 64
    draws: int = 100
    steps: int = 40
    far: int = 10
    checked: int = 32

    @classmethod
    def of(cls, samples: int) -> Sizes:
        """Few images where few are evaluated, so that a probe stays the smaller part.

        But for the gradient check: of a few images chance alone reaches what it asks for.
        """
        wide = max(8, min(64, samples // 8))
        return cls(wide=max(wide, cls.checked), narrow=wide // 2)


@dataclass
class Spent:
    """Passes of single images."""

    forward: int = 0
    backward: int = 0


@dataclass(frozen=True, eq=False)
class Sample:
    """A network and some images that it gets right.

    Victims are made anew for every measurement and for no more images than one forward takes, so
    nothing that an estimator remembers outlives it or grows.

    Args:
        network: In evaluation mode.
        images: `[batch, channel, height, width]` in [0, 1].
        labels: True classes, int64 `[batch]`.
        ids: One an image.
        micro_batch: Images per forward.
        seed: Of every draw.
        spent: Counts of all samples of one probe.
    """

    network: nn.Module
    images: Tensor
    labels: Tensor
    ids: tuple[int, ...]
    micro_batch: int
    seed: int
    spent: Spent = field(default_factory=Spent)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def spiking(self) -> bool:
        """Whether estimators can reach its spikes."""
        return bool(spiking_layers(self.network))

    @property
    def estimators(self) -> tuple[str, ...]:
        """The names of those of `ESTIMATORS` that this network can use, its own first."""
        usable = []
        for text in ESTIMATORS if self.spiking else ESTIMATORS[:1]:
            try:
                make_estimator(text, self.network)
            except InputError:
                continue
            usable.append(text)
        return tuple(usable)

    def at(self, rows: Tensor | slice) -> Sample:
        """Some of the images."""
        places = torch.arange(len(self))[rows]
        return Sample(
            self.network,
            self.images[places],
            self.labels[places],
            tuple(self.ids[i] for i in places.tolist()),
            self.micro_batch,
            self.seed,
            self.spent,
        )

    def first(self, count: int) -> Sample:
        """The first few."""
        return self.at(slice(0, count))

    def copied(self, times: int) -> Sample:
        """All the images so many times over, each copy with draws of its own."""
        found = self.at(torch.arange(len(self)).repeat(times))
        ids = [derive(i, "copy", n) if n else i for n in range(times) for i in self.ids]
        return dataclasses.replace(found, ids=tuple(ids))

    def parts(self) -> Iterator[Sample]:
        """As many images at a time as one forward takes."""
        for begin in range(0, len(self), self.micro_batch):
            yield self.at(slice(begin, begin + self.micro_batch))

    def rng(self, stream: str) -> Rng:
        """Draws of a named purpose."""
        return Rng(self.seed, self.ids, f"diagnosis/{stream}")

    def victim(self, estimator: str | Estimator = OWN) -> Victim:
        """A fresh victim; `settle` counts what it was asked."""
        if isinstance(estimator, str):
            estimator = make_estimator(estimator, self.network)
        return Victim(self.network, estimator, self.ids, self.micro_batch, self.seed)

    def settle(self, victim: Victim) -> None:
        """Take in the passes of a victim that is done with."""
        self.spent.forward += int(victim.forward_passes.sum())
        self.spent.backward += int(victim.backward_passes.sum())

    def gradient(
        self,
        estimator: str | Callable[[], Estimator],
        images: Tensor | None = None,
        loss: str = "margin",
    ) -> Gradient:
        """Loss, logits and gradient of each image, under an estimator made anew for each part."""
        where = self.images if images is None else images
        found = []
        for begin, part in zip(range(0, len(self), self.micro_batch), self.parts(), strict=True):
            victim = part.victim(estimator if isinstance(estimator, str) else estimator())
            x = where[begin : begin + self.micro_batch]
            found.append(victim.gradient(x, part.labels, loss))
            self.settle(victim)
        return joined(found)

    def judge(self, images: Tensor) -> Tensor:
        """Logits `[batch, class]` as a verdict takes them: a plain forward."""
        self.spent.forward += len(images)
        return score(self.network, images, self.ids, self.micro_batch, self.seed)


def joined(gradients: Sequence[Gradient]) -> Gradient:
    """The gradients of several parts as one."""
    return Gradient(
        torch.cat([g.loss for g in gradients]),
        torch.cat([g.logits for g in gradients]),
        torch.cat([g.gradient for g in gradients]),
    )
