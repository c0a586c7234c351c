"""The accuracy tables as a terminal shows them, in a text file."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from robustsnn.records.runs import Runs
from robustsnn.reporting.terminal import comparison_table, comparison_tables

__all__ = ["comparison_table", "render"]

#: The number of columns of the file; a table of more models is split.
WIDTH = 100


def render(runs: Runs, output: Path) -> list[Path]:
    """Write the tables as plain text to `comparison.txt`."""
    path = output / "tables" / "comparison.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.StringIO()
    Console(file=stream, width=WIDTH, color_system=None).print(comparison_tables(runs))
    lines = (line.rstrip() for line in stream.getvalue().splitlines())
    path.write_text("\n".join(lines).strip("\n") + "\n", encoding="utf-8")
    return [path]
