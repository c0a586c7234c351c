"""What is told on stderr while something takes long: a line at least every half minute.

In a terminal bars show what goes on, so nothing is said again there.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

#: The seconds after which something is said again.
SILENCE = 25.0


class Telling:
    """What goes on, said again whenever nothing was said for a while.

    Args:
        what: What goes on at first.
    """

    def __init__(self, what: str) -> None:
        self._lock = threading.Lock()
        self._what = what
        self._began = self._spoke = time.monotonic()

    def now(self, what: str) -> None:
        """Note what goes on from now on, without saying it."""
        with self._lock:
            self._what = what

    def line(self, text: str) -> None:
        """Say something at once."""
        with self._lock:
            self._spoke = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def until(self, over: threading.Event) -> None:
        """Say again what goes on after every silence, until the event is set."""
        while not over.wait(max(0.01, self._spoke + SILENCE - time.monotonic())):
            if time.monotonic() < self._spoke + SILENCE:
                continue
            if sys.stderr.isatty():
                return
            # Of all that goes on: a batch that is counted began a moment ago.
            seconds = time.monotonic() - self._began
            try:
                self.line(f"robustsnn: {self._what}, {seconds:.0f} s so far")
            except (OSError, ValueError):
                # Nobody listens any more, which is told where something else is printed.
                return


@contextlib.contextmanager
def telling(what: str) -> Iterator[Telling]:
    """Say on stderr what goes on whenever nothing was said for a while inside the block.

    Args:
        what: What goes on at first, such as `reading the images`.

    Examples:
        >>> with telling("adding") as told:
        ...     told.now("adding two numbers")
        ...     1 + 1
        2
    """
    told, over = Telling(what), threading.Event()
    thread = threading.Thread(target=told.until, args=(over,), daemon=True)
    thread.start()
    try:
        yield told
    finally:
        over.set()
        thread.join()
