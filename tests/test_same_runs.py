"""What was recorded before the layout: identities on every machine, all the rest by the script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustsnn.evaluation.plan import prepare
from robustsnn.evaluation.request import Request
from tests import same_runs
from tests.traps.networks import TRAPS, trap_images

RECORDED = json.loads(Path(__file__).with_name("same_runs.json").read_text())


def test_everything_was_recorded():
    assert sorted(RECORDED) == sorted(same_runs.names())
    assert {outcome["level"] for outcome in RECORDED.values()} <= set("ABC")


@pytest.mark.parametrize("name", same_runs.names())
def test_identities_stay(name):
    suite, _, model = name.partition(":")
    if name == same_runs.POISSON:
        images, labels = trap_images(same_runs.IMAGES)
        request = Request.of(TRAPS["poisson"]().network, (images, labels), suite)
    else:
        request = Request.of(
            model,
            suite=suite,
            samples=same_runs.IMAGES,
            substitute=same_runs.SUBSTITUTE if suite == "hire-iccv21" else None,
        )
    assert prepare(request).identity == RECORDED[name]["identity"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", same_runs.names())
def test_runs_end_as_they_did(name):
    """Records are those of one machine: elsewhere flags and levels alone have to be the same."""
    found = same_runs.outcome(name)
    recorded = RECORDED[name]
    if found["records"] == recorded["records"]:
        assert same_runs.differences(recorded, found) == []
    assert (found["level"], found["rows"]) == (recorded["level"], recorded["rows"])
