"""Several runs at a time: their cells are computed by workers as their stages allow.

The order in which cells end decides nothing: a stage takes in its cells by their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from robustsnn.errors import InputError
from robustsnn.evaluation.cells import Cell
from robustsnn.evaluation.expected import BACKWARD
from robustsnn.evaluation.ongoing import Ongoing
from robustsnn.evaluation.workers import RETRIES, Computes, Gone, outcome

#: Called with what ended last, the seconds that workers have worked, and those that they are
#: expected to work in all.
Told = Callable[[str, float, float], None]


@dataclass(eq=False)
class _Line:
    """A run on its way: its open stage and what is left of that."""

    place: int
    run: Ongoing
    stages: Iterator[list[Cell]]
    waiting: list[Cell] = field(default_factory=list)
    computed: list[Cell] = field(default_factory=list)
    failed: str | None = None
    over: bool = False
    #: The passes that its finished cells were expected to take and took, and their seconds.
    planned: float = 0.0
    spent: float = 0.0
    seconds: float = 0.0

    def open_next(self) -> None:
        """Open the next stage with cells in it, if none of this one is left."""
        while not (self.over or self.waiting or self.computed):
            try:
                self.waiting = next(self.stages)
            except StopIteration:
                self.over = True

    def fail(self, error: BaseException) -> None:
        """Give up the run; its finished cells are on disk."""
        self.failed, self.over, self.waiting = str(error), True, []

    def count(self, cell: Cell, seconds: float, found: Any) -> None:
        """Take in what a finished cell took."""
        self.planned += cell.passes
        self.spent += _spent(cell, found)
        self.seconds += seconds

    @property
    def left(self) -> float:
        """The passes that may be left, as far as settings say."""
        if self.over:
            return 0.0
        return _passes(self.waiting) + _passes(self.computed) + self.run.expected


def carry_out(
    runs: Sequence[Ongoing], workers: Computes, told: Told | None = None
) -> list[str | None]:
    """Carry out runs with workers; a run that fails does not stop the others.

    Args:
        runs: The runs, each inside its `with` block.
        workers: The workers, which know the plan of each run by its place.
        told: The function that is told of every finished cell.

    Returns:
        What went wrong with each run, None where nothing did.
    """
    lines = [_Line(place, run, run.stages()) for place, run in enumerate(runs)]
    going: dict[Future[Any], tuple[_Line, Cell]] = {}
    died: dict[int, int] = {}
    try:
        while True:
            _open(lines)
            for line, cell in _next(lines, workers.places - len(going)):
                going[workers.submit(line.place, cell)] = (line, cell)
            if not going:
                return [line.failed for line in lines]
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                line, cell = going.pop(future)
                line.computed.remove(cell)
                try:
                    seconds, found = outcome(future)
                    cell.keep(found)
                except Gone:
                    died[id(cell)] = died.get(id(cell), 0) + 1
                    if died[id(cell)] > RETRIES:
                        line.fail(_died(line, cell))
                    elif line.failed is None:
                        line.waiting.insert(0, cell)
                    continue
                except InputError as error:
                    line.fail(error)
                    continue
                line.count(cell, seconds, found)
                if told is not None:
                    done = sum(one.seconds for one in lines)
                    told(_said(line, cell), done, done + _seconds_left(lines))
    finally:
        workers.close()


def _open(lines: Sequence[_Line]) -> None:
    for line in lines:
        try:
            line.open_next()
        except InputError as error:
            line.fail(error)


def _next(lines: Sequence[_Line], places: int) -> Iterator[tuple[_Line, Cell]]:
    """The cells to begin with: of the runs with most left, so that none is alone at the end."""
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


def _said(line: _Line, cell: Cell) -> str:
    plan = line.run.plan
    return f"{plan.subject.name}, {plan.suite.name}: {cell.what}"


def _died(line: _Line, cell: Cell) -> InputError:
    return InputError(
        f"{_said(line, cell)}: its worker process died {RETRIES + 1} times, perhaps for lack of "
        "memory: start fewer --workers, or lower --batch-size."
    )
