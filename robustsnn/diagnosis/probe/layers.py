"""The gradients of a spiking network layer by layer: what surrogates see, time and depth."""

from __future__ import annotations

import math

import numpy as np

from robustsnn.common.wording import percent
from robustsnn.diagnosis.finding import Finding
from robustsnn.diagnosis.indicators import slope
from robustsnn.diagnosis.probe.gradients import TINY
from robustsnn.diagnosis.probe.specimen import OWN, Specimen
from robustsnn.diagnosis.probe.taken import Taken

#: The share of a layer's membranes that a surrogate of compact support has to see.
LEAST_SUPPORT = 0.05


def support(taken: Taken) -> list[Finding]:
    """D2: the share of membranes that the network's own surrogate sees; no finding without spikes.

    For a surrogate of unbounded support the vanishing degree takes its place: the share of its
    area that lies nearer to the threshold than the membranes do.
    """
    layers = taken.own_layers
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
            passed=f"In {least} {what}, and no layer has less.",
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
    steps = {n: float(np.mean(w.temporal)) for n, w in taken.own_layers.items() if w.temporal}
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
    layers = taken.own_layers
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
            passed="On its way to the input the gradient's length is multiplied by "
            f"{math.exp(-steep):.2g} a layer; in {smallest}, where it is shortest, it is "
            f"{math.exp(logs[smallest]):.2g}, which float32 holds.",
        )
    ]
