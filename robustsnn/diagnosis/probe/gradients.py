"""The gradients of a network: whether they exist, whether they point up, and where they vanish."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustsnn.adversary.threat import ThreatModel
from robustsnn.common.wording import count as counted
from robustsnn.common.wording import percent
from robustsnn.diagnosis.finding import MOST_ZERO_GRADIENTS, Finding, Severity
from robustsnn.diagnosis.indicators import cosine, expected_cosine, spearman
from robustsnn.diagnosis.probe.specimen import OWN, Specimen
from robustsnn.diagnosis.probe.taken import Taken, all_zero
from robustsnn.models.scoring import judged_margin

#: A gradient below both is not that of the loss: its cosine with differences, as a share of that
#: for a linear loss, and its rank correlation with the effect of random signs. Spikes make a loss
#: rough: values of sound networks were seen between 0.1 and 0.3.
LEAST_FIDELITY, LEAST_RANK = 0.1, 0.1
#: With fewer images the check says nothing: even a sound gradient may be wrong at one image.
FEWEST_CHECKED = 4
#: The share of the directions that have to change a loss before its gradient is judged by them.
LEAST_MOVED = 0.5
#: The least cosine of two gradients at the same point of a network that draws nothing.
LEAST_REPEATED = 0.99
#: The standard deviation of the differences, in pixel units.
SIGMA = "2/255"
#: Below this, float32 holds fewer digits.
TINY = float(torch.finfo(torch.float32).tiny)


def zero_gradients(taken: Taken) -> list[Finding]:
    """D1 and I1: where gradients are all zero, not finite or too small."""
    nowhere = torch.stack([at for text in taken.here for at in taken.zero(text)]).all(0)
    moving = [t for t in taken.here if t != OWN and _mean(_either(taken, t)) <= MOST_ZERO_GRADIENTS]
    bad = sum(taken.nonfinite.values())
    others_fine = bool(moving) and taken.nonfinite.get(moving[0], 1) == 0
    return [
        Finding(
            "D1",
            "no-gradient",
            _often(nowhere),
            "invalid",
            f"On {percent(_mean(nowhere))} of the probed images no way to differentiate gives a "
            "gradient: whatever survives there has met searches by score alone.",
            _mean(nowhere),
            passed=f"On {percent(1 - _mean(nowhere))} of the probed images some way to "
            "differentiate gives a gradient.",
        ),
        _own_gradient_zero(taken, moving),
        Finding(
            "D1",
            "nonfinite-gradient",
            bad > 0,
            "caution" if others_fine else "invalid",
            f"{bad} of the probed gradients held NaN or infinity, taken as zero there.",
            float(bad),
            {"by estimator": taken.nonfinite},
            passed="Every entry of the probed gradients is finite.",
        ),
        _underflow(taken),
        _unavailable(taken),
    ]


def _own_gradient_zero(taken: Taken, moving: list[str]) -> Finding:
    """D1: where the network's own gradient is all zero; `moving` are estimators that move."""
    own = taken.zero(OWN)[0] | taken.zero(OWN)[1]
    remedy = (
        f"other ways to differentiate, such as {moving[0]}, give one."
        if moving
        else "an attack that follows it stands still there."
    )
    return Finding(
        "D1",
        "zero-gradient",
        _often(own),
        "caution" if moving else "invalid",
        f"The network's own gradient is all zero on {percent(_mean(own))} of the probed "
        f"images, at the image or at a random start: {remedy}",
        _mean(own),
        {
            "zero": {
                text: {"image": _mean(x), "random start": _mean(s)}
                for text in taken.here
                for x, s in [taken.zero(text)]
            },
            "zero by layer": {
                text: {name: seen.share(seen.zero) for name, seen in some.items()}
                for text, some in taken.layers.items()
                if some
            },
            "surrogate times gradient zero by layer": {
                name: seen.share(seen.silent) for name, seen in taken.own_layers.items()
            },
            "failed": taken.failed,
        },
        passed=f"The network's own gradient is not zero on {percent(1 - _mean(own))} of the probed "
        "images, both at the image and at a random start.",
    )


def _underflow(taken: Taken) -> Finding:
    """D1: entries of the network's own gradient that float32 holds with few digits."""
    flat = taken.here[OWN].flatten(1)
    tiny = ((flat != 0) & (flat.abs() < TINY)).sum(1).double()
    small = _share(float(tiny.sum()), float((flat != 0).sum()))
    return Finding(
        "D1",
        "underflow",
        small > MOST_ZERO_GRADIENTS,
        "caution",
        f"{percent(small)} of the entries of the network's own gradient are so small that "
        "float32 loses their digits: scale the logits up.",
        small,
        {"entries": int(tiny.sum())},
        passed=f"float32 holds {percent(1 - small)} of the entries of the network's own gradient "
        "with all its digits.",
    )


def _unavailable(taken: Taken) -> Finding:
    """I1: whether the network's own gradient can be taken at all."""
    missing = _mean(taken.zero(OWN)[0])
    failed = bool(taken.failed.get(OWN))
    return Finding(
        "I1",
        "unavailable-gradients",
        failed or missing > 0,
        "note",
        f"The network's own gradient could not be taken ({taken.failed[OWN]})."
        if OWN in taken.failed
        else f"The network's own gradient is missing at {percent(missing)} of the images.",
        float(failed or missing > 0),
        passed="The network's own gradient could be taken at every image.",
    )


