"""The accuracies of comparisons as tables for a terminal of 80 columns."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from robustsnn.common.wording import NBSP
from robustsnn.records.runs import Runs
from robustsnn.records.schema import WORST_CASE
from robustsnn.reporting.comparison import comparisons
from robustsnn.reporting.tables import Cell, TextTable, accuracy_table


def comparison_table(runs: Runs) -> Table:
    """The accuracies of the first comparison, one row per attack and one column per model."""
    table = accuracy_table(comparisons(runs)[0])
    drawn = _drawn(table)
    drawn.title = _title(table)
    return drawn


def comparison_tables(runs: Runs) -> RenderableType:
    """The accuracies of all comparisons, one below the other, with notes on how to read them."""
    parts: list[RenderableType] = []
    for comparison in comparisons(runs):
        table = accuracy_table(comparison)
        parts += [
            _title(table),
            _drawn(table),
            *(Text(note, style="dim") for note in table.notes),
            Text(""),
        ]
    return Group(*parts)


def _title(table: TextTable) -> Text:
    return Text(table.title.replace("Accuracy", "Accuracy in %", 1), style="bold")


def _drawn(table: TextTable) -> Table:
    # Text objects and not strings, because rich would take a model called [red] for markup.
    drawn = Table(
        title_style="bold",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
    )
    for index, head in enumerate(table.head):
        drawn.add_column(
            _lines(head.main, head.detail),
            justify="right" if index else "left",
            overflow="fold",
            min_width=None if index else 12,
        )
    for row in table.rows:
        first, *cells = row
        drawn.add_row(
            _lines(first.main, first.detail),
            *map(_number, cells),
            style="bold" if first.main == _WORST else None,
        )
    return drawn


_WORST = WORST_CASE.replace("-", " ").capitalize()


def _lines(main: str, detail: str) -> Text:
    text = Text(main)
    if detail:
        text.append(f"\n{detail}", style="dim not bold")
    return text


def _number(cell: Cell) -> Text:
    # The title names the unit, so that three models fit into 80 columns.
    text = Text(cell.main.removesuffix(f"{NBSP}%"), style="bold")
    if cell.mark:
        text.append(f" {cell.mark}", style="bold")
    if cell.detail:
        text.append(f" {cell.detail}", style="dim not bold")
    if cell.note:
        text.append(f"\n{cell.note}", style="not bold")
    return text
