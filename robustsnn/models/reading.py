"""A network read at a layer inside: its own classes, and margins from the values of that layer.

What a network returns may be flat where a layer inside is not: the winner of a vote, a count of
spikes, the time of a first spike. An attack that follows what the layer says then sees how near
another class is, and is judged by the whole network all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustsnn.models.calling import ANY, AT_ONCE
from robustsnn.models.scoring import score
from robustsnn.snn.copying import copy_of

#: How the values of a layer lie: an image a row, `[time, batch, ...]`, or both in one dimension
#: with the steps of an image together or with the images of a step together.
Fold = Literal["batch", "time, batch", "batch * time", "time * batch"]
#: What layers return in the calls of one pass, by their names, the layer that ends first first.
Seen = dict[str, list[Tensor]]
Act = Callable[[Seen, Tensor, Tensor], Tensor]
#: The share of images on which the values of a layer have to name the class of the network, to be
#: taken as scores as they are, and after a linear read-out was fitted to them.
LEAST_AGREED, LEAST_FITTED = 0.9, 0.5
#: The weight of the squared length of a read-out, as a share of the mean square of the features.
RIDGE = 1e-2
#: The number of images from which a read-out is fitted.
FEWEST_FITTED = 16
#: The number of values of a layer, of one image and step, up to which it is looked at, and that of
#: steps.
MOST_FEATURES, MOST_STEPS = 1 << 15, 64
#: By how much the class of the network leads where the layer names another one, as a share of the
#: largest score.
LEAD = 1e-5


@dataclass(frozen=True, eq=False)
class Reading:
    """Where and how a network is read.

    Args:
        layer: The name of the layer in the network, as `named_modules` of its root has it.
        fold: How its values lie.
        weight: The linear read-out of the values of an image, `[value, class]`; None where they
            are scores already.
        offset: What is added to its scores, `[class]`.
    """

    layer: str
    fold: Fold
    weight: Tensor | None = field(default=None, repr=False)
    offset: Tensor | None = field(default=None, repr=False)

    def scores(self, outputs: Sequence[Tensor], batch: int) -> Tensor:
        """The scores `[batch, class]` of what the layer returned in the calls of one pass.

        Values of several steps are summed, which is what a read-out that counts does.
        """
        values = sum(_by_image(one, batch, self.fold) for one in outputs)
        assert isinstance(values, Tensor)
        if self.weight is None:
            return values
        return values @ self.weight.to(values) + self.offset.to(values)  # type: ignore[union-attr]


def root_of(network: nn.Module) -> nn.Module:
    """The module whose `forward` returns the logits, without what was put around it here."""
    inner = getattr(network, "inner", None)
    ours = type(network).__module__.startswith("robustsnn.foreign.")
    return inner if ours and isinstance(inner, nn.Module) else network


def read_at(network: nn.Module, reading: Reading) -> nn.Module:
    """The network, changed in place so that it returns what a layer inside says.

    Its classes stay those that it gave before: where the layer names another class, the network's
    own is put in front by a hair. Ties and logits that are not finite stay as they are.

    Args:
        network: A copy of a network that nobody else uses.
        reading: Where and how it is read.

    Examples:
        >>> class Vote(nn.Sequential):
        ...     def forward(self, images):
        ...         return nn.functional.one_hot(super().forward(images).argmax(1), 2).float()
        >>> image = torch.tensor([[0.25, 0.75]])
        >>> read_at(Vote(nn.Identity()), Reading("0", "batch"))(image)
        tensor([[0.2500, 0.7500]])
    """
    reading_at = partial(_read, reading)
    return _acting(network, (reading.layer,), reading_at)


def _read(reading: Reading, seen: Seen, images: Tensor, logits: Tensor) -> Tensor:
    outputs = seen.get(reading.layer)
    if not outputs:
        return logits
    return _agreeing(reading.scores(outputs, len(images)), logits.detach())


def _acting(network: nn.Module, layers: Sequence[str] | None, act: Act) -> nn.Module:
    """The network, changed in place so that it returns what a function makes of its layers."""
    root = root_of(network)
    # An object and not a function, so that a copy of the network calls its own layers.
    root.forward = _Forward(root, vars(root).get("forward"), layers, act)
    return network


class _Forward:
    """The forward pass of a network under observation.

    Args:
        root: The module whose pass it is.
        inner: What that module has in place of the forward pass of its class, if anything.
        layers: The names of the layers that are observed; None for all.
        act: What makes the result of what they return, of the images and of the logits.
    """

    def __init__(
        self,
        root: nn.Module,
        inner: Callable[..., Tensor] | None,
        layers: Sequence[str] | None,
        act: Act,
    ) -> None:
        self.root, self.inner, self.layers, self.act = root, inner, layers, act

    def __call__(self, images: Tensor, *more: Any, **given: Any) -> Tensor:
        inside = {name: one for name, one in self.root.named_modules() if name}
        layers = inside if self.layers is None else {n: inside[n] for n in self.layers}
        with _outputs_of(layers) as seen:
            if self.inner is not None:
                logits = self.inner(images, *more, **given)
            else:
                logits = type(self.root).forward(self.root, images, *more, **given)
        return self.act(seen, images, logits)


def _agreeing(scores: Tensor, logits: Tensor) -> Tensor:
    """The scores `[batch, class]`, with the class of the logits in front."""
    said = logits.argmax(1, keepdim=True)
    own = scores.gather(1, said)
    others = scores.detach().scatter(1, said, float("-inf")).amax(1, keepdim=True)
    lead = LEAD * scores.detach().abs().amax(1, keepdim=True) + 1e-12
    lift = (others + lead - own.detach()).clamp_min(0)
    raised = scores.scatter(1, said, torch.where(own > others, own, own + lift))
    top = logits.topk(2, dim=1).values
    plain = logits.isfinite().all(1) & (top[:, 0] > top[:, 1])
    return torch.where(plain[:, None], raised, logits.to(raised.dtype))


@contextmanager
def _outputs_of(modules: Mapping[str, nn.Module]) -> Iterator[Seen]:
    """Collect what modules return inside the block: by name, in the order in which they end.

    Of a module that returns several things, the first one counts.
    """
    seen: Seen = {}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            while isinstance(output, tuple | list) and output:
                output = output[0]
            if isinstance(output, Tensor) and output.is_floating_point():
                # The order is that of the last calls.
                seen[name] = [*seen.pop(name, []), output]

        return hook

    handles = [one.register_forward_hook(hook_of(name)) for name, one in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _by_image(values: Tensor, batch: int, fold: Fold) -> Tensor:
    """The values of a layer as `[batch, value]`, summed over steps."""
    if fold == "time, batch":
        values = values.sum(0)
    elif fold == "time * batch":
        values = values.unflatten(0, (-1, batch)).sum(0)
    elif fold == "batch * time":
        values = values.unflatten(0, (batch, -1)).sum(1)
    return values.flatten(1)


def readings(
    network: nn.Module, images: Tensor, ids: Sequence[int], micro_batch: int, seed: int
) -> Iterator[Reading]:
    """Where a network can be read, from its last layer backwards.

    A layer is taken as it is if it has one value for each class, the largest of which nearly
    always names the class that the network gives, and with a read-out that is fitted to the
    classes of the network on those images if that finds them on images it was not fitted to.

    Args:
        network: The network, in evaluation mode; it is left as it was.
        images: Some images, `[batch, channel, height, width]`, in [0, 1].
        ids: The id of each image.
        micro_batch: The number of images in a forward pass.
        seed: The seed of the draws of a stochastic network.
    """
    logits = score(network, images, ids, micro_batch, seed)
    said = logits.argmax(1)
    folds = _folds(network, images, ids, seed)
    for name in reversed(folds):
        values = _values(network, Reading(name, folds[name]), images, ids, micro_batch, seed)
        if not bool(values.isfinite().all()):
            continue
        if values.shape[1] == logits.shape[1] and _agreed(values, logits) >= LEAST_AGREED:
            yield Reading(name, folds[name])
        elif values.shape[1] > 1 and len(values) >= FEWEST_FITTED:
            half = _fitted(values[::2], said[::2], logits.shape[1])
            right = _share((values[1::2] @ half[0] + half[1]).argmax(1), said[1::2])
            if right >= LEAST_FITTED:
                yield Reading(name, folds[name], *_fitted(values, said, logits.shape[1]))


def reading_of(
    network: nn.Module,
    layer: str,
    images: Tensor,
    ids: Sequence[int],
    micro_batch: int,
    seed: int,
) -> Reading | None:
    """The reading at a layer of that name; None if the network cannot be read there.

    The other arguments are those of `readings`.
    """
    found = readings(network, images, ids, micro_batch, seed)
    return next((one for one in found if one.layer == layer), None)


def _folds(network: nn.Module, images: Tensor, ids: Sequence[int], seed: int) -> dict[str, Fold]:
    """How the values of each layer lie, in the order in which the layers end.

    Told by two passes of as many images, of which the first is the same in both.
    """
    count = getattr(network, AT_ONCE, None) or ANY
    places = [place % len(images) for place in range(count)]
    several = _seen(network, images[places], [ids[p] for p in places], seed)
    alike = _seen(network, images[[0] * count], [ids[0]] * count, seed)
    found: dict[str, Fold] = {}
    for name, outputs in several.items():
        small = outputs[0].numel() <= MOST_FEATURES * count * MOST_STEPS
        if small and (fold := _fold(outputs[0], alike[name][0], count)) is not None:
            found[name] = fold
    return found


def _seen(network: nn.Module, images: Tensor, ids: Sequence[int], seed: int) -> Seen:
    """What all layers return in one pass."""
    kept: Seen = {}

    def keep(seen: Seen, images: Tensor, logits: Tensor) -> Tensor:
        kept.update(seen)
        return logits

    score(_acting(copy_of(network), None, keep), images, ids, len(images), seed)
    return kept


def _fold(several: Tensor, alike: Tensor, count: int) -> Fold | None:
    """How values lie, from a pass of several images and one of the first of them alone."""
    if several.shape != alike.shape or several.dim() < 2:
        return None
    same = (several - alike).abs()

    def differs(of_first: Tensor) -> float:
        # What belongs to the first image is the same in both passes.
        return float(of_first.double().mean())

    found: list[tuple[float, Fold]] = []
    if len(several) == count:
        found.append((differs(same[0]), "batch"))
    if several.shape[1] == count and several.dim() > 2:
        found.append((differs(same[:, 0]), "time, batch"))
    if len(several) > count and len(several) % count == 0:
        found.append((differs(same[::count]), "time * batch"))
        found.append((differs(same[: len(several) // count]), "batch * time"))
    return min(found, key=lambda one: one[0])[1] if found else None


def _values(
    network: nn.Module,
    plain: Reading,
    images: Tensor,
    ids: Sequence[int],
    micro_batch: int,
    seed: int,
) -> Tensor:
    """The values of a layer for each image, float32 `[image, value]`."""

    def values(seen: Seen, images: Tensor, logits: Tensor) -> Tensor:
        return plain.scores(seen[plain.layer], len(images))

    watched = _acting(copy_of(network), (plain.layer,), values)
    return score(watched, images, ids, micro_batch, seed).float()


def _fitted(values: Tensor, said: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """A linear read-out of values `[image, value]` that names the classes, by ridge regression."""
    wide = values.double()
    mean = wide.mean(0)
    centred = wide - mean
    wanted = 2 * nn.functional.one_hot(said, classes).double() - 1
    level = wanted.mean(0)
    gram = centred @ centred.T
    ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-12)
    dual = torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), wanted - level)
    weight = centred.T @ dual
    return weight.to(values.dtype), (level - mean @ weight).to(values.dtype)


def _agreed(values: Tensor, logits: Tensor) -> float:
    """The share of images on which the largest value names a class that the logits put first."""
    first = logits.gather(1, values.argmax(1, keepdim=True))[:, 0]
    return _share(first, logits.amax(1))


def _share(one: Tensor, other: Tensor) -> float:
    return float((one == other).double().mean())
