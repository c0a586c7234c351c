"""The last layer whose values move, in front of whatever makes the logits of a network flat."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from torch import Tensor, nn

from robustsnn.adversary.threat import ThreatModel
from robustsnn.diagnosis.probe.directions import FEW_VALUES, LEAST_MOVED
from robustsnn.diagnosis.probe.specimen import Specimen
from robustsnn.errors import InputError
from robustsnn.models.reading import Reading, read_at, readings
from robustsnn.models.scoring import judged_margin, score
from robustsnn.snn.copying import copy_of

#: The number of images and of directions that tell whether the values of a layer move.
IMAGES, DIRECTIONS = 32, 8
#: The number of layers that are tried, the last one first.
TRIED = 12


def inner_reading(
    network: nn.Module,
    images: Tensor,
    ids: Sequence[int],
    threat: ThreatModel,
    micro_batch: int,
    seed: int,
) -> Reading | None:
    """Where to read a network whose logits are flat; None if no layer in front says more.

    It is the last layer that names the classes of the network, or lets a linear read-out name them,
    whose scores change along most directions, and through which a gradient reaches the image.

    Args:
        network: The network, in evaluation mode; it is left as it was.
        images: Some images, `[batch, channel, height, width]`, in [0, 1].
        ids: The id of each image.
        threat: The threat model, whose radius is the length of the directions.
        micro_batch: The number of images in a forward pass.
        seed: The seed of every draw.
    """
    some, which = images[:IMAGES], tuple(ids[:IMAGES])
    said = score(network, some, which, micro_batch, seed).argmax(1)
    found = readings(network, images, ids, micro_batch, seed)
    for reading in islice(found, TRIED):
        read = read_at(copy_of(network), reading)
        specimen = Specimen(read, some, said, which, micro_batch, seed)
        if _moves(specimen, threat) and _reached(specimen):
            return reading
    return None


def _moves(specimen: Specimen, threat: ThreatModel) -> bool:
    """Whether scores change along most directions, and take more than a few values."""
    before = specimen.judge(specimen.images)
    base = judged_margin(before, specimen.labels)
    rng = specimen.rng("inner")
    values = set(before.unique().tolist())
    moved = entries = 0.0
    for _ in range(DIRECTIONS):
        signs = rng.uniform(specimen.images.shape[1:], -1.0, 1.0, like=specimen.images).sign()
        delta = signs * threat.radius if threat.norm == "Linf" else threat.scaled(signs)
        logits = specimen.judge(specimen.images + delta)
        values |= set(logits.unique().tolist())
        moved += float((judged_margin(logits, specimen.labels) != base).double().mean())
        entries += float((logits != before).double().mean())
    return min(moved, entries) > LEAST_MOVED * DIRECTIONS and len(values) > FEW_VALUES


def _reached(specimen: Specimen) -> bool:
    """Whether some estimator has a gradient at most of the images."""
    for estimator in specimen.estimators:
        try:
            gradient = specimen.gradient(estimator).gradient
        except (RuntimeError, InputError):
            continue
        if float((gradient.flatten(1) != 0).any(1).double().mean()) > LEAST_MOVED:
            return True
    return False
