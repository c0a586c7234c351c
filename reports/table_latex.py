"""The tables as LaTeX for a paper, which needs the package booktabs.

The caption is one sentence; how to read a table stands above it as a comment.
"""

from __future__ import annotations

from pathlib import Path

from robustsnn.records.runs import Runs
from robustsnn.reporting.tables import Cell, TextTable, tables

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "∞": r"$_\infty$",
    "µ": r"$\mu$",
    "–": "--",
    "…": r"\dots{}",
    "\u00a0": "~",
    "\n": " ",
}

#: How many models, each with an interval, fit next to each other on a page.
MODELS = 4


def render(runs: Runs, output: Path) -> list[Path]:
    """Write all tables to `comparison.tex`, each in a `table` environment of its own."""
    path = output / "tables" / "comparison.tex"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(_table(table) for table in tables(runs))
    path.write_text(f"% Needs \\usepackage{{booktabs}}.\n{text}\n", encoding="utf-8")
    return [path]


def _table(table: TextTable) -> str:
    caption = table.caption or f"{table.title}."
    return "\n".join(
        [
            # What belongs into the text of a paper, and not into a caption.
            *(f"% {escape(note)}" for note in table.notes),
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{escape(caption)}}}",
            rf"  \label{{tab:{_label(table.name)}}}",
            "\n  \\par\\bigskip\n".join(_tabular(table, part) for part in _parts(table)),
            r"\end{table}",
        ]
    )


def _parts(table: TextTable) -> list[list[int]]:
    """The columns of each part of a table: with many models it would leave the paper."""
    every = list(range(1, len(table.head)))
    if not table.name.startswith("accuracy-") or len(every) <= MODELS:
        return [[0, *every]]
    count = -(-len(every) // MODELS)
    size = -(-len(every) // count)
    return [[0, *every[start : start + size]] for start in range(0, len(every), size)]


def _tabular(table: TextTable, part: list[int]) -> str:
    columns = "".join("r" if table.numeric[index] else "l" for index in part)
    rows = [tuple(row[index] for index in part) for row in (table.head, *table.rows)]
    return "\n".join(
        [
            rf"  \begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            _row(rows[0]),
            r"    \midrule",
            *map(_row, rows[1:]),
            r"    \bottomrule",
            r"  \end{tabular}",
        ]
    )


def _row(cells: tuple[Cell, ...]) -> str:
    # A row that starts with a bracket would be read as the argument of the line break before it.
    texts = [escape(cell.text) for cell in cells]
    texts[0] = f"{{{texts[0]}}}" if texts[0].startswith(("[", "*")) else texts[0]
    return f"    {' & '.join(texts)} \\\\"


def _label(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c == "-") else "-" for c in name)


def escape(text: str) -> str:
    """The text with every character that has a meaning in LaTeX escaped."""
    return "".join(_ESCAPES.get(char, char) for char in text)
