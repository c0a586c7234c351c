"""The tables as LaTeX for a paper, which needs the package booktabs."""

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


def render(runs: Runs, output: Path) -> list[Path]:
    """Write all tables to `comparison.tex`, each in a `table` environment of its own."""
    path = output / "tables" / "comparison.tex"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(_table(table) for table in tables(runs))
    path.write_text(f"% Needs \\usepackage{{booktabs}}.\n{text}\n", encoding="utf-8")
    return [path]


def _table(table: TextTable) -> str:
    columns = "".join("r" if right else "l" for right in table.numeric)
    notes = " ".join(escape(note) for note in table.notes)
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{escape(table.title)}. {notes}}}",
            rf"  \label{{tab:{_label(table.name)}}}",
            rf"  \begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            _row(table.head),
            r"    \midrule",
            *map(_row, table.rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
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
