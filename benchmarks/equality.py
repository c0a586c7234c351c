"""Nothing is timed before every library is seen to compute the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.contenders import Contender

#: Of the largest entry: what float32 sums in different orders may differ by.
LOGIT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
#: Images of a batch that may be drawn anew, because a membrane met the threshold exactly.
REDRAWN = 0.25
ATTEMPTS = 5


class UnequalError(Exception):
    """Libraries that do not compute the same network are not compared."""


@dataclass(frozen=True)
class Difference:
    """Largest differences from ours, relative to the largest entry of ours."""

    logits: float
    gradient: float


def agreeing_images(
    contenders: Sequence[Contender], images: Tensor, spare: Tensor
) -> tuple[Tensor, int]:
    """Images on which all agree, and how many had to be replaced by spare ones.

    A membrane that meets the threshold exactly is a spike to SpikingJelly and none to the others.
    It happens to about one membrane in 2^24 that is near the threshold.

    Args:
        contenders: The first is the reference.
        images: `[batch, channel, height, width]`.
        spare: More of them, used in order.

    Raises:
        UnequalError: They differ on more images than that explains.
    """
    images = images.clone()
    replaced = 0
    for _ in range(ATTEMPTS):
        reference, *others = (c.logits(images) for c in contenders)
        bound = LOGIT_TOLERANCE * reference.abs().max()
        bad = torch.zeros(len(images), dtype=torch.bool)
        for logits in others:
            bad |= ((logits - reference).abs() > bound).any(1)
        if not bad.any():
            return images, replaced
        count = int(bad.sum())
        if replaced + count > max(1, REDRAWN * len(images)) or replaced + count > len(spare):
            break
        images[bad] = spare[replaced : replaced + count]
        replaced += count
    names = ", ".join(c.name for c in contenders)
    raise UnequalError(f"{names} disagree about the logits of {int(bad.sum())} of {len(images)}.")


def differences(
    contenders: Sequence[Contender], task: str, images: Tensor, labels: Tensor
) -> dict[str, Difference]:
    """How far each is from the first, in logits and in the gradients that the task computes.

    Every contender has been prepared for the task.

    Raises:
        UnequalError: Farther than rounding explains.
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
