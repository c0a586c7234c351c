"""The tables as Markdown for a README or an issue."""

from __future__ import annotations

from pathlib import Path

from robustsnn.records.runs import Runs
from robustsnn.reporting.tables import Cell, TextTable, tables


def render(runs: Runs, output: Path) -> list[Path]:
    """Write all tables, one below the other, to `comparison.md`."""
    path = output / "tables" / "comparison.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(_table(table) for table in tables(runs)) + "\n"
    path.write_text(text, encoding="utf-8")
    return [path]


def _table(table: TextTable) -> str:
    rule = "|".join("---:" if right else "---" for right in table.numeric)
    lines = [
        f"**{escape(table.title)}**",
        "",
        _row(table.head),
        f"|{rule}|",
        *map(_row, table.rows),
    ]
    for note in table.notes:
        lines += ["", escape(note)]
    return "\n".join(lines)


def _row(cells: tuple[Cell, ...]) -> str:
    return f"| {' | '.join(escape(cell.text) for cell in cells)} |"


def escape(text: str) -> str:
    """The text with every character that has a meaning in Markdown or HTML escaped."""
    for char in "\\`*_[]|~$":
        text = text.replace(char, f"\\{char}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
