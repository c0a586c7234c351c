"""The gradients of a network: whether they exist, whether they point up, and where they vanish."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustsnn.adversary.threat import ThreatModel
from robustsnn.common.wording import count as counted
from robustsnn.common.wording import percent
from robustsnn.diagnosis.finding import MOST_ZERO_GRADIENTS, Finding, Severity
from robustsnn.diagnosis.indicators import cosine, expected_cosine, slope, spearman
from robustsnn.diagnosis.probe.specimen import OWN, Specimen
from robustsnn.diagnosis.probe.taken import Taken, all_zero
from robustsnn.diagnosis.probe.watch import LayerWatch
from robustsnn.models.scoring import judged_margin

#: The share of a layer's membranes that a surrogate of compact support has to see.
LEAST_SUPPORT = 0.05
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
                name: seen.share(seen.silent) for name, seen in _own(taken).items()
            },
            "failed": taken.failed,
        },
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
    )


def support(taken: Taken) -> list[Finding]:
    """D2: the share of membranes that the network's own surrogate sees; no finding without spikes.

    For a surrogate of unbounded support the vanishing degree takes its place: the share of its
    area that lies nearer to the threshold than the membranes do.
    """
    layers = _own(taken)
    if not layers:
        return []
    seen = {
        name: w.share(w.inside) if w.compact else 1 - w.share(w.vanishing)
        for name, w in layers.items()
    }
    least = min(seen, key=lambda name: seen[name])
    what = (
        f"{percent(seen[least])} of the membranes lie in the support of its surrogate"
        if layers[least].compact
        else f"{percent(seen[least])} of its surrogate's area lies further out than the membranes"
    )
    return [
        Finding(
            "D2",
            "out-of-support",
            seen[least] < LEAST_SUPPORT,
            "caution",
            f"In {least} only {what}: attacks that use it see little of the network.",
            seen[least],
            {
                "seen": seen,
                "inside the width": {n: w.share(w.inside) for n, w in layers.items()},
                "near the threshold": {n: w.share(w.near) for n, w in layers.items()},
                "vanishing degree": {n: w.share(w.vanishing) for n, w in layers.items()},
                "vanishing degree, arctan alpha 8": {
                    n: w.share(w.sharp) for n, w in layers.items()
                },
            },
        )
    ]


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
    said = (
        f"The network's own gradient agrees with differences of its loss {angle[OWN]:.2f} "
        f"times as well as a linear one's would (rank correlation {rank[OWN]:.2f}): it is "
        f"hardly one of this network{', and no other is.' if none else '.'}"
    )
    severity: Severity = "invalid" if none else "caution"
    flagged = moved and OWN in wrong
    return [Finding("D4", "gradient-fidelity", flagged, severity, said, angle[OWN], details)]


def through_time(specimen: Specimen, taken: Taken) -> list[Finding]:
    """D11: the share of the gradient through the membranes' memory; no finding without spikes."""
    if not specimen.spiking or OWN in taken.failed:
        return []
    whole = taken.here[OWN][: len(specimen)].flatten(1).double()
    cut = specimen.gradient(f"{OWN}:cut=1").gradient.flatten(1).double()
    length = whole.norm(dim=1)
    there = length > 0
    share = ((whole - cut).norm(dim=1)[there] / length[there]).mean() if bool(there.any()) else 0.0
    steps = {n: float(np.mean(w.temporal)) for n, w in _own(taken).items() if w.temporal}
    return [
        Finding(
            "D11",
            "temporal-share",
            False,
            "note",
            f"{percent(float(share))} of the gradient's length comes through time: what is left "
            "out by attacks that cut the membrane's past.",
            float(share),
            {"cosine of adjacent steps": steps},
        )
    ]


def through_layers(taken: Taken) -> list[Finding]:
    """D12: how fast the gradient shrinks towards the input; no finding for fewer than two layers.

    The evidence is the slope of the mean logarithm of its length over the layers, first to last:
    if it is s > 0, the gradient shrinks towards the input by a factor of exp(s) in each layer.
    """
    layers = _own(taken)
    # Images without any gradient belong to D1.
    there = {name: [x for x in w.lengths if x > 0] for name, w in layers.items()}
    logs = {name: float(np.mean(np.log(x))) for name, x in there.items() if x}
    if len(logs) < 2:
        return []
    steep = slope(np.array(list(logs.values())))
    smallest = min(logs, key=lambda name: logs[name])
    # The square of the length of so short a vector is too small for float32.
    lost = logs[smallest] < math.log(TINY) / 2
    return [
        Finding(
            "D12",
            "vanishing-through-layers",
            lost,
            "caution",
            "On its way to the input the gradient's length is multiplied by "
            f"{math.exp(-steep):.2g} a layer; in {smallest} it is {math.exp(logs[smallest]):.2g}.",
            steep,
            {"log length": logs},
        )
    ]


def _own(taken: Taken) -> dict[str, LayerWatch]:
    """The layers under the network's own estimator, from first to last."""
    # Reversed, since a backward pass meets the last layer first.
    return dict(reversed(taken.layers.get(OWN, {}).items()))


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
