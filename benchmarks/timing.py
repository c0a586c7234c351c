"""Alternating runs in one process, so that a disturbance hits all libraries equally."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

#: The least duration of a measurement, inside which shorter runs are repeated.
SHORTEST_SECONDS = 0.1
MOST_REPEATS = 10


@dataclass(frozen=True)
class Spread:
    """The median, quartiles and extremes of some numbers."""

    median: float
    lower: float
    upper: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """The spread of a list that is not empty."""
        least, lower, median, upper, most = np.percentile(values, [0, 25, 50, 75, 100]).tolist()
        return cls(median, lower, upper, least, most)


def alternate(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each run by name, one number for each round.

    Every round starts with a different run.

    Args:
        runs: The calls to time, each of which has run at least once before.
        rounds: The number of rounds.
    """
    names = list(runs)
    once = {name: _seconds(runs[name], 1) for name in names}
    repeats = {
        name: min(MOST_REPEATS, max(1, round(SHORTEST_SECONDS / max(seconds, 1e-9))))
        for name, seconds in once.items()
    }
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            found[name].append(_seconds(runs[name], repeats[name]))
    return found


def rounds_for(seconds: float, quick: bool) -> int:
    """The number of rounds of a cell, by the seconds that one round of all libraries takes."""
    if quick:
        return 3
    return 7 if seconds < 3 else 5 if seconds < 20 else 3


def paired_ratios(slower: list[float], faster: list[float]) -> list[float]:
    """The quotient of the seconds of two libraries, round by round."""
    return [a / b for a, b in zip(slower, faster, strict=True)]


def _seconds(run: Callable[[], object], repeats: int) -> float:
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) / repeats
    finally:
        if collecting:
            gc.enable()
