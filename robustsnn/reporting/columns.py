"""Tables for a terminal of any width: they wrap between numbers or go on below, and cut nothing.

A cell is made of words that stay whole. A table has all its columns next to each other if they
fit; if not, cells are broken between words; if that is not enough either, the table is split into
several below each other, each with the first column; and where not even one column fits next to
the first, each cell stands below the name of its row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from robustsnn.common.wording import readable

#: The spaces between two columns, and in front of the first.
_GAP, _MARGIN = 2, 2
#: Names that are longer than this are broken, at a dash or a slash if there is one.
_LONGEST_NAME = 18
#: The fewest columns that numbers with their intervals need; narrower terminals break lines.
NARROWEST = 12


class Word(NamedTuple):
    """A piece of text that stays on one line.

    Args:
        text: The text.
        style: The style that rich draws it in.
        glued: Whether it follows the word before it without a space.
    """

    text: str
    style: str = ""
    glued: bool = False


class Lines(tuple[tuple[Word, ...], ...]):
    """The lines of a cell; a line is broken between words only."""

    def __str__(self) -> str:
        return "\n".join(_text(line, "").plain for line in self)

    def readable(self, encoding: str) -> Lines:
        """The same lines in the characters that an encoding has."""
        return Lines(
            tuple(word._replace(text=readable(word.text, encoding)) for word in line)
            for line in self
        )


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        head: The lines of its head.
        cells: The lines of each cell.
        right: Whether it is aligned to the right.
    """

    head: Lines
    cells: tuple[Lines, ...]
    right: bool = True

    @property
    def whole(self) -> int:
        """The width at which no line is broken."""
        return max((_length(line) for lines in self._all() for line in lines), default=0)

    @property
    def least(self) -> int:
        """The width of the longest word."""
        words = (word for lines in self._all() for line in lines for word in line)
        return max((cell_len(word.text) for word in words), default=0)

    def readable(self, encoding: str) -> Column:
        """The same column in the characters that an encoding has."""
        cells = tuple(cell.readable(encoding) for cell in self.cells)
        return Column(self.head.readable(encoding), cells, self.right)

    def _all(self) -> Iterator[Lines]:
        yield self.head
        yield from self.cells


def words(text: str, style: str = "") -> tuple[Word, ...]:
    """The words of a sentence or name; long names may be broken after dashes and slashes.

    Examples:
        >>> [word.text for word in words("fashion-mnist/vgg5-snn-at is robust")]
        ['fashion-', 'mnist/', 'vgg5-', 'snn-', 'at', 'is', 'robust']
    """
    found: list[Word] = []
    for part in text.split(" "):
        pieces = re.findall(r"[^-/_:@]*[-/_:@]+|[^-/_:@]+", part) if _is_long(part) else [part]
        chunks = [
            piece[start : start + _LONGEST_NAME]
            for piece in pieces
            for start in range(0, max(len(piece), 1), _LONGEST_NAME)
        ]
        found += [Word(chunk, style, glued=bool(i)) for i, chunk in enumerate(chunks)]
    return tuple(found)


def _is_long(part: str) -> bool:
    return cell_len(part) > _LONGEST_NAME


def plain(text: str, style: str = "") -> Lines:
    """The lines of a cell that is a plain text."""
    return Lines(words(line, style) for line in text.split("\n"))


