"""The gradients of a network: do they exist, do they point up, and where do they die."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Gradient
from robustsnn.common.wording import count as counted
from robustsnn.common.wording import percent
from robustsnn.diagnosis.finding import Finding, Severity
from robustsnn.diagnosis.indicators import cosine, expected_cosine, slope, spearman
from robustsnn.diagnosis.probe.specimen import OWN, Sample, joined
from robustsnn.diagnosis.probe.watch import LayerWatch, Watched
from robustsnn.estimators.make import make_estimator
from robustsnn.models.batching import out_of_memory
from robustsnn.models.scoring import judged_margin

#: Share of the images whose gradient may be all zero, or too small for float32.
MOST_ZERO = 0.05
#: Share of a layer's membranes that a surrogate of compact support has to see.
LEAST_SUPPORT = 0.05
#: Below both, a gradient is none of this loss: its cosine with differences, as a share of what a
#: linear loss would give, and its rank correlation with what random signs do. Spikes make a loss
#: rough: honest networks were seen between 0.1 and 0.3.
LEAST_FIDELITY, LEAST_RANK = 0.1, 0.1
#: Of fewer images nothing is said: even an honest gradient may be wrong about one.
FEWEST_CHECKED = 4
#: Share of the directions that have to change a loss before its gradient is judged by them.
LEAST_MOVED = 0.5
#: Cosine of two gradients at the same point, where a network draws nothing.
LEAST_REPEATED = 0.99
#: Sigma of the differences.
SIGMA = "2/255"
#: Below, float32 holds fewer digits.
TINY = float(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True, eq=False)
class Taken:
    """The gradients that a probe looks at, each taken once.

    Args:
        here: Gradient of the margin at each image, by estimator.
        away: The same at a random point of the ball.
        nonfinite: How many of both held NaN or infinity, by estimator.
        layers: What the layers did at the images, by estimator and name.
        failed: Why no gradient could be taken, by estimator.
        loss: The margin of each image.
        entropy: Gradient of the cross-entropy at each image, the network's own way.
    """

    here: dict[str, Tensor]
    away: dict[str, Tensor]
    nonfinite: dict[str, int]
    layers: dict[str, dict[str, LayerWatch]]
    failed: dict[str, str]
    loss: Tensor
    entropy: Tensor

    def zero(self, text: str) -> tuple[Tensor, Tensor]:
        """Where the gradient of an estimator is all zero: at the image, at the random point."""
        return _zero(self.here[text]), _zero(self.away[text])


def take(sample: Sample, threat: ThreatModel) -> Taken:
    """Every gradient that the findings are about."""
    start = threat.random_point(sample.images, sample.rng("start"))
    here: dict[str, Tensor] = {}
    away: dict[str, Tensor] = {}
    layers: dict[str, dict[str, LayerWatch]] = {}
    nonfinite: dict[str, int] = {}
    failed: dict[str, str] = {}
    for text in sample.estimators:
        seen: dict[str, LayerWatch] = {}
        try:
            found, bad = _gradient(sample, text, sample.images, seen)
            after, worse = _gradient(sample, text, start)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            failed[text] = str(error).splitlines()[0].rstrip(".")
            here[text], away[text] = (torch.zeros_like(sample.images) for _ in range(2))
            continue
        here[text], away[text] = found.gradient, after.gradient
        layers[text], nonfinite[text] = seen, bad + worse
    entropy = torch.zeros_like(sample.images)
    if OWN not in failed:
        entropy = sample.gradient(OWN, loss="cross-entropy").gradient
    loss = judged_margin(sample.judge(sample.images), sample.labels)
    return Taken(here, away, nonfinite, layers, failed, loss, entropy)


def _gradient(
    sample: Sample, text: str, points: Tensor, seen: dict[str, LayerWatch] | None = None
) -> tuple[Gradient, int]:
    """Gradients of the margin at some points, and how many held NaN or infinity."""
    found, bad = [], 0
    for begin, part in zip(range(0, len(sample), sample.micro_batch), sample.parts(), strict=True):
        estimator = make_estimator(text, sample.network)
        victim = part.victim(estimator if seen is None else Watched(estimator, seen))
        here = points[begin : begin + sample.micro_batch]
        found.append(victim.gradient(here, part.labels, "margin"))
        bad += int((victim.nonfinite_grad > 0).sum())
        sample.settle(victim)
    return joined(found), bad


def zero_gradients(taken: Taken) -> list[Finding]:
    """D1 and I1: where gradients are all zero, not finite or too small."""
    nowhere = torch.stack([at for text in taken.here for at in taken.zero(text)]).all(0)
    moving = [t for t in taken.here if t != OWN and _mean(_either(taken, t)) <= MOST_ZERO]
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
        small > MOST_ZERO,
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


def repeated(sample: Sample, taken: Taken) -> list[Finding]:
    """D8: is a gradient the same twice; none if the network declares draws.

    One that is not belongs to something that draws, whatever the logits say.
    """
    if sample.victim().stochastic or OWN in taken.failed:
        return []
    here = taken.here[OWN][: len(sample)].flatten(1).double()
    again = sample.gradient(OWN).gradient.flatten(1).double()
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
    """D10: images where the cross-entropy's gradient is all zero for no reason but float32."""
    lost = _zero(taken.entropy) & ~taken.zero(OWN)[0]
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
    """D2: how many membranes the surrogate that a network was trained with sees; none if no spikes.

    Of a surrogate without an end, the vanishing degree says the same: how much of its area lies
    nearer to the threshold than the membranes do.
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
    sample: Sample, taken: Taken, threat: ThreatModel, directions: int, least: int = 1
) -> list[Finding]:
    """D4: do gradients point where the loss rises, by differences along random signs.

    Args:
        sample: The first images of those that gradients were taken of.
        taken: Those gradients.
        threat: Its radius is the length of the signs that are ranked.
        directions: Random signs of each image.
        least: Images; where there are fewer, each is looked at again along other signs.
    """
    images, times = len(sample), -(-least // len(sample))
    sample = sample.copied(times)
    count = len(sample)
    base = judged_margin(sample.judge(sample.images), sample.labels)
    estimate = sample.gradient(f"spsa:pairs={directions},sigma={SIGMA}").gradient
    differences = estimate.flatten(1).double().cpu().numpy()
    usual = expected_cosine(directions, differences.shape[1])
    rng = sample.rng("signs")
    flat = {t: g[:images].flatten(1).double().repeat(times, 1) for t, g in taken.here.items()}
    slopes: dict[str, list[Any]] = {text: [] for text in flat}
    rises = []
    for _ in range(directions):
        signs = rng.uniform(sample.images.shape[1:], -1.0, 1.0, like=sample.images).sign()
        delta = signs * threat.radius if threat.norm == "Linf" else threat.scaled(signs)
        # Outside the pixel range too: a clipped step is none along the gradient.
        loss = judged_margin(sample.judge(sample.images + delta), sample.labels)
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
    # Few images and directions measure both roughly: twice the spread of a gradient that has
    # nothing to do with the loss is granted.
    grant = 2 / (usual * np.sqrt(differences.size)), 2 / np.sqrt(directions * count)
    wrong = {
        t for t in flat if angle[t] + grant[0] < LEAST_FIDELITY and rank[t] + grant[1] < LEAST_RANK
    }
    # A loss of plateaus has no differences to speak of, and says nothing about any gradient.
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


def through_time(sample: Sample, taken: Taken) -> list[Finding]:
    """D11: how much of the gradient came through the membranes' memory; none if no spikes."""
    if not sample.spiking or OWN in taken.failed:
        return []
    whole = taken.here[OWN][: len(sample)].flatten(1).double()
    cut = sample.gradient(f"{OWN}:cut=1").gradient.flatten(1).double()
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
    """D12: how fast the gradient shrinks on its way to the input; none with fewer than two layers.

    The slope of the mean logarithm of its length over the layers, first to last: above 0 it
    shrinks towards the input, by that power of e a layer.
    """
    layers = _own(taken)
    # Images without any gradient are D1's.
    there = {name: [x for x in w.lengths if x > 0] for name, w in layers.items()}
    logs = {name: float(np.mean(np.log(x))) for name, x in there.items() if x}
    if len(logs) < 2:
        return []
    steep = slope(np.array(list(logs.values())))
    smallest = min(logs, key=lambda name: logs[name])
    # The square of so short a vector is below what float32 holds, and so are its entries.
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
    """The layers under the network's own estimator, first to last."""
    # Backward meets the last layer first.
    return dict(reversed(taken.layers.get(OWN, {}).items()))


def _either(taken: Taken, text: str) -> Tensor:
    here, away = taken.zero(text)
    return here | away


def _zero(gradient: Tensor) -> Tensor:
    return (gradient.flatten(1) == 0).all(1)


def _mean(mask: Tensor) -> float:
    return float(mask.double().mean()) if len(mask) else 0.0


def _often(mask: Tensor) -> bool:
    """On more than a few in a hundred, and on more than a single image."""
    return _mean(mask) > MOST_ZERO and int(mask.sum()) > 1


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
