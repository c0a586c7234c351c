"""The accuracies of comparisons as tables for a terminal of any width."""

from __future__ import annotations

import re

from rich.console import Group, RenderableType
from rich.text import Text

from robustsnn.common.wording import NBSP
from robustsnn.records.runs import Runs
from robustsnn.records.schema import WORST_CASE
from robustsnn.reporting.columns import Column, Columns, Lines, Word, words
from robustsnn.reporting.comparison import comparisons
from robustsnn.reporting.tables import Cell, TextTable, accuracy_table

_WORST = WORST_CASE.replace("-", " ").capitalize()
_DIM = "dim not bold"


def comparison_table(runs: Runs) -> RenderableType:
    """The accuracies of the first comparison, one row per attack and one column per model."""
    table = accuracy_table(comparisons(runs)[0])
    return Group(_title(table), _drawn(table))


def comparison_tables(runs: Runs) -> RenderableType:
    """The accuracies of all comparisons, one below the other, with notes on how to read them."""
    parts: list[RenderableType] = []
    for comparison in comparisons(runs):
        table = accuracy_table(comparison)
        parts += [
            _title(table),
            Text(""),
            _drawn(table),
            Text(""),
            *(Text(note, style="dim") for note in table.notes),
            Text(""),
        ]
    return Group(*parts)


def _title(table: TextTable) -> Text:
    return Text(table.title.replace("Accuracy", "Accuracy in %", 1), style="bold")


def _drawn(table: TextTable) -> Columns:
    columns = [
        Column(
            _named(head),
            tuple((_named if not index else _number)(row[index]) for row in table.rows),
            right=bool(index),
        )
        for index, head in enumerate(table.head)
    ]
    bold = (number for number, row in enumerate(table.rows) if row[0].main == _WORST)
    return Columns(columns[0], tuple(columns[1:]), frozenset(bold))


def _named(cell: Cell) -> Lines:
    return Lines([words(cell.main), *([words(cell.detail, _DIM)] if cell.detail else [])])


def _number(cell: Cell) -> Lines:
    # The title names the unit, so that three models fit into 80 columns.
    number = cell.main.removesuffix(f"{NBSP}%")
    # A level stays next to its number.
    first = [Word(f"{number}{NBSP}{cell.mark}" if cell.mark else number, "bold")]
    if cell.detail:
        first.append(Word(cell.detail, _DIM))
    # A difference may stand above its p-value.
    parts = re.split("(?<=,) ", cell.note) if cell.note else []
    note = tuple(Word(part, "not bold") for part in parts)
    return Lines([tuple(first), *([note] if note else [])])