def repeated(specimen: Specimen, taken: Taken) -> list[Finding]:
    """D8: whether a gradient is the same twice; no finding if the network declares draws.

    A gradient that is not comes from something that draws, even if the logits are the same.
    """
    if specimen.victim().stochastic or OWN in taken.failed:
        return []
    here = taken.here[OWN][: len(specimen)].flatten(1).double()
    again = specimen.gradient(OWN).gradient.flatten(1).double()
    there = (here != 0).any(1) | (again != 0).any(1)
    alike = cosine(here[there].cpu().numpy(), again[there].cpu().numpy())
    least = float(np.mean(alike)) if len(alike) else 1.0
    return [
        Finding(
            "D8",
            "gradient-draws",
            least < LEAST_REPEATED,
            "caution",
            f"Two gradients at the same image agree by a cosine of {least:.2f}: something draws on "
            "the way back, and an attack follows its noise.",
            least,
            passed=f"Two gradients at the same image agree by a cosine of {least:.2f}: nothing "
            "draws on the way back.",
        )
    ]


def saturation(taken: Taken) -> Finding:
    """D10: images where the gradient of the cross-entropy is all zero only for lack of digits."""
    lost = all_zero(taken.entropy) & ~taken.zero(OWN)[0]
    return Finding(
        "D10",
        "saturated",
        _often(lost),
        "caution",
        f"On {percent(_mean(lost))} of the probed images the gradient of the cross-entropy is all "
        "zero in float32 and that of the margin is not: attacks on the cross-entropy stand still.",
        _mean(lost),
        {"median margin": float(taken.loss.median())},
        passed=f"On {percent(1 - _mean(lost))} of the probed images float32 keeps the gradient of "
        "the cross-entropy wherever it keeps that of the margin.",
    )


def fidelity(
    specimen: Specimen, taken: Taken, threat: ThreatModel, directions: int, least: int = 1
) -> list[Finding]:
    """D4: whether gradients point to where the loss rises, by differences along random signs.

    Args:
        specimen: The first of the images at which gradients were taken.
        taken: Those gradients.
        threat: The threat model, whose radius is the length of the signs that are ranked.
        directions: The number of random signs for each image.
        least: The least number of images; fewer are looked at several times, along other signs.
    """
    images, times = len(specimen), -(-least // len(specimen))
    specimen = specimen.copied(times)
    count = len(specimen)
    base = judged_margin(specimen.judge(specimen.images), specimen.labels)
    estimate = specimen.gradient(f"spsa:pairs={directions},sigma={SIGMA}").gradient
    differences = estimate.flatten(1).double().cpu().numpy()
    usual = expected_cosine(directions, differences.shape[1])
    rng = specimen.rng("signs")
    flat = {t: g[:images].flatten(1).double().repeat(times, 1) for t, g in taken.here.items()}
    slopes: dict[str, list[Any]] = {text: [] for text in flat}
    rises = []
    for _ in range(directions):
        signs = rng.uniform(specimen.images.shape[1:], -1.0, 1.0, like=specimen.images).sign()
        delta = signs * threat.radius if threat.norm == "Linf" else threat.scaled(signs)
        # Not clipped to the pixel range, since a clipped step does not follow the signs.
        loss = judged_margin(specimen.judge(specimen.images + delta), specimen.labels)
        rises.append((loss - base).double().cpu().numpy())
        wide = delta.flatten(1).double()
        for text, gradient in flat.items():
            slopes[text].append((gradient * wide).sum(1).cpu().numpy())
    rise = np.stack(rises, 1)
    angle = {
        text: float(np.mean(cosine(g.cpu().numpy(), differences))) / usual
        for text, g in flat.items()
    }
    rank = {t: float(np.mean(spearman(np.stack(s, 1), rise))) for t, s in slopes.items()}
    # Few images and directions measure both roughly, so twice the spread that a gradient
    # unrelated to the loss would show is added first.
    grant = 2 / (usual * np.sqrt(differences.size)), 2 / np.sqrt(directions * count)
    wrong = {
        t for t in flat if angle[t] + grant[0] < LEAST_FIDELITY and rank[t] + grant[1] < LEAST_RANK
    }
    # A loss of plateaus hardly has differences, and so says nothing about any gradient.
    moved = float((rise != 0).mean()) > LEAST_MOVED
    details = {
        "cosine": angle,
        "rank correlation": rank,
        "cosine of a linear loss": usual,
        "directions that change the loss": float((rise != 0).mean()),
    }
    if images < FEWEST_CHECKED:
        said = (
            f"Of {counted(images, 'image')} alone nobody can tell whether gradients are those "
            "of the loss."
        )
        return [Finding("D4", "gradient-fidelity", True, "caution", said, angle[OWN], details)]
    none = len(wrong) == len(flat)
    said, passed = _agreement(angle[OWN], rank[OWN], none, moved)
    severity: Severity = "invalid" if none else "caution"
    flagged = moved and OWN in wrong
    found = Finding("D4", "gradient-fidelity", flagged, severity, said, angle[OWN], details)
    return [dataclasses.replace(found, passed=passed)]


def _agreement(angle: float, rank: float, none: bool, moved: bool) -> tuple[str, str]:
    """What D4 says if it is flagged, and if it is not."""
    agrees = (
        f"The network's own gradient agrees with differences of its loss {angle:.2f} "
        f"times as well as a linear one's would (rank correlation {rank:.2f})"
    )
    passed = f"{agrees}, as one of a network with spikes may."
    if not moved:
        passed = "Too few random directions change the loss to judge a gradient by them."
    return (
        f"{agrees}: it is hardly one of this network{', and no other is.' if none else '.'}",
        passed,
    )


def _either(taken: Taken, text: str) -> Tensor:
    here, away = taken.zero(text)
    return here | away


def _mean(mask: Tensor) -> float:
    return float(mask.double().mean()) if len(mask) else 0.0


def _often(mask: Tensor) -> bool:
    """Whether a mask holds on more images than may be, and on more than one."""
    return _mean(mask) > MOST_ZERO_GRADIENTS and int(mask.sum()) > 1


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
