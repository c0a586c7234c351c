"""A network under attack: logits, gradients, and a count of what was asked for each image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from robustsnn.adversary.activity import Counted, Counting, activity_of, apart
from robustsnn.adversary.ledger import Ledger
from robustsnn.adversary.losses import Loss, TargetedLoss, loss_function, targeted_loss
from robustsnn.adversary.passes import Exposed, VictimPasses
from robustsnn.common.randomness import derive, positions
from robustsnn.estimators.base import Estimator, Found
from robustsnn.estimators.make import make_estimator
from robustsnn.models.batching import micro_batch_for, padding
from robustsnn.models.calling import call, calling
from robustsnn.snn.draws import mean_of_draws


@dataclass(frozen=True)
class Gradient:
    """What one call of `Victim.gradient` returns.

    Args:
        loss: The loss of each image, `[batch]`.
        logits: The logits, `[batch, class]`.
        gradient: The gradient of each image's own loss, finite, shaped like the images.
    """

    loss: Tensor
    logits: Tensor
    gradient: Tensor


class Victim:
    """The part of a network that an attack may use.

    Only inside each call the network is frozen, in evaluation mode and differentiated by the
    estimator; between calls it is as it was. Every forward pass runs in micro-batches padded to
    one shape, because a spike at the threshold may flip with the shape of the batch.

    Args:
        network: The network, from images in pixel units, `[batch, channel, height, width]`, to
            logits `[batch, class]`. A plain module works; one that declares `stochastic` is given
            `keys`, fresh at every pass and derived from the seed, the image and its pass count.
        estimator: The estimator of the gradient.
        image_ids: The id of each image that will be attacked, in order.
        micro_batch: The number of images in a forward pass; by default one that suits the network.
        seed: The seed of the draws of a stochastic network.
        substitute: The victim that a transfer attack crafts on instead, with the same images.
        start: The proposal of largest margin that earlier attacks of a cascade made for each
            image, shaped like the images.
        shrink: Whether the last micro-batch is padded to the next power of two only. Few images
            then cost less, and a spike at the threshold may flip where the shape changes.

    Examples:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> victim = Victim(network, make_estimator("bptt", network), image_ids=[0, 1])
        >>> found = victim.gradient(torch.rand(2, 1, 2, 2), torch.tensor([0, 2]))
        >>> found.gradient.shape, victim.backward_passes.tolist()
        (torch.Size([2, 1, 2, 2]), [1, 1])
    """

    def __init__(
        self,
        network: nn.Module,
        estimator: Estimator,
        image_ids: Sequence[int] | Tensor,
        micro_batch: int | None = None,
        seed: int = 0,
        substitute: Victim | None = None,
        start: Tensor | None = None,
        shrink: bool = False,
    ) -> None:
        ids = image_ids.tolist() if isinstance(image_ids, Tensor) else image_ids
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1, got {micro_batch}")
        if substitute is not None and len(substitute) != len(ids):
            raise ValueError("the substitute victim holds another number of images")
        if start is not None and len(start) != len(ids):
            raise ValueError("start holds another number of images")
        self._network = network
        self._pass: Callable[..., Tensor] = partial(call, network)
        self._counting = Counting(network)
        self.estimator = estimator
        self.start = start
        self.shrink = shrink
        self.image_ids: tuple[int, ...] = tuple(int(i) for i in ids)
        self.micro_batch = micro_batch_for(network) if micro_batch is None else micro_batch
        self.seed = seed
        self.substitute = substitute
        self._ledger = Ledger.empty(len(self.image_ids))
        self._rows = torch.arange(len(self.image_ids))

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def stochastic(self) -> bool:
        """Whether two passes of the same image may differ."""
        return bool(getattr(self._network, "stochastic", False))

    @property
    def draws(self) -> int:
        """The number of draws that a gradient and its logits are averaged over; 1 without any."""
        return self.estimator.draws if self.stochastic else 1

    @property
    def classes(self) -> int | None:
        """The number of classes, if the network declares it."""
        classes = getattr(self._network, "classes", None)
        return None if classes is None else int(classes)

    @property
    def forward_passes(self) -> Tensor:
        """Forward passes of each image so far, int64 `[batch]`."""
        return self._ledger.forward[self._rows]

    @property
    def backward_passes(self) -> Tensor:
        """Backward passes of each image so far, int64 `[batch]`."""
        return self._ledger.backward[self._rows]

    @property
    def zero_grad(self) -> Tensor:
        """Backward passes whose gradient was all zero, int64 `[batch]`."""
        self._ledger.settle()
        return self._ledger.zero[self._rows]

    @property
    def nonfinite_grad(self) -> Tensor:
        """Backward passes with a NaN or infinite entry, int64 `[batch]`."""
        self._ledger.settle()
        return self._ledger.nonfinite[self._rows]

    def select(self, index: Tensor | Sequence[int], micro_batch: int | None = None) -> Victim:
        """The victim of a part of the images, which shares the counts with this one.

        Args:
            index: The positions of the images in this victim, or a boolean mask over its images.
            micro_batch: The number of images in a forward pass; by default that of this victim.
        """
        chosen = positions(index, len(self))
        sub = self._copy()
        sub.image_ids = tuple(self.image_ids[i] for i in chosen.tolist())
        sub.micro_batch = self.micro_batch if micro_batch is None else micro_batch
        sub._rows = self._rows[chosen]
        if self.start is not None:
            sub.start = self.start[chosen]
        if self.substitute is not None:
            sub.substitute = self.substitute.select(chosen, micro_batch)
        return sub

    def under(self, estimator: Estimator | str) -> Victim:
        """The same victim, differentiated by another estimator; the counts are shared.

        Raises:
            InputError: There is no such estimator, or it does not fit this network.
        """
        if isinstance(estimator, str):
            estimator = make_estimator(estimator, self._network)
        other = self._copy()
        other.estimator = estimator
        return other

    def fresh(self) -> None:
        """Let the estimator forget what it remembers of these images, since a restart begins."""
        self.estimator.forget(self._rows)

    def logits(self, images: Tensor, draws: int = 1) -> Tensor:
        """Logits `[batch, class]`, without gradient; one forward pass of each image and draw.

        Args:
            images: The images, `[batch, channel, height, width]`, in pixel units.
            draws: The number of draws of a stochastic network. More than one gives the mean over
                them; they are the same in every call, so that two proposals can be compared.
        """
        self._check(images)
        with torch.no_grad(), self._attacked():
            if draws == 1 or not self.stochastic:
                return self._forward(images.detach(), self._count_forward(len(images)))
            every = []
            for draw in range(draws):
                self._count_forward(len(images))
                common = [derive(self.seed, "common", i, draw) for i in self.image_ids]
                keys = torch.tensor(common, dtype=torch.int64)
                every.append(self._forward(images.detach(), keys))
            return mean_of_draws(torch.stack(every))

    def gradient(
        self,
        images: Tensor,
        labels: Tensor,
        loss: str = "cross-entropy",
        targets: Tensor | None = None,
    ) -> Gradient:
        """Loss, logits and input gradient of each image; one forward and one backward pass.

        An estimator that averages over draws makes one pass of each kind for each draw, and its
        loss and logits are those of the mean logits; one that takes differences makes no backward
        pass. A gradient that does not reach the input is all zero, and a NaN or infinite entry is
        replaced by 0; both are counted per image.

        Args:
            images: The images, `[batch, channel, height, width]`, in pixel units.
            labels: The true classes, int64 `[batch]`.
            loss: The loss that a step along the gradient raises: one of
                `robustsnn.adversary.losses.LOSSES`, or with `targets` one of `TARGETED`.
            targets: The classes to reach, int64 `[batch]`.

        Raises:
            InputError: There is no such loss.
        """
        if targets is None:
            function = loss_function(loss)
            return self._gradient(images, labels, lambda here: function)
        goal, wanted = targeted_loss(loss), targets
        return self._gradient(
            images, labels, lambda here: partial(_towards, goal, wanted[here].clone())
        )

    def activity(self, images: Tensor, draws: int = 1) -> Counted:
        """Synaptic operations and logits, without gradient; a forward pass of each image and draw.

        Args:
            images: The images, `[batch, channel, height, width]`, in pixel units.
            draws: The number of draws of a stochastic network, as in `logits`.

        Raises:
            InputError: The network does not spike, or its operations cannot be counted.
        """
        return apart(self._with_counts().logits(images, draws), images.dtype)

    def activity_gradient(self, images: Tensor) -> Gradient:
        """Synaptic operations, logits and the direction in which the operations grow.

        It costs what `gradient` costs and is counted in the same way; its loss is the number of
        synaptic operations of each image. See `robustsnn.adversary.activity`.

        Args:
            images: The images, `[batch, channel, height, width]`, in pixel units.

        Raises:
            InputError: The network does not spike, or its operations cannot be counted.
        """
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        found = self._with_counts()._gradient(images, labels, lambda here: activity_of)
        operations, logits = apart(found.logits, images.dtype)
        return Gradient(operations, logits, found.gradient)

    def _with_counts(self) -> Victim:
        """The same victim, whose logits carry the synaptic operations of each image."""
        self._counting.check()
        other = self._copy()
        other._pass = self._counting
        return other

    def _copy(self) -> Victim:
        other = Victim.__new__(Victim)
        other.__dict__.update(self.__dict__)
        return other

    def _gradient(
        self, images: Tensor, labels: Tensor, loss_of: Callable[[slice], Loss]
    ) -> Gradient:
        """The gradient of a loss that may be another function for each part of the images."""
        self._check(images)
        # All draws of an image go through the network together.
        size = max(1, self.micro_batch // self.draws)
        parts: list[Found] = []
        with (
            calling(self._network),
            torch.inference_mode(False),
            torch.enable_grad(),
            self._attacked(),
        ):
            for begin in range(0, len(images), size):
                here = slice(begin, begin + size)
                some = labels[here].clone()
                x = images[here].detach().clone()
                passes = VictimPasses(self, here)
                parts.append(self.estimator.gradient(passes, x, some, loss_of(here)))
        if not parts:
            logits = self.logits(images)
            return Gradient(logits.new_empty(0), logits, torch.zeros_like(images))
        values, logits, gradient = (torch.cat(p) for p in zip(*parts, strict=True))
        return Gradient(values, logits, self._finite(gradient))

    @property
    def network(self) -> nn.Module:
        """The network as a module in pixel units, for other libraries; passes are counted.

        It is evaluated as in every other call. In a batch of another length than this victim's,
        rows cannot be matched with images: the passes are spread over all images, rounded up.
        """
        return Exposed(self)

    def _check(self, images: Tensor) -> None:
        if len(images) != len(self):
            raise ValueError(f"{len(images)} images for a victim of {len(self)}: use select")

    @contextmanager
    def _attacked(self) -> Iterator[None]:
        """Freeze the network and set evaluation mode inside the block; restore both afterwards."""
        modes = [(module, module.training) for module in self._network.modules()]
        frozen = [p for p in self._network.parameters() if p.requires_grad]
        try:
            self._network.eval()
            for parameter in frozen:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
            for module, training in modes:
                module.training = training

    def _forward(self, images: Tensor, keys: Tensor | None, whole: bool = False) -> Tensor:
        """Logits in micro-batches of one shape; a gradient may flow.

        Args:
            images: The images, of any number.
            keys: The keys of their draws, if the network draws.
            whole: Whether they run in a single batch of exactly their number, without padding.
        """
        outputs = []
        size = max(len(images), 1) if whole else self.micro_batch
        for start in range(0, max(len(images), 1), size):
            chunk = images[start : start + size].contiguous()
            missing = 0 if whole else self._missing(len(chunk))
            real = len(chunk)
            if missing:
                chunk = torch.cat([chunk, chunk[-1:].detach().expand(missing, *chunk.shape[1:])])
            if keys is None:
                outputs.append(self._pass(chunk)[:real])
                continue
            some = keys[start : start + size]
            if missing:
                some = torch.cat([some, some[-1:].expand(missing)])
            outputs.append(self._pass(chunk, keys=some)[:real])
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _exposed(self, images: Tensor, keys: Tensor | None) -> Tensor:
        """Logits for other libraries, whose gradient is that of the estimator."""
        rows = self._rows.repeat(-(-len(images) // max(len(self), 1)))
        outputs = []
        for begin in range(0, max(len(images), 1), self.micro_batch):
            here = slice(begin, begin + self.micro_batch)
            some = None if keys is None else keys[here]
            padded = self._padded(rows[: len(images)][here])
            with self.estimator.applied(self._network, padded):
                found = self._forward(images[here], some)
            if not self.estimator.faithful:
                with torch.no_grad():
                    own = self._forward(images[here].detach(), some)
                found = own + (found - found.detach())
            outputs.append(found)
        return torch.cat(outputs)

    def _missing(self, real: int) -> int:
        """The number of copies that pad a micro-batch of that many images."""
        wanted = self.micro_batch
        if self.shrink and real:
            wanted = min(1 << (real - 1).bit_length(), self.micro_batch)
        return padding(real, wanted)

    def _padded(self, rows: Tensor) -> Tensor:
        missing = self._missing(len(rows))
        return torch.cat([rows, rows[-1:].expand(missing)]) if missing else rows

    def _spend(self, rows: Tensor, forward: int = 0, backward: int = 0) -> Tensor | None:
        """Count passes of those images; the keys of their draws, if the network draws."""
        keys = None
        if self.stochastic:
            place = {row: self.image_ids[i] for i, row in enumerate(self._rows.tolist())}
            spent = self._ledger.forward[rows].tolist()
            keys = torch.tensor(
                [
                    derive(self.seed, "key", place[row], passes, 0)
                    for row, passes in zip(rows.tolist(), spent, strict=True)
                ],
                dtype=torch.int64,
            )
        self._ledger.forward.index_add_(0, rows, torch.full((len(rows),), forward))
        self._ledger.backward.index_add_(0, rows, torch.full((len(rows),), backward))
        return keys

    def _count_forward(self, rows: int) -> Tensor | None:
        """Count one pass of that many images; the keys of their draws, if the network draws."""
        keys = None
        if self.stochastic:
            passes = self.forward_passes.tolist()
            keys = torch.tensor(
                [
                    derive(
                        self.seed,
                        "key",
                        self.image_ids[i % len(self)],
                        passes[i % len(self)],
                        i // len(self),
                    )
                    for i in range(rows)
                ],
                dtype=torch.int64,
            )
        self._add(self._ledger.forward, self._passes(rows))
        return keys

    def _count_backward(self, gradient: Tensor) -> Tensor:
        """Count one backward pass and its defects; the gradient with finite entries only."""
        self._add(self._ledger.backward, self._passes(len(gradient)))
        return self._finite(gradient)

    def _finite(self, gradient: Tensor) -> Tensor:
        """Count the defects of a gradient; the gradient with finite entries only."""
        weight = self.draws
        flat = gradient.flatten(1)
        finite = flat.isfinite().all(1)
        zero = (flat == 0).all(1)
        if len(gradient) == len(self):
            self._ledger.defects(self._rows, zero * weight, ~finite * weight)
        # Elsewhere, to know whether anything has to be replaced would be to wait for the device.
        if gradient.device.type == "cpu" and bool(finite.all()):
            return gradient
        return torch.where(gradient.isfinite(), gradient, torch.zeros_like(gradient))

    def _passes(self, rows: int) -> Tensor:
        return torch.full((len(self),), -(-rows // max(len(self), 1)))

    def _add(self, counts: Tensor, amount: Tensor) -> None:
        counts.index_add_(0, self._rows, amount.to("cpu", torch.int64))


def _towards(goal: TargetedLoss, targets: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    return goal(logits, labels, targets)
