"""Alternating runs in one process: what disturbs one library disturbs the others alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

#: A measurement lasts at least so long: shorter runs are repeated inside it.
SHORTEST_SECONDS = 0.1
MOST_REPEATS = 10


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and extremes of some numbers."""

    median: float
    lower: float
    upper: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of a non-empty list."""
        least, lower, median, upper, most = np.percentile(values, [0, 25, 50, 75, 100]).tolist()
        return cls(median, lower, upper, least, most)


def alternate(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run by name, one number a round; every round starts with another one.

    Args:
        runs: What to time; each has run at least once before.
        rounds: How many numbers each gets.
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
    """How many rounds a cell gets, by the seconds of one round of all libraries."""
    if quick:
        return 3
    return 7 if seconds < 3 else 5 if seconds < 20 else 3


def paired_ratios(slower: list[float], faster: list[float]) -> list[float]:
    """How many times longer one took than the other, round by round."""
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
