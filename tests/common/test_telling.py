"""What takes long says so, again and again, and only then."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from robustsnn.common import telling as module
from robustsnn.common.telling import telling


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 0.1)


def test_silence_is_broken_again_and_again(quick, capsys):
    with telling("adding") as told:
        time.sleep(0.35)
        told.now("subtracting")
        time.sleep(0.25)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 6
    assert lines[0].startswith("robustsnn: adding, ") and lines[0].endswith(" s so far")
    assert lines[-1].startswith("robustsnn: subtracting, ")


def test_whoever_speaks_is_not_interrupted(quick, capsys):
    with telling("adding") as told:
        for number in range(12):
            told.line(str(number))
            time.sleep(0.03)
    assert capsys.readouterr().err.split() == [str(number) for number in range(12)]


def test_nothing_goes_on_after_the_block(quick, capsys):
    before = threading.active_count()
    with pytest.raises(KeyError), telling("adding"):
        raise KeyError
    assert threading.active_count() == before
    time.sleep(0.25)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_bars(quick, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with telling("adding"):
        time.sleep(0.25)
    assert capsys.readouterr().err == ""


def test_a_line_comes_within_half_a_minute():
    assert module.SILENCE < 30
