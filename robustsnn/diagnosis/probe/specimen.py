"""A network and a few images under measurement, on which every part of the probe works."""

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

#: The network's own derivative.
OWN = "bptt"
#: One estimator of every family, as in the probes of a cascade; widths in units of the threshold.
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
        wide: The number of images in measurements that cost little per image.
        narrow: The number of images in measurements that cost much.
        directions: The number of random signs of the gradient check.
        draws: The number of draws of noise for each image.
        steps: The steps of the attack whose path is looked at.
        far: The steps of the attack that may go anywhere.
        checked: The number of images of the gradient check; if there are fewer, each is taken
            several times.
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
        """The sizes for that many evaluated images, so that the probe costs less than the attacks.

        The gradient check keeps its number of images, because on a few images even chance passes
        it.

        Examples:
            >>> Sizes.of(128).narrow
            8
        """
        wide = max(8, min(64, samples // 8))
        return cls(wide=max(wide, cls.checked), narrow=wide // 2)


@dataclass
class Spent:
    """The numbers of passes of single images, and the seconds that earlier starts took for some."""

    forward: int = 0
    backward: int = 0
    earlier: float = 0.0


@dataclass(frozen=True, eq=False)
class Specimen:
    """A network and some images that it classifies right.

    Each measurement makes new victims, each for no more images than one forward pass takes, so
    that nothing that an estimator remembers outlives the measurement or grows.

    Args:
        network: The network, in evaluation mode.
        images: The images, `[batch, channel, height, width]`, in [0, 1].
        labels: The true classes, int64 `[batch]`.
        ids: The id of each image.
        micro_batch: The number of images in a forward pass.
        seed: The seed of every draw.
        spent: The passes of all specimens of one probe.
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
        """Whether estimators can reach the spikes of the network."""
        return bool(spiking_layers(self.network))

    @property
    def estimators(self) -> tuple[str, ...]:
        """Those of `ESTIMATORS` that fit this network, its own derivative first."""
        usable = []
        for text in ESTIMATORS if self.spiking else ESTIMATORS[:1]:
            try:
                make_estimator(text, self.network)
            except InputError:
                continue
            usable.append(text)
        return tuple(usable)

    def at(self, rows: Tensor | slice) -> Specimen:
        """The specimen of the images at those positions, or under that mask."""
        places = torch.arange(len(self))[rows]
        return Specimen(
            self.network,
            self.images[places],
            self.labels[places],
            tuple(self.ids[i] for i in places.tolist()),
            self.micro_batch,
            self.seed,
            self.spent,
        )

    def first(self, count: int) -> Specimen:
        """The specimen of the first images, that many."""
        return self.at(slice(0, count))

    def copied(self, times: int) -> Specimen:
        """All the images, repeated that many times; each copy has draws of its own."""
        found = self.at(torch.arange(len(self)).repeat(times))
        ids = [derive(i, "copy", n) if n else i for n in range(times) for i in self.ids]
        return dataclasses.replace(found, ids=tuple(ids))

    def parts(self) -> Iterator[Specimen]:
        """The specimen in parts of as many images as one forward pass takes."""
        for begin in range(0, len(self), self.micro_batch):
            yield self.at(slice(begin, begin + self.micro_batch))

    def rng(self, stream: str) -> Rng:
        """The generators of the draws for one named purpose."""
        return Rng(self.seed, self.ids, f"diagnosis/{stream}")

    def victim(self, estimator: str | Estimator = OWN) -> Victim:
        """A fresh victim; `settle` adds its passes to those that were spent."""
        if isinstance(estimator, str):
            estimator = make_estimator(estimator, self.network)
        return Victim(self.network, estimator, self.ids, self.micro_batch, self.seed)

    def settle(self, victim: Victim) -> None:
        """Add the passes of a victim that is not needed any more."""
        self.spent.forward += int(victim.forward_passes.sum())
        self.spent.backward += int(victim.backward_passes.sum())

    def gradient(
        self,
        estimator: str | Callable[[], Estimator],
        images: Tensor | None = None,
        loss: str = "margin",
    ) -> Gradient:
        """Loss, logits and gradient of each image, by an estimator made anew for each part.

        Args:
            estimator: The estimator, as text or as a function that makes it.
            images: The points, `[image, ...]`; by default the images themselves.
            loss: The name of the loss.
        """
        where = self.images if images is None else images
        found = []
        for begin, part in zip(range(0, len(self), self.micro_batch), self.parts(), strict=True):
            victim = part.victim(estimator if isinstance(estimator, str) else estimator())
            x = where[begin : begin + self.micro_batch]
            found.append(victim.gradient(x, part.labels, loss))
            self.settle(victim)
        return joined(found)

    def judge(self, images: Tensor) -> Tensor:
        """Logits `[batch, class]` from a plain forward pass, as the judge takes them."""
        self.spent.forward += len(images)
        return score(self.network, images, self.ids, self.micro_batch, self.seed)


def joined(gradients: Sequence[Gradient]) -> Gradient:
    """The gradients of several parts, joined to one."""
    return Gradient(
        torch.cat([g.loss for g in gradients]),
        torch.cat([g.logits for g in gradients]),
        torch.cat([g.gradient for g in gradients]),
    )
