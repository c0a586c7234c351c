"""Every `>>>` of the package runs and gives what it shows."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import robustsnn

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
    assert ">>> " in (robustsnn.__doc__ or "")
    for name in robustsnn.__all__:
        if not name.startswith("__"):
            assert ">>> " in (getattr(robustsnn, name).__doc__ or ""), name


def test_the_interface_lists_the_door() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name in robustsnn.__all__:
        assert name.startswith("__") or f"robustsnn.{name}}}" in page, name
