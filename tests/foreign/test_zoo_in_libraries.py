"""A network of ours written in another library is the same: predictions, gradients and runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import robustsnn
from robustsnn.adversary.victim import Victim
from robustsnn.diagnosis.probe.watch import LayerWatch, Watched
from robustsnn.estimators.make import make_estimator
from robustsnn.foreign.wrap import wrap
from robustsnn.models.checkpoint import load_model
from robustsnn.snn.network import Network
from tests.foreign import zoo_in_snntorch, zoo_in_spikingjelly
from tests.foreign.networks import needs, quiet
from tests.real_data import real_images

DATA = "fashion-mnist"
#: The share of the predictions that rounding may change, and the points by which runs may differ.
APART, POINTS = 0.001, 2.0
SAMPLES = 200
LIBRARIES = [
    pytest.param("spikingjelly", marks=needs("spikingjelly")),
    pytest.param("snntorch", marks=needs("snntorch")),
]


def both(library: str) -> tuple[Network, Any]:
    """A network of ours, and the same in the library, wrapped."""
    if library == "spikingjelly":
        ours = load_model("fashion-mnist/vgg5-snn-at")
        assert isinstance(ours, Network)
        theirs: Any = zoo_in_spikingjelly.Rewritten(ours)
    else:
        ours = zoo_in_snntorch.integrate_and_fire()
        theirs = zoo_in_snntorch.Rewritten(ours)
    return ours, wrap(theirs.eval().requires_grad_(False), real_images(DATA, 8).tensor())


def _predictions(network: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(part).argmax(1) for part in images.split(100)])


@pytest.mark.parametrize("library", LIBRARIES)
@quiet
def test_estimators_give_the_gradients_of_our_network(library: str) -> None:
    ours, theirs = both(library)
    assert theirs.reach.complete, theirs.reach.caution
    images = real_images(DATA, 8)
    x, labels = images.tensor(), torch.as_tensor(images.labels)
    for text in ("bptt", "bptt:arctan:width=0.0796", "rga", "hart", "pdsg", "twin", "assg"):
        found = [
            Victim(one, make_estimator(text, one), range(8), 8).gradient(x, labels)
            for one in (ours, theirs)
        ]
        assert torch.allclose(found[0].logits, found[1].logits, atol=1e-3), text
        a, b = (one.gradient.flatten(1) for one in found)
        assert float((a - b).norm() / a.norm()) < 1e-3, text


@pytest.mark.parametrize("library", LIBRARIES)
@quiet
def test_a_surrogate_of_a_library_sees_the_membranes_that_ours_sees(library: str) -> None:
    images = real_images(DATA, 8)
    seen: list[dict[str, LayerWatch]] = []
    for one in both(library):
        watched = Watched(make_estimator("bptt", one), {})
        Victim(one, watched, range(8), 8).gradient(images.tensor(), images.targets())
        seen.append(watched.layers)
    for ours, theirs in zip(*(layers.values() for layers in seen), strict=True):
        assert ours.compact and theirs.compact
        assert theirs.share(theirs.inside) == pytest.approx(ours.share(ours.inside), abs=2e-3)
        assert theirs.share(theirs.vanishing) == pytest.approx(ours.share(ours.vanishing), abs=1e-3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("library", LIBRARIES)
@quiet
def test_predictions_are_those_of_our_network(library: str) -> None:
    ours, theirs = both(library)
    images = real_images(DATA).tensor()
    apart = _predictions(ours, images) != _predictions(theirs, images)
    print(f"{int(apart.sum())} of {len(apart)} predictions differ")
    assert float(apart.double().mean()) <= APART


@pytest.mark.exhaustive
@pytest.mark.parametrize("library", LIBRARIES)
@quiet
def test_standard_leaves_what_it_leaves_of_our_network(library: str) -> None:
    ours, theirs = both(library)
    data = real_images(DATA, SAMPLES)
    runs = [robustsnn.evaluate(one, data, "standard") for one in (ours, theirs.inner)]
    worst: list[float] = []
    for run in runs:
        rows = run.results[run.results["attack"] == "worst-case"]
        worst.append(100 * float(rows["accuracy"].iloc[0]))
        print(run.level, worst[-1], sorted(flag["flag"] for flag in run.manifest.flags))
    assert abs(worst[0] - worst[1]) <= POINTS, worst
    flags = [{flag["flag"] for flag in run.manifest.flags} for run in runs]
    # Nothing is left out for the network of the library.
    assert flags[0] == flags[1] and runs[0].level == runs[1].level
    assert runs[0].manifest.left_out == runs[1].manifest.left_out
    assert runs[1].manifest.foreign is not None and runs[1].manifest.foreign["reached"] == 4
