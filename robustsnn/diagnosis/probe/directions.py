"""What logits and loss do along random signs: whether gradients agree, and whether scores move."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustsnn.adversary.threat import ThreatModel
from robustsnn.common.wording import count as counted
from robustsnn.common.wording import percent
from robustsnn.diagnosis.finding import BLIND, Finding, Severity
from robustsnn.diagnosis.indicators import cosine, expected_cosine, spearman
from robustsnn.diagnosis.probe.specimen import OWN, Specimen
from robustsnn.diagnosis.probe.taken import Taken
from robustsnn.models.scoring import judged_margin

#: A gradient below both is not that of the loss: its cosine with differences, as a share of that
#: for a linear loss, and its rank correlation with the effect of random signs. Spikes make a loss
#: rough: values of sound networks were seen between 0.1 and 0.3.
LEAST_FIDELITY, LEAST_RANK = 0.1, 0.1
#: With fewer images the check says nothing: even a sound gradient may be wrong at one image.
FEWEST_CHECKED = 4
#: The share of the directions along which a score has to move, and the share of the logits that
#: have to. Of networks that ship, 0.9 and more of both move at 0.5/255 already.
LEAST_MOVED = 0.5
#: The number of values up to which logits are counts and not scores.
FEW_VALUES = 32
#: The standard deviation of the differences, in pixel units.
SIGMA = "2/255"


@dataclass(frozen=True, eq=False)
class Along:
    """What happens along random signs of the length of the radius.

    Args:
        images: The number of images that were looked at, each perhaps several times.
        angle: The cosine of each estimator's gradient with differences of the loss, as a share of
            what that of a linear loss would be.
        rank: The rank correlation of each estimator's slopes with the rises of the loss.
        usual: The cosine of a linear loss.
        grant: What chance may add to both, in the same units.
        moved: The share of the directions along which the loss changes.
        entries: The share of the logits that change, over all directions.
        values: The number of values that the logits take.
    """

    images: int
    angle: Mapping[str, float]
    rank: Mapping[str, float]
    usual: float
    grant: tuple[float, float]
    moved: float
    entries: float
    values: int

    @property
    def wrong(self) -> set[str]:
        """The estimators whose gradient is not that of the loss."""
        return {
            text
            for text in self.angle
            if self.angle[text] + self.grant[0] < LEAST_FIDELITY
            and self.rank[text] + self.grant[1] < LEAST_RANK
        }


def along(
    specimen: Specimen, taken: Taken, threat: ThreatModel, directions: int, least: int = 1
) -> Along:
    """Look along random signs.

    Args:
        specimen: The first of the images at which gradients were taken.
        taken: Those gradients.
        threat: The threat model, whose radius is the length of the signs.
        directions: The number of random signs for each image.
        least: The least number of images; fewer are looked at several times, along other signs.
    """
    images, times = len(specimen), -(-least // len(specimen))
    specimen = specimen.copied(times)
    count = len(specimen)
    before = specimen.judge(specimen.images)
    base = judged_margin(before, specimen.labels)
    estimate = specimen.gradient(f"spsa:pairs={directions},sigma={SIGMA}").gradient
    differences = estimate.flatten(1).double().cpu().numpy()
    usual = expected_cosine(directions, differences.shape[1])
    rng = specimen.rng("signs")
    flat = {t: g[:images].flatten(1).double().repeat(times, 1) for t, g in taken.here.items()}
    slopes: dict[str, list[Any]] = {text: [] for text in flat}
    rises: list[NDArray[np.float64]] = []
    entries = 0.0
    values = set(before.unique().tolist())
    for _ in range(directions):
        signs = rng.uniform(specimen.images.shape[1:], -1.0, 1.0, like=specimen.images).sign()
        delta = signs * threat.radius if threat.norm == "Linf" else threat.scaled(signs)
        # Not clipped to the pixel range, since a clipped step does not follow the signs.
        logits = specimen.judge(specimen.images + delta)
        rises.append((judged_margin(logits, specimen.labels) - base).double().cpu().numpy())
        entries += float((logits != before).double().mean()) / directions
        if len(values) <= FEW_VALUES:
            values |= set(logits.unique().tolist())
        wide = delta.flatten(1).double()
        for text, gradient in flat.items():
            slopes[text].append((gradient * wide).sum(1).cpu().numpy())
    rise = np.stack(rises, 1)
    return Along(
        images,
        {
            text: float(np.mean(cosine(g.cpu().numpy(), differences))) / usual
            for text, g in flat.items()
        },
        {t: float(np.mean(spearman(np.stack(s, 1), rise))) for t, s in slopes.items()},
        usual,
        # Few images and directions measure both roughly, so twice the spread that a gradient
        # unrelated to the loss would show is added first.
        (2 / (usual * np.sqrt(differences.size)), 2 / np.sqrt(directions * count)),
        float((rise != 0).mean()),
        entries,
        len(values),
    )


def fidelity(seen: Along) -> Finding:
    """D4: whether gradients point to where the loss rises, by differences along random signs.

    A loss of plateaus hardly has differences. No gradient is then that of the loss, and the flag
    says so, although the gradient may be that of something useful in front of the plateaus.
    """
    if seen.images < FEWEST_CHECKED:
        said = (
            f"Of {counted(seen.images, 'image')} alone nobody can tell whether gradients are those "
            "of the loss."
        )
        return _fidelity(seen, True, "caution", said)
    none = len(seen.wrong) == len(seen.angle)
    agrees = (
        f"The network's own gradient agrees with differences of its loss {seen.angle[OWN]:.2f} "
        f"times as well as a linear one's would (rank correlation {seen.rank[OWN]:.2f})"
    )
    said = f"{agrees}: it is hardly one of this network{', and no other is.' if none else '.'}"
    passed = f"{agrees}, as one of a network with spikes may."
    severity: Severity = "invalid" if none else "caution"
    return _fidelity(seen, OWN in seen.wrong, severity, said, passed)


def _fidelity(
    seen: Along, flagged: bool, severity: Severity, said: str, passed: str = ""
) -> Finding:
    details = {
        "cosine": dict(seen.angle),
        "rank correlation": dict(seen.rank),
        "cosine of a linear loss": seen.usual,
        "directions that change the loss": seen.moved,
    }
    found = Finding("D4", "gradient-fidelity", flagged, severity, said, seen.angle[OWN], details)
    return dataclasses.replace(found, passed=passed)


def is_blind(seen: Along) -> bool:
    """Whether what a network returns says too little of how near another class is.

    The loss stays the same along most directions, most of the logits do, or all of them take a few
    values only.
    """
    return min(seen.moved, seen.entries) < LEAST_MOVED or seen.values <= FEW_VALUES


def blind_score(seen: Along, layer: str | None) -> Finding:
    """D15: whether searches by score and steps along a loss see anything.

    Args:
        seen: What happens along random signs.
        layer: The last layer whose values move, if one was looked for and found.
    """
    least = min(seen.moved, seen.entries)
    moving = f"the loss changes along {percent(seen.moved)} of random directions"
    if seen.values <= FEW_VALUES and least >= LEAST_MOVED:
        what = f"the logits take {counted(seen.values, 'value')}"
    elif seen.moved < LEAST_MOVED:
        what = moving
    else:
        what = f"only {percent(seen.entries)} of the logits change along random directions"
    answer = (
        f"attack the values of {layer}, which do move."
        if layer
        else "no layer was found in front whose values move; search by labels."
    )
    said = f"The score is blind, since {what}: {answer}"
    passed = f"{moving[0].upper()}{moving[1:]}, and {percent(seen.entries)} of the logits do."
    hopeless = len(seen.wrong) == len(seen.angle)
    details = {
        "directions that change the loss": seen.moved,
        "logits that change": seen.entries,
        "values": seen.values,
        "layer": layer,
    }
    severity: Severity = "invalid" if hopeless else "caution"
    found = Finding("D15", BLIND, is_blind(seen), severity, said, least, details)
    return dataclasses.replace(found, passed=passed)
