"""The examples run, say what they promise, and import RobustSNN from its door alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import robustsnn
from tests.conftest import cli_environment

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAYS = {
    "evaluate_in_memory": ["worst-case", "upper bound"],
    "my_attack": ["gaussian-noise", "my-attack-draws-20"],
    "my_estimator": ["custom-under-", "my_estimator.py:silent=0.1"],
    "my_model": ["worst-case", "level B"],
    "read_records": ["Ankle boot", "% survive"],
}


def test_there_is_one_of_each() -> None:
    assert {path.stem for path in EXAMPLES} == set(SAYS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_are_short_and_use_the_door(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert 20 <= len([line for line in text.splitlines() if line.strip()]) <= 45
    only_from_the_door(text)


def only_from_the_door(text: str) -> None:
    """Whether a program takes from `robustsnn` only what its door offers."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("robustsnn"):
            assert node.module == "robustsnn", ast.unparse(node)
            assert {alias.name for alias in node.names} <= set(robustsnn.__all__)
        elif isinstance(node, ast.Import):
            assert not any(a.name.startswith("robustsnn.") for a in node.names), ast.unparse(node)


def test_examples_of_the_documents_use_the_door() -> None:
    """An architecture is a part of the package and takes its parts from its own room."""
    text = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
    shown = re.findall(r"^<!-- file: (\S+) -->\n```python\n(.*?)^```$", text, re.M | re.S)
    assert len(shown) >= 6
    for name, code in shown:
        if name != "lenet.py":
            only_from_the_door(code)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_run(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env=cli_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for words in SAYS[path.stem]:
        assert words in done.stdout, done.stdout