@dataclass(frozen=True)
class Columns:
    """A table that a rich console prints at any width.

    Args:
        key: The first column, which is repeated where the table is split.
        columns: The others.
        bold: The numbers of the rows that stand out.
        title: A line above the table.
    """

    key: Column
    columns: tuple[Column, ...]
    bold: frozenset[int] = frozenset()
    title: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines of the table, none of them wider than the console."""
        if self.title:
            yield Text(self.title, style="bold")
        width = max(options.max_width, NARROWEST)
        # Before the widths are taken: what stands for a sign may be longer than the sign.
        columns = tuple(column.readable(options.encoding) for column in self.columns)
        shown = Columns(self.key.readable(options.encoding), columns, self.bold)
        yield from shown._lines_at(width)

    def _lines_at(self, width: int) -> Iterator[Text]:
        for number, (key, block) in enumerate(self._blocks(width)):
            if number:
                yield Text("")
            for line in self._drawn(key, block, width) if block else self._stacked(width):
                line.no_wrap, line.overflow = True, "ignore"
                yield line

    def _blocks(self, width: int) -> list[tuple[int, list[tuple[Column, int]]]]:
        """The width of the first column and the columns, with theirs, of each part of the table."""
        for key in range(self.key.whole, self.key.least - 1, -1):
            room = width - _MARGIN - key
            if sum(column.whole + _GAP for column in self.columns) <= room:
                return [(key, [(column, column.whole) for column in self.columns])]
        key = self.key.least
        room = width - _MARGIN - key
        if any(column.least + _GAP > room for column in self.columns):
            return [(key, [])]
        blocks: list[list[Column]] = [[]]
        for column in self.columns:
            if sum(one.least + _GAP for one in [*blocks[-1], column]) > room:
                blocks.append([])
            blocks[-1].append(column)
        # As many columns in each part as in the others, where they are alike.
        blocks = self._evened(blocks, room)
        return [self._shared(block, width) for block in blocks]

    def _evened(self, blocks: list[list[Column]], room: int) -> list[list[Column]]:
        size = -(-len(self.columns) // len(blocks))
        even = [list(self.columns[i : i + size]) for i in range(0, len(self.columns), size)]
        fits = all(sum(column.least + _GAP for column in block) <= room for block in even)
        return even if fits else blocks

    def _shared(self, block: Sequence[Column], width: int) -> tuple[int, list[tuple[Column, int]]]:
        """The widths of columns that are next to each other; the smallest needs come first."""
        every = [self.key, *block]
        widths = [column.least for column in every]
        left = width - _MARGIN - sum(widths) - _GAP * len(block)
        order = sorted(range(len(every)), key=lambda i: every[i].whole - every[i].least)
        for place, index in enumerate(order):
            share = left // (len(order) - place)
            more = min(every[index].whole - every[index].least, share)
            widths[index] += more
            left -= more
        return widths[0], list(zip(block, widths[1:], strict=True))

    def _drawn(self, key: int, block: Sequence[tuple[Column, int]], width: int) -> Iterator[Text]:
        every = [(self.key, key), *block]
        yield from _row([(column, column.head, size) for column, size in every], "bold", low=True)
        yield Text(" " + "─" * (sum(size for _, size in every) + _GAP * len(block) + 1))
        for row in range(len(self.key.cells)):
            style = "bold" if row in self.bold else ""
            yield from _row([(column, column.cells[row], size) for column, size in every], style)

    def _stacked(self, width: int) -> Iterator[Text]:
        """Each cell below the name of its row, each column below its own head."""
        for number, column in enumerate(self.columns):
            if number:
                yield Text("")
            yield from _lines(column.head, width, "bold")
            for row, cell in enumerate(column.cells):
                style = "bold" if row in self.bold else ""
                yield from _lines(self.key.cells[row], width, style)
                for line in _lines(cell, width - _MARGIN, style):
                    yield Text(" " * _MARGIN).append_text(line)


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[bool] = (),
    bold: Iterable[int] = (),
    title: str = "",
) -> Columns:
    """A table of plain texts.

    Args:
        heads: The heads of the columns.
        rows: The texts of each row.
        right: Whether each column is aligned to the right; by default none is.
        bold: The numbers of the rows that stand out.
        title: A line above the table.

    Examples:
        >>> Console(width=12, color_system=None).print(table(("a", "b"), [("key", "1.25 2.25")]))
          a    b
         ───────────
          key  1.25
               2.25
    """
    body = list(rows)
    made = [
        Column(
            plain(head),
            tuple(plain(row[index]) for row in body),
            bool(right) and right[index],
        )
        for index, head in enumerate(heads)
    ]
    return Columns(made[0], tuple(made[1:]), frozenset(bold), title)


def _length(line: Sequence[Word]) -> int:
    spaces = sum(not word.glued for word in line[1:])
    return sum(cell_len(word.text) for word in line) + spaces


def _broken(lines: Lines, width: int) -> Iterator[tuple[Word, ...]]:
    """The lines at a width: broken between words, and within one only if it does not fit."""
    for line in lines:
        current: list[Word] = []
        for word in line:
            for piece in _pieces(word, width):
                if current and _length([*current, piece]) > width:
                    yield tuple(current)
                    current = []
                current.append(piece)
        yield tuple(current)


def _pieces(word: Word, width: int) -> list[Word]:
    """A word, or its parts between spaces that were to stay together, where it is too long."""
    if cell_len(word.text) <= width:
        return [word]
    parts = [part for part in re.split(r"[ \u00a0]", word.text) if part]
    return [Word(part, word.style, word.glued and not i) for i, part in enumerate(parts)]


def _text(line: Sequence[Word], style: str) -> Text:
    text = Text(style=style)
    for index, word in enumerate(line):
        if index and not word.glued:
            text.append(" ")
        text.append(word.text, style=word.style or None)
    return text


def _lines(lines: Lines, width: int, style: str) -> Iterator[Text]:
    yield from (_text(line, style) for line in _broken(lines, width))


def _row(
    cells: Sequence[tuple[Column, Lines, int]], style: str, *, low: bool = False
) -> Iterator[Text]:
    """The lines of a row; `low` puts short cells at its bottom, as in a head."""
    broken = [list(_broken(lines, size)) for _, lines, size in cells]
    height = max(map(len, broken))
    for number in range(height):
        text = Text(" " * (_MARGIN - _GAP))
        for (column, _, size), lines in zip(cells, broken, strict=True):
            index = number - (height - len(lines) if low else 0)
            line = lines[index] if 0 <= index < len(lines) else ()
            drawn = _text(line, style)
            space = " " * max(0, size - _length(line))
            text.append(" " * _GAP)
            text.append_text(Text(space) + drawn if column.right else drawn + Text(space))
        text.rstrip()
        yield text
