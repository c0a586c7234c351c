"""A short run of the fuzz target; `python -m tests.fuzz 2000` is the long one."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests import fuzz
from tests.cli import warm_cli

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not warm_cli.AVAILABLE, reason="calls are not forked here"),
]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fuzz.Target]:
    run, close = fuzz.warm_runner()
    yield fuzz.Target(tmp_path_factory.mktemp("fuzz"), run)
    close()


@settings(
    max_examples=40,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 2**32))
def test_whatever_is_sent_ends_in_order(target: fuzz.Target, seed: int) -> None:
    found = target.try_on(target.draw(random.Random(seed)))
    assert found.faults == (), f"{found.given.change}: {found.stderr}"


def test_the_target_tells_a_fault(target: fuzz.Target) -> None:
    given = fuzz.Input("suite.yaml", b"", ("evaluate", "x"), "emptied")
    line = "robustsnn: no.\n"
    assert fuzz._faults(2, line, 1.0, [], given) == []
    assert fuzz._faults(2, line * 2, 1.0, [], given) == ["2 lines on stderr"]
    assert fuzz._faults(70, line, 1.0, [], given) == ["exit code 70"]
    assert fuzz._faults(1, "Traceback (most", 1.0, [], given) == ["a traceback"]
    assert fuzz._faults(0, "", fuzz.LIMIT + 1, [], given) == [f"{fuzz.LIMIT + 1:.0f} seconds"]
    assert fuzz._faults(2, line, 1.0, ["outside"], given) == ["left behind: outside"]
