"""The type of a function that is told how far an evaluation is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the batches that are done, and the batches in all."""
