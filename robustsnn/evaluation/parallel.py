"""Several runs at a time: their cells are computed by workers as their stages allow.

The order in which cells end decides nothing: a stage takes in its cells by their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from robustsnn.common.files import unwritable
from robustsnn.errors import InputError
from robustsnn.evaluation.cells import Cell
from robustsnn.evaluation.expected import BACKWARD
from robustsnn.evaluation.finished import Evaluation
from robustsnn.evaluation.ongoing import Ongoing
from robustsnn.evaluation.plan import Plan
from robustsnn.evaluation.workers import RETRIES, Computes, Gone, Sent, outcome, sent

#: Called with what ended last, the seconds that workers have worked, and those that they are
#: expected to work in all.
Told = Callable[[str, float, float], None]


@dataclass(frozen=True, eq=False)
class Asked:
    """A run to carry out.

    Args:
        name: The name in what is told.
        plan: The function that makes its plan.
        output: Its run folder.
        command: The command line that asked for it.
    """

    name: str
    plan: Callable[[], Plan]
    output: Path
    command: Sequence[str] = ()


@dataclass(eq=False)
class _Line:
    """A run on its way: its open stage and what is left of that."""

    place: int
    asked: Asked
    run: Ongoing | None = None
    sent: Sent | None = None
    stages: Iterator[list[Cell]] = field(default_factory=lambda: iter(()))
    waiting: list[Cell] = field(default_factory=list)
    computed: list[Cell] = field(default_factory=list)
    found: Evaluation | InputError | None = None
    #: The passes that its finished cells were expected to take and took, and their seconds.
    planned: float = 0.0
    spent: float = 0.0
    seconds: float = 0.0

    def begin(self) -> None:
        """Open the run folder."""
        try:
            self.run = Ongoing(self.asked.plan(), self.asked.output, self.asked.command).__enter__()
            self.sent = None if self.run.found is not None else sent(self.run.course.plan)
            self.stages = self.run.stages()
        except InputError as error:
            self.end(error)
        self.open_next()

    def open_next(self) -> None:
        """Open the next stage with cells in it, if none of this one is left."""
        try:
            while self.found is None and not (self.waiting or self.computed):
                self.waiting = next(self.stages)
        except StopIteration:
            self.end(None)
        except InputError as error:
            self.end(error)

    def end(self, error: InputError | None) -> None:
        """Close the run folder; the finished cells of a run that failed stay there."""
        run, self.run, self.waiting = self.run, None, []
        if error is not None:
            self.found = error
        elif run is not None:
            self.found = run.found
        if run is not None:
            run.__exit__(type(error) if error else None, error, None)

    def count(self, cell: Cell, seconds: float, found: Any) -> None:
        """Take in what a finished cell took."""
        self.planned += cell.passes
        self.spent += _spent(cell, found)
        self.seconds += seconds

    @property
    def left(self) -> float:
        """The passes that may be left, as far as settings say."""
        if self.run is None:
            return 0.0
        return _passes(self.waiting) + _passes(self.computed) + self.run.course.expected


def carry_out(
    runs: Sequence[Asked], workers: Computes, told: Told | None = None
) -> list[Evaluation | InputError]:
    """Carry out runs with workers; a run that fails does not stop the others.

    Args:
        runs: The runs.
        workers: The workers.
        told: The function that is told of every finished cell.

    Returns:
        Each finished run, or what went wrong with it.

    Raises:
        InputError: A run folder cannot be written.
    """
    lines = [_Line(place, asked) for place, asked in enumerate(runs)]
    later = iter(lines)
    going: dict[Future[Any], tuple[_Line, Cell]] = {}
    died: dict[Cell, int] = {}
    try:
        while True:
            # Runs are begun as workers need cells, so that few of them are open at a time.
            while sum(len(line.waiting) for line in lines) + len(going) < 2 * workers.places:
                line = next(later, None)
                if line is None:
                    break
                line.begin()
            for line, cell in _chosen(lines, workers.places - len(going), len(going), died):
                assert line.sent is not None
                going[workers.submit(line.sent, cell)] = (line, cell)
            if not going:
                return [line.found for line in lines if line.found is not None]
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                _take_in(future, *going.pop(future), died, lines, told)
    finally:
        workers.close()
        for line in lines:
            if line.run is not None:
                line.run.__exit__(None, None, None)


def _take_in(
    future: Future[Any],
    line: _Line,
    cell: Cell,
    died: dict[Cell, int],
    lines: Sequence[_Line],
    told: Told | None,
) -> None:
    """Keep what a finished cell found, or compute it again where its worker died."""
    line.computed.remove(cell)
    try:
        seconds, found = outcome(future)
    except Gone:
        died[cell] = died.get(cell, 0) + 1
        if line.run is not None and died[cell] > RETRIES:
            line.end(_died(line, cell))
        elif line.run is not None:
            line.waiting.insert(0, cell)
        return
    except InputError as error:
        if line.run is not None:
            line.end(error)
        return
    if line.run is None:
        return
    try:
        cell.keep(found)
        line.count(cell, seconds, found)
        line.open_next()
    except OSError as error:
        raise unwritable(line.asked.output, error) from error
    if told is not None:
        done = sum(one.seconds for one in lines)
        told(f"{line.asked.name}: {cell.what}", done, done + _seconds_left(lines))


def _chosen(
    lines: Sequence[_Line], places: int, going: int, died: Mapping[Cell, int]
) -> Iterator[tuple[_Line, Cell]]:
    """The cells to begin with: of the runs with most left, so that none is alone at the end.

    A worker that dies takes all others with it. So a cell whose worker died is computed alone, and
    the next time it is known which cell it was.
    """
    suspects = [(line, cell) for line in lines for cell in line.waiting if cell in died]
    if suspects:
        line, cell = suspects[0]
        if not going:
            line.waiting.remove(cell)
            line.computed.append(cell)
            yield line, cell
        return
    for _ in range(places):
        ready = [line for line in lines if line.waiting]
        if not ready:
            return
        line = max(ready, key=lambda one: (one.left, -one.place))
        cell = line.waiting.pop(0)
        line.computed.append(cell)
        yield line, cell


def _seconds_left(lines: Sequence[_Line]) -> float:
    """The seconds that workers may still work, from what finished cells took.

    A run without a finished cell takes what a pass takes in the others.
    """
    planned, spent, seconds = (
        max(sum(getattr(line, name) for line in lines), 1e-9)
        for name in ("planned", "spent", "seconds")
    )
    total = 0.0
    for line in lines:
        share = line.spent / line.planned if line.planned else spent / planned
        pace = line.seconds / line.spent if line.spent else seconds / spent
        total += line.left * share * pace
    return total


def _spent(cell: Cell, found: Any) -> float:
    """The passes that a cell took; those that it was expected to take where it counts none."""
    rows = found[0] if isinstance(found, tuple) else None
    if not isinstance(rows, pd.DataFrame) or "forward_passes" not in rows:
        return cell.passes
    return float(rows["forward_passes"].sum() + BACKWARD * rows["backward_passes"].sum())


def _passes(cells: Sequence[Cell]) -> float:
    return sum(cell.passes for cell in cells)


def _died(line: _Line, cell: Cell) -> InputError:
    return InputError(
        f"{line.asked.name}: the worker process of {cell.what} died {RETRIES + 1} times, perhaps "
        "for lack of memory: start fewer --workers, or lower --batch-size."
    )
