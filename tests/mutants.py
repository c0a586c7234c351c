"""Is every diagnostic tested: each is silenced in turn, and some test must notice.

`python -m tests.mutants` says of each which test does; given names, of those only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from robustsnn.diagnosis.finding import Finding
from robustsnn.diagnosis.level import CRITERIA

#: Where diagnostics are tested; the quickest first.
WHERE = (
    *("test_diagnostics.py", "test_clean.py", "test_preflight.py", "test_probe.py"),
    *("test_indicators.py", "test_placement.py"),
)
#: Diagnostics that change no level, by their slugs, beside those of the rules; and measures that
#: never flag, which lose their name in place of their flag.
NOTES = ("unavailable-gradients", "silent-success", "incomplete-optimisation", "few-classes")
MEASURES = ("temporal-share", "ledger")
HERE = Path(__file__).parent


def slugs() -> list[str]:
    """Every diagnostic by the slug it flags with."""
    return list(
        dict.fromkeys([*(slug for one in CRITERIA for slug in one.flags), *NOTES, *MEASURES])
    )


def silence(slug: str) -> None:
    """That diagnostic passes from now on whatever it sees."""
    inner = Finding.__init__

    def init(self: Finding, *args: Any, **kwargs: Any) -> None:
        inner(self, *args, **kwargs)
        if self.slug != slug:
            return
        if slug in MEASURES:
            object.__setattr__(self, "slug", "silenced")
        else:
            object.__setattr__(self, "flagged", False)

    Finding.__init__ = init  # type: ignore[method-assign]


def caught(slug: str) -> str | None:
    """The first test that fails without a diagnostic; None if none does."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        silence(slug)
        sys.stdout = sys.stderr = StringIO()
        watch = _Watch()
        arguments = [
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            *(str(HERE / "diagnosis" / name) for name in WHERE),
        ]
        pytest.main(arguments, plugins=[watch])
        os.write(write, watch.failed.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        test = said.read()
    os.waitpid(child, 0)
    return test or None


class _Watch:
    failed = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid


def outcomes(names: list[str]) -> Iterator[tuple[str, str | None]]:
    """Of each the test that notices; as many at a time as there are cores."""
    with ProcessPoolExecutor() as pool:
        yield from zip(names, pool.map(caught, names), strict=True)


if __name__ == "__main__":
    missed = 0
    for slug, test in outcomes(sys.argv[1:] or slugs()):
        missed += test is None
        print(f"{slug}: {test or 'no test notices'}", flush=True)
    sys.exit(1 if missed else 0)
