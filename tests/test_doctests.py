"""Every `>>>` of the package runs and gives what it shows."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def with_examples() -> list[str]:
    """The modules that show examples, by the names that they are imported by."""
    found = []
    for path in sorted((ROOT / "robustsnn").rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(parts).removesuffix(".__init__"))
    return found


@pytest.mark.parametrize("name", with_examples())
def test_examples_give_what_they_show(name: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0 and found.failed == 0


def test_the_door_shows_how_it_is_used() -> None:
    shown = with_examples()
    for needed in ("robustsnn", "robustsnn.evaluation.run", "robustsnn.evaluation.request"):
        assert needed in shown
