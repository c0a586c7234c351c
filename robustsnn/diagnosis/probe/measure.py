"""The probe: a small measurement of one network under one threat model, next to the attacks.

Its findings say whether attacks on this network can be believed; the attacks themselves are looked
at in `robustsnn.diagnosis.flags`. They depend on the images, the seed and the network, but not on
the size of the batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robustsnn.adversary.threat import ThreatModel
from robustsnn.diagnosis.finding import Finding
from robustsnn.diagnosis.probe import attacks as search
from robustsnn.diagnosis.probe import directions, gradients, layers
from robustsnn.diagnosis.probe.inner import inner_reading
from robustsnn.diagnosis.probe.pieces import Nowhere, Store, kept_findings
from robustsnn.diagnosis.probe.placement import placement
from robustsnn.diagnosis.probe.specimen import Sizes, Specimen, Spent
from robustsnn.diagnosis.probe.taken import take
from robustsnn.models.scoring import judged_margin

#: The largest number of images among which the probe looks for some that are classified right.
IMAGES = 256


@dataclass(frozen=True)
class Probed:
    """What a probe found, and what it cost.

    Args:
        findings: The findings in the order of their ids; empty if no image is classified right.
        forward_passes: The number of forward passes of single images.
        backward_passes: The number of backward passes of single images.
        seconds: The wall-clock time in seconds.
    """

    findings: tuple[Finding, ...]
    forward_passes: int
    backward_passes: int
    seconds: float

    def row(self) -> dict[str, Any]:
        """The cost of the probe, as it is stored in `manifest.json`.

        Examples:
            >>> Probed((), 3, 2, 0.5).row()
            {'forward_passes': 3, 'backward_passes': 2, 'seconds': 0.5}
        """
        return {
            "forward_passes": self.forward_passes,
            "backward_passes": self.backward_passes,
            "seconds": round(self.seconds, 3),
        }


def probe(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    ids: Sequence[int],
    threat: ThreatModel,
    micro_batch: int,
    seed: int,
    clean: Tensor,
    *,
    draws: int = 1,
    sizes: Sizes | None = None,
    store: Store | None = None,
) -> Probed:
    """Measure D1, D2, D4, D6, D8, D11, D12, D15, D16 and the indicators of attack failure.

    Args:
        network: The network, in evaluation mode; it is left as it was.
        images: The images, `[batch, channel, height, width]`, in [0, 1].
        labels: The true classes, int64 `[batch]`.
        ids: The id of each image.
        threat: The threat model of the attacks.
        micro_batch: The number of images in a forward pass.
        seed: The seed of every draw.
        clean: The predictions on the images, int64 `[batch]`; only images that are classified
            right are looked at.
        draws: The draws that the attacks average a stochastic network over; 1 if they do not.
        sizes: How much is measured; by default as much as suits the number of images.
        store: The place where each piece is kept as soon as it is measured, and where it is taken
            from if it is there; by default nowhere.
    """
    began = time.perf_counter()
    spent = Spent()
    right = (clean == labels).nonzero().flatten().cpu()
    sizes = Sizes.of(len(images)) if sizes is None else sizes
    everything = Specimen(network, images, labels, tuple(ids), micro_batch, seed, spent)
    wide = everything.at(right).first(sizes.wide)
    # An image whose clean logits tie is an error already, so no attack can be seen to break it.
    if len(wide):
        wide = wide.at(judged_margin(wide.judge(wide.images), wide.labels).cpu() < 0)
    findings: list[Finding] = []
    if len(wide) and threat.radius > 0:
        accuracy = len(right) / len(images)
        findings = _measure(everything, wide, threat, accuracy, draws, sizes, store or Nowhere())
    return Probed(
        tuple(sorted(findings, key=lambda f: (f.id[0], int(f.id[1:])))),
        spent.forward,
        spent.backward,
        time.perf_counter() - began + spent.earlier,
    )


def _measure(
    everything: Specimen,
    wide: Specimen,
    threat: ThreatModel,
    accuracy: float,
    draws: int,
    sizes: Sizes,
    store: Store,
) -> list[Finding]:
    narrow, few = wide.first(sizes.narrow), wide.first(sizes.checked)
    taken = take(wide, threat, store)

    def along() -> list[Finding]:
        seen = directions.along(few, taken, threat, sizes.directions, sizes.checked)
        return [directions.fidelity(seen), _blind(everything, seen, threat)]

    pieces: dict[str, Callable[[], list[Finding]]] = {
        "along": along,
        "placement": lambda: placement(narrow),
        "repeated": lambda: gradients.repeated(narrow, taken),
        "through-time": lambda: layers.through_time(narrow, taken),
        "order": lambda: search.order(wide, taken, threat, sizes.draws),
        "far": lambda: search.far(narrow, threat, accuracy, sizes.far),
        "stability": lambda: search.stability(narrow, taken.loss[: len(narrow)], sizes.draws),
        "path": lambda: search.path(narrow, threat, sizes.steps),
    }
    if narrow.victim().stochastic:
        pieces["doubling"] = lambda: search.doubling(narrow, threat, draws)
    found = {name: kept_findings(store, wide.spent, name, one) for name, one in pieces.items()}
    # In the order in which manifests have them.
    return [
        *gradients.zero_gradients(taken),
        *layers.support(taken),
        *found.pop("along"),
        *found.pop("placement"),
        *found.pop("repeated"),
        *found.pop("through-time"),
        *layers.through_layers(taken),
        gradients.saturation(taken),
        *(finding for findings in found.values() for finding in findings),
    ]


def _blind(everything: Specimen, seen: directions.Along, threat: ThreatModel) -> Finding:
    """D15, with the layer that says more where the logits say too little."""
    layer = None
    if directions.is_blind(seen):
        given = (everything.network, everything.images, everything.ids, threat)
        reading = inner_reading(*given, everything.micro_batch, everything.seed)
        layer = None if reading is None else reading.layer
    return directions.blind_score(seen, layer)
