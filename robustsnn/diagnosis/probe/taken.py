"""The gradients that a probe looks at, each taken once and kept."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Gradient
from robustsnn.common.users_code import UsersCodeError, out_of_memory
from robustsnn.diagnosis.probe.pieces import Nowhere, Piece, Store, kept
from robustsnn.diagnosis.probe.specimen import OWN, Specimen, joined
from robustsnn.diagnosis.probe.watch import LayerWatch, Watched
from robustsnn.estimators.make import make_estimator
from robustsnn.models.scoring import judged_margin


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

    @property
    def own_layers(self) -> dict[str, LayerWatch]:
        """The layers under the network's own estimator, from first to last."""
        # Reversed, since a backward pass meets the last layer first.
        return dict(reversed(self.layers.get(OWN, {}).items()))

    def zero(self, text: str) -> tuple[Tensor, Tensor]:
        """Whether an estimator's gradient is all zero: at each image, at each random point."""
        return all_zero(self.here[text]), all_zero(self.away[text])


def take(specimen: Specimen, threat: ThreatModel, store: Store | None = None) -> Taken:
    """Take every gradient that the findings are about.

    Args:
        specimen: The images and the network.
        threat: The threat model, in whose balls the random points lie.
        store: The place where the gradients of each estimator are kept; by default nowhere.
    """
    store = Nowhere() if store is None else store
    start = threat.random_point(specimen.images, specimen.rng("start"))
    taken = Taken({}, {}, {}, {}, {}, torch.empty(0), torch.zeros_like(specimen.images))
    for number, text in enumerate(specimen.estimators):
        piece = kept(
            store,
            specimen.spent,
            f"gradient-{number}",
            lambda text=text: _by(specimen, text, start),  # type: ignore[misc]
        )
        for name, found in (("here", taken.here), ("away", taken.away)):
            found[text] = piece.tensors[name].to(specimen.images)
        if piece.about["failed"] is not None:
            taken.failed[text] = piece.about["failed"]
            continue
        taken.nonfinite[text] = piece.about["nonfinite"]
        taken.layers[text] = {
            name: LayerWatch(**seen) for name, seen in piece.about["layers"].items()
        }
    entropy = taken.entropy
    if OWN not in taken.failed:
        entropy = specimen.gradient(OWN, loss="cross-entropy").gradient
    loss = judged_margin(specimen.judge(specimen.images), specimen.labels)
    return dataclasses.replace(taken, entropy=entropy, loss=loss)


def _by(specimen: Specimen, text: str, start: Tensor) -> Piece:
    """The gradients of one estimator, at the images and at a point next to each."""
    seen: dict[str, LayerWatch] = {}
    try:
        found, bad = _gradient(specimen, text, specimen.images, seen)
        after, worse = _gradient(specimen, text, start)
    except (RuntimeError, UsersCodeError) as error:
        if out_of_memory(error):
            raise
        said = error.text if isinstance(error, UsersCodeError) else str(error)
        nothing = {name: torch.zeros_like(specimen.images) for name in ("here", "away")}
        return Piece({"failed": said.splitlines()[0].rstrip(".")}, nothing)
    about = {
        "failed": None,
        "nonfinite": bad + worse,
        "layers": {name: dataclasses.asdict(watch) for name, watch in seen.items()},
    }
    return Piece(about, {"here": found.gradient, "away": after.gradient})


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


def all_zero(gradient: Tensor) -> Tensor:
    """Whether the gradient of each image is all zero, bool `[image]`."""
    return (gradient.flatten(1) == 0).all(1)
