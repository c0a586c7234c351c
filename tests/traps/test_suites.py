"""A small cascade on every trap: it is broken to its truth or flagged, and no trap gets an A."""

from __future__ import annotations

from typing import Any

import pytest

from robustsnn.diagnosis.finding import Finding
from robustsnn.diagnosis.level import IMAGES as FEW
from robustsnn.diagnosis.level import SUITE, level_of
from robustsnn.evaluation.run import evaluate
from robustsnn.evaluation.suites import Suite
from robustsnn.records.manifest import Manifest
from tests.traps.networks import EPSILON, NORM, TRAPS, honest, trap_images

IMAGES = 24
#: As `light`, with a few steps and queries only: derivatives of three families, then a search.
PROBES = ("bptt", "bptt:triangle:width=0.5", "assg:vanishing=0.425")
#: Traps that need no seconds; the others are as slow as they are many.
FAST = ("constant", "narrow")


def suite_for(spiking: bool) -> Suite:
    probes = [
        {
            "label": f"Probe {place}",
            "attack": "apgd:steps=5,loss=margin",
            "estimator": estimator,
            "probe": True,
        }
        for place, estimator in enumerate(PROBES if spiking else PROBES[:1])
    ]
    return Suite.model_validate(
        {
            "name": "lighter",
            "norm": NORM,
            "epsilon": EPSILON,
            "cascade": True,
            "entries": [
                *probes,
                {"label": "CE", "attack": "apgd:steps=10,loss=cross-entropy", "estimator": "best"},
                {"label": "Margin", "attack": "apgd:steps=20,loss=margin", "estimator": "best"},
                {"label": "Square", "attack": "square:queries=100,warm=yes,offset=200"},
                {
                    "label": "Inner",
                    "attack": "apgd:steps=20,loss=margin",
                    "estimator": PROBES[2] if spiking else PROBES[0],
                    "when": "blind",
                    "reads": "inner",
                },
                {"label": "RayS", "attack": "rays:queries=100", "when": "blind"},
            ],
        }
    )


def evaluated(network: Any) -> tuple[float, Manifest]:
    """What the cascade leaves, and what the run says of it."""
    spiking = callable(getattr(network, "spiking_layers", None))
    found = evaluate(network, trap_images(IMAGES), suite_for(spiking))
    rows = found.results[found.results["attack"] == "worst-case"]
    return float(rows["accuracy"].iloc[0]), found.manifest


def flags_of(manifest: Manifest) -> list[Finding]:
    return [
        Finding(row["id"], row["flag"], True, row["severity"], row["sentence"], 0.0)
        for row in manifest.flags
    ]


@pytest.mark.parametrize(
    "name",
    [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in sorted(TRAPS)],
)
def test_a_trap_is_broken_or_flagged_and_never_believed(name):
    trap = TRAPS[name]()
    left, manifest = evaluated(trap.network)
    slugs = {row["flag"] for row in manifest.flags}
    assert left <= trap.robust_accuracy_at_most or slugs, (left, trap.sentence)
    assert slugs >= set(trap.expected_flags) or left <= trap.robust_accuracy_at_most, slugs
    # Not for being a short suite: the flags by themselves must not let a full one have an A.
    as_if_full = level_of(flags_of(manifest), (), round(left * IMAGES))
    assert as_if_full.level != "A", (left, slugs)
    assert manifest.verdict["level"] in "BC"
    assert any(reason["id"] not in (SUITE, FEW) for reason in manifest.verdict["because"])


@pytest.mark.slow
def test_the_honest_network_is_not_flagged_for_what_traps_do():
    left, manifest = evaluated(honest())
    slugs = {row["flag"] for row in manifest.flags}
    # A suite so short may not have converged.
    assert slugs <= {"black-box-finds-more", "not-converged"}, (left, slugs)
    assert manifest.verdict["level"] == "B"


def test_the_level_of_a_trap_is_in_its_manifest():
    _, manifest = evaluated(TRAPS["constant"]().network)
    assert manifest.verdict["level"] == "C"
    assert {"no-gradient", "zero-gradient"} <= {row["flag"] for row in manifest.flags}
