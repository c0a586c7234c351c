"""The gradients of a network: whether they exist, and where they vanish."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Gradient
from robustsnn.common.users_code import UsersCodeError, out_of_memory
from robustsnn.common.wording import percent
from robustsnn.diagnosis.finding import MOST_ZERO_GRADIENTS, Finding
from robustsnn.diagnosis.indicators import cosine, slope
from robustsnn.diagnosis.probe.specimen import OWN, Specimen, joined
from robustsnn.diagnosis.probe.watch import LayerWatch, Watched
from robustsnn.estimators.make import make_estimator
from robustsnn.models.scoring import judged_margin

#: The share of a layer's membranes that a surrogate of compact support has to see.
LEAST_SUPPORT = 0.05
#: The least cosine of two gradients at the same point of a network that draws nothing.
LEAST_REPEATED = 0.99
#: Below this, float32 holds fewer digits.
TINY = float(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True, eq=False)
class Taken:
    """The gradients that a probe looks at, each taken once.

    Args:
        here: The gradient of the margin at each image, by estimator.
        away: The gradient of the margin at a random point of each ball, by estimator.
        nonfinite: How many gradients of both kinds held NaN or infinity, by estimator.
        layers: What was seen in the layers at the images, by estimator and name of the layer.
        failed: Why no gradient could be taken, by estimator.
        loss: The margin of each image, `[image]`.
        entropy: The network's own gradient of the cross-entropy at each image.
    """

    here: dict[str, Tensor]
    away: dict[str, Tensor]
    nonfinite: dict[str, int]
    layers: dict[str, dict[str, LayerWatch]]
    failed: dict[str, str]
    loss: Tensor
    entropy: Tensor

    def zero(self, text: str) -> tuple[Tensor, Tensor]:
        """Whether an estimator's gradient is all zero: at each image, at each random point."""
        return _zero(self.here[text]), _zero(self.away[text])


def take(specimen: Specimen, threat: ThreatModel) -> Taken:
    """Take every gradient that the findings are about."""
    start = threat.random_point(specimen.images, specimen.rng("start"))
    here: dict[str, Tensor] = {}
    away: dict[str, Tensor] = {}
    layers: dict[str, dict[str, LayerWatch]] = {}
    nonfinite: dict[str, int] = {}
    failed: dict[str, str] = {}
    for text in specimen.estimators:
        seen: dict[str, LayerWatch] = {}
        try:
            found, bad = _gradient(specimen, text, specimen.images, seen)
            after, worse = _gradient(specimen, text, start)
        except (RuntimeError, UsersCodeError) as error:
            if out_of_memory(error):
                raise
            said = error.text if isinstance(error, UsersCodeError) else str(error)
            failed[text] = said.splitlines()[0].rstrip(".")
            here[text], away[text] = (torch.zeros_like(specimen.images) for _ in range(2))
            continue
        here[text], away[text] = found.gradient, after.gradient
        layers[text], nonfinite[text] = seen, bad + worse
    entropy = torch.zeros_like(specimen.images)
    if OWN not in failed:
        entropy = specimen.gradient(OWN, loss="cross-entropy").gradient
    loss = judged_margin(specimen.judge(specimen.images), specimen.labels)
    return Taken(here, away, nonfinite, layers, failed, loss, entropy)


def _gradient(
    specimen: Specimen, text: str, points: Tensor, seen: dict[str, LayerWatch] | None = None
) -> tuple[Gradient, int]:
    """The gradients of the margin at some points, and how many held NaN or infinity."""
    found, bad = [], 0
    for begin, part in zip(
        range(0, len(specimen), specimen.micro_batch), specimen.parts(), strict=True
    ):
        estimator = make_estimator(text, specimen.network)
        victim = part.victim(estimator if seen is None else Watched(estimator, seen))
        here = points[begin : begin + specimen.micro_batch]
        found.append(victim.gradient(here, part.labels, "margin"))
        bad += int((victim.nonfinite_grad > 0).sum())
        specimen.settle(victim)
    return joined(found), bad


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


def _zero(gradient: Tensor) -> Tensor:
    return (gradient.flatten(1) == 0).all(1)


def _mean(mask: Tensor) -> float:
    return float(mask.double().mean()) if len(mask) else 0.0


def _often(mask: Tensor) -> bool:
    """Whether a mask holds on more images than may be, and on more than one."""
    return _mean(mask) > MOST_ZERO_GRADIENTS and int(mask.sum()) > 1


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
