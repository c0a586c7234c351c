"""The gradients of a network: whether they exist, and where they vanish."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robustsnn.common.wording import percent
from robustsnn.diagnosis.finding import MOST_ZERO_GRADIENTS, Finding
from robustsnn.diagnosis.indicators import cosine
from robustsnn.diagnosis.probe.specimen import OWN, Specimen
from robustsnn.diagnosis.probe.taken import Taken, all_zero

#: The least cosine of two gradients at the same point of a network that draws nothing.
LEAST_REPEATED = 0.99
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
