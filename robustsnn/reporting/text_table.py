"""Tables as text: cells, heads and notes, from which every file format is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from robustsnn.common import wording


class Cell(NamedTuple):
    """The content of one cell.

    Args:
        main: The number or name.
        detail: What follows it on the same line, such as an interval or a size.
        note: A remark on the line below.
        mark: A mark directly after the number, such as the level of a run.
    """

    main: str
    detail: str = ""
    note: str = ""
    mark: str = ""

    @property
    def text(self) -> str:
        """The number, mark and detail on one line."""
        number = f"{self.main}{wording.NBSP}({self.mark})" if self.mark else self.main
        joint = " " if self.detail.startswith(("[", "(")) else ", "
        return f"{number}{joint}{self.detail}" if self.detail else number


@dataclass(frozen=True)
class TextTable:
    """A table ready to be written.

    Args:
        name: The name of the table, which is unique in a report.
        title: The title for readers.
        head: The cells of the head.
        rows: The rows, each with as many cells as the head.
        notes: Sentences that say how to read the table.
        caption: The sentence below the table in a paper; by default the title.
    """

    name: str
    title: str
    head: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    caption: str = ""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each column holds numbers, which are aligned to the right."""
        columns = zip(*self.rows, strict=True)
        found = tuple(all(c.main[:1] in "0123456789+−±–<>" for c in column) for column in columns)
        return found or (False,) * len(self.head)
