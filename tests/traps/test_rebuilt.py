"""The rebuilt traps: each keeps its accuracy, is broken to its truth or flagged, and has no A."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustsnn.diagnosis.level import IMAGES as FEW
from robustsnn.diagnosis.level import SUITE, level_of
from robustsnn.records.manifest import Manifest
from tests.traps.networks import IMAGES, Trap, trap_images
from tests.traps.rebuilt import MORE
from tests.traps.test_networks import THREAT, in_chunks, right
from tests.traps.test_suites import IMAGES as EVALUATED
from tests.traps.test_suites import evaluated, flags_of

#: One of each kind runs with the other slow tests; the rest takes minutes.
SLOW = ("hard-vote", "adaptive-threshold")


@cache
def trap(name: str) -> Trap:
    return MORE[name]()


@cache
def run_of(name: str) -> tuple[float, Manifest]:
    return evaluated(trap(name).network)


def made_on(network: torch.nn.Module, steps: int = 12) -> Tensor:
    """Sign steps along the gradient of the cross-entropy, by torch alone."""
    images, labels = trap_images()
    x = images.clone()
    for _ in range(steps):
        leaf = x.clone().requires_grad_()
        loss = F.cross_entropy(network(leaf), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        x = x + THREAT.radius / 4 * gradient.sign()
        x = (images + (x - images).clamp(-THREAT.radius, THREAT.radius)).clamp(0, 1)
    return x


@pytest.mark.parametrize(
    "name",
    [n if n == "hard-vote" else pytest.param(n, marks=pytest.mark.slow) for n in sorted(MORE)],
)
def test_what_it_is_worth_is_known(name):
    made = trap(name)
    images, _ = trap_images()
    assert made.name == name and made.sentence.endswith(".") and made.expected_flags
    assert not any(p.requires_grad for p in made.network.parameters())
    logits = in_chunks(made.network, images)
    assert logits.shape == (IMAGES, 10) and bool(logits.isfinite().all())
    assert right(logits) >= 0.75
    assert right(in_chunks(made.network, made_on(made.truth))) <= made.robust_accuracy_at_most


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in SLOW else pytest.mark.exhaustive)
        for n in sorted(MORE)
    ],
)
def test_it_is_broken_or_flagged_and_never_believed(name):
    made = trap(name)
    left, manifest = run_of(made.name)
    slugs = {row["flag"] for row in manifest.flags}
    broken = left <= made.robust_accuracy_at_most
    assert broken or slugs & set(made.expected_flags), (left, slugs)
    # A full suite would not believe it above its truth.
    as_if_full = level_of(flags_of(manifest), (), round(left * EVALUATED))
    assert broken or as_if_full.level != "A", (left, slugs)


def inner_layer(manifest: Manifest) -> str | None:
    (found,) = [row for row in manifest.probe or () if row["slug"] == "blind-score"]
    return found["details"]["layer"] if found["flagged"] else None


@pytest.mark.slow
def test_a_hard_vote_is_answered_in_front_of_it():
    left, manifest = run_of("hard-vote")
    assert left <= trap("hard-vote").robust_accuracy_at_most
    assert inner_layer(manifest) == "source"
    rows = {row["attack"]: row for row in manifest.ledger}
    assert rows["inner"]["attacked"] > 0 and rows["inner"]["broken"] > 0


@pytest.mark.slow
def test_misplaced_surrogates_are_flagged_and_live_thresholds_break_them():
    made = trap("adaptive-threshold")
    left, manifest = run_of(made.name)
    (row,) = [r for r in manifest.flags if r["flag"] == "surrogate-misplaced"]
    # It begins two thresholds up, and spikes flip half as high.
    assert 0.4 <= row["evidence"] <= 0.6
    assert left <= made.robust_accuracy_at_most
    assert any(reason["id"] not in (SUITE, FEW) for reason in manifest.verdict["because"])
