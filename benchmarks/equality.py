"""Checks that every library computes the same; without them nothing is timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contenders.base import Contender
from robustsnn.snn.lif_reference import run
from robustsnn.snn.network import Network
from robustsnn.snn.neuron import LIF

#: Largest differences by rounding, when float32 sums in another order, as shares of the largest
#: entry.
LOGIT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4


class UnequalError(Exception):
    """The libraries do not compute the same network, so they are not compared."""


@dataclass(frozen=True)
class Difference:
    """The largest differences from our results, relative to our largest entry."""

    logits: float
    gradient: float


def agreeing_images(
    contenders: Sequence[Contender], images: Tensor, spare: Tensor, network: Network
) -> tuple[Tensor, int]:
    """Images on which all libraries agree, and the number of images that were replaced.

    If a membrane meets the threshold exactly, SpikingJelly fires and the others do not. In float32
    this happens to one membrane in millions, so with many steps it happens in most images. A
    disagreement for any other reason is an error.

    Args:
        contenders: The libraries, with the reference first.
        images: The images, `[batch, channel, height, width]`.
        spare: The images that replace others, in this order.
        network: The network that all compute, to look for membranes that meet the threshold.

    Raises:
        UnequalError: The libraries disagree on an image where no membrane meets the threshold, or
            there are not enough spare images.
    """
    images = images.clone()
    replaced = 0
    names = ", ".join(c.name for c in contenders)
    while True:
        reference, *others = (c.logits(images) for c in contenders)
        bound = LOGIT_TOLERANCE * reference.abs().max()
        bad = torch.zeros(len(images), dtype=torch.bool)
        for logits in others:
            bad |= ((logits - reference).abs() > bound).any(1)
        if not bad.any():
            return images, replaced
        count = int(bad.sum())
        unexplained = int((~meeting(network, images[bad])).sum())
        if unexplained or replaced + count > len(spare):
            raise UnequalError(
                f"{names} disagree about the logits of {count} of {len(images)}, {unexplained} of "
                "them without a membrane that meets the threshold."
            )
        images[bad] = spare[replaced : replaced + count]
        replaced += count


@torch.no_grad()
def meeting(network: Network, images: Tensor) -> Tensor:
    """Whether a membrane of each image equals its threshold exactly, bool `[batch]`."""
    found = torch.zeros(len(images), dtype=torch.bool)

    def look(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        assert isinstance(module, LIF)
        current, steps, before = args[:3]
        _, membranes, _ = run(
            current, module.threshold, module.leak, before, steps, module.reset == "hard"
        )
        for u in membranes:
            found.logical_or_((u == module.threshold).flatten(1).any(1))

    handles = [layer.register_forward_hook(look) for layer in network.spiking_layers().values()]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def differences(
    contenders: Sequence[Contender], task: str, images: Tensor, labels: Tensor
) -> dict[str, Difference]:
    """The differences of each library from the first, in logits and in gradients of the task.

    Every contender has been prepared for the task.

    Raises:
        UnequalError: A difference is larger than rounding explains.
    """
    reference = contenders[0]
    logits = reference.logits(images)
    gradients = _gradients(reference, task, images, labels)
    found: dict[str, Difference] = {}
    for contender in contenders[1:]:
        off = _relative([contender.logits(images)], [logits])
        slope = _relative(_gradients(contender, task, images, labels), gradients)
        found[contender.name] = Difference(off, slope)
        if not (off <= LOGIT_TOLERANCE and slope <= GRADIENT_TOLERANCE):
            raise UnequalError(
                f"{contender.name} differs from {reference.name}: logits by {off:.2g}, "
                f"gradients by {slope:.2g} of the largest; {task} is not timed."
            )
    return found


def _gradients(contender: Contender, task: str, images: Tensor, labels: Tensor) -> list[Tensor]:
    if task == "input-gradient":
        return [contender.gradient(images, labels)]
    if task == "training-step":
        contender.step(images, labels)
        return contender.weight_gradients()
    return []


def _relative(found: list[Tensor], expected: list[Tensor]) -> float:
    worst = 0.0
    for mine, other in zip(found, expected, strict=True):
        largest = other.abs().max().item()
        difference = (mine - other).abs().max().item()
        worst = max(worst, difference / largest if largest else difference)
    return worst
