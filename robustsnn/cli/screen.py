"""What the commands print: tables and progress in a terminal, JSON on stdout."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustsnn.common.printable import printable
from robustsnn.common.telling import telling
from robustsnn.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from robustsnn.evaluation.finished import Evaluation
    from robustsnn.evaluation.request import Request
    from robustsnn.records.manifest import Manifest
    from robustsnn.workflows.crosscheck.rows import Crosscheck


def asked() -> list[str]:
    """The command line, as the manifest records it."""
    return ["robustsnn", *sys.argv[1:]]


def console() -> Console:
    """A terminal on stdout that does not highlight text."""
    from rich.console import Console

    from robustsnn.reporting.columns import NARROWEST

    out = Console(highlight=False)
    # Rich cuts lines at the width of the terminal; in a narrower one, the terminal breaks them.
    out.width = max(out.width, NARROWEST)
    return out


def about_images(images: object) -> list[str]:
    """What is said of images of a folder: the order of their classes, and what was not counted."""
    notes = [str(note) for note in getattr(images, "notes", ())]
    order = getattr(images, "classes", "") if getattr(images, "name", "") == "folder" else ""
    return [str(order), *notes] if order else notes


@contextlib.contextmanager
def progress(notes: Sequence[str] = ()) -> Iterator[Callable[[str, int, int], None]]:
    """Show progress on stderr inside the block.

    It is a bar in a terminal, and elsewhere a line whenever something new begins and at least
    every half minute.

    Args:
        notes: Sentences that are said when the first batch is done, and thus not before an error.
    """
    from rich.console import Console

    stderr = Console(stderr=True)
    left = list(notes)
    if not stderr.is_terminal:
        last = ""
        with telling("checking the network") as told:

            def line(what: str, done: int, total: int) -> None:
                nonlocal last
                while left:
                    told.line(f"robustsnn: {printable(left.pop(0))}")
                if what != last:
                    told.line(f"{100 * (done - 1) // total:3d} % {printable(what)}")
                    last = what
                told.now(f"{printable(what)}: {done} of {total} batches are done")

            yield line
        return
    from rich import progress as bars
    from rich.markup import escape

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task("", total=None)

        def shown(what: str, done: int, total: int) -> None:
            while left:
                note = f"robustsnn: {printable(left.pop(0))}"
                bar.console.print(note, markup=False, highlight=False)
            bar.update(task, description=escape(printable(what)), completed=done, total=total)

        yield shown


@contextlib.contextmanager
def spent(workers: int) -> Iterator[Callable[[str, float, float], None]]:
    """Show the progress of workers on stderr inside the block, in seconds of their work.

    It is a bar in a terminal, and elsewhere a line at most every half minute, with the time that is
    left.

    Args:
        workers: The number of workers.
    """
    from rich.console import Console

    stderr = Console(stderr=True)
    last = -math.inf

    def line(what: str, done: float, total: float) -> None:
        nonlocal last
        if time.monotonic() - last < 30 and done < total:
            return
        last = time.monotonic()
        left = max(0.0, total - done) / workers
        share = 100 * done / total if total else 100.0
        print(f"{share:3.0f} % {what} ({_clock(left)} left)", file=sys.stderr, flush=True)

    if not stderr.is_terminal:
        yield line
        return
    from rich import progress as bars

    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.TimeElapsedColumn())
    with bars.Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task("", total=None)

        def shown(what: str, done: float, total: float) -> None:
            left = _clock(max(0.0, total - done) / workers)
            bar.update(task, description=f"{what} ({left} left)", completed=done, total=total)

        yield shown


def _clock(seconds: float) -> str:
    """A time in hours and minutes, or in seconds if it is short.

    >>> _clock(42.2), _clock(4000)
    ('42 s', '1 h 7 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def print_reprinted(manifest: Manifest, request: Request) -> None:
    """Say on stderr when a run was made, and what was asked for now and not used.

    Args:
        manifest: The manifest of the run, which was there already.
        request: What is asked for now.
    """
    used: dict[str, tuple[Any, list[Any]]] = {
        "--threads": (request.threads, [manifest.threads]),
        "--batch-size": (request.batch_size, [manifest.batch_size, manifest.batch_size_asked]),
        "--recompute": (request.recompute, [manifest.recompute]),
        "--device": (request.device, [manifest.device]),
    }
    unused = [
        f"{option} {value} was not used, it was {before[0]}"
        for option, (value, before) in used.items()
        if value is not None and value not in before
    ]
    said = "; ".join([f"{manifest.model}: {manifest.made}, not computed again", *unused])
    print(f"robustsnn: {printable(said)}.", file=sys.stderr)


def print_run(folder: Path) -> None:
    """Print the table of a finished run and its flags."""
    from robustsnn.records.manifest import blaming
    from robustsnn.records.runs import load_runs
    from robustsnn.reporting.sentences import flag_sentences
    from robustsnn.reporting.terminal import comparison_tables

    out = console()
    with blaming(folder):
        runs = load_runs([folder])
        out.print(comparison_tables(runs))
        for _, _, severity, sentence in flag_sentences(runs.runs):
            out.print(f"{severity}: {sentence}", markup=False)
    print(f"{folder}  (robustsnn report {folder} writes the page)")


def print_page(page: Path, folders: Sequence[Path] | None = None) -> None:
    """Print the tables and headlines of the runs on a page, and their flags.

    Args:
        page: The page.
        folders: The run folders; by default those of the comparison that the page is of.
    """
    from robustsnn.records.manifest import blaming
    from robustsnn.records.runs import load_runs
    from robustsnn.reporting.comparison import comparisons
    from robustsnn.reporting.sentences import flag_sentences, headlines
    from robustsnn.reporting.terminal import comparison_tables
    from robustsnn.workflows.report import runs_of

    folders = runs_of(page.parent) if folders is None else folders
    out = console()
    with blaming(*folders):
        runs = load_runs(folders)
        out.print(comparison_tables(runs))
        for comparison in comparisons(runs):
            for headline in headlines(comparison):
                out.print(headline.sentence, markup=False)
                out.print()
        for model, suite, severity, sentence in flag_sentences(runs.runs):
            out.print(f"{severity}, {model}, {suite}: {sentence}", markup=False)
    print(page)


def print_json(folder: Path, results: pd.DataFrame, **more: Any) -> None:
    """Print results as JSON on stdout, with NaN as null.

    Args:
        folder: The folder of the results.
        results: The results, one row for each condition.
        **more: Other keys and values of the JSON object.
    """
    rows = [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
        for row in results.to_dict("records")
    ]
    print(json.dumps({"output": str(folder), "results": rows, **more}, indent=2))


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a plain table, with columns as wide as they need to be."""
    from robustsnn.reporting.columns import table

    console().print(table(heads, rows))


def check_fail_under(least: float | None) -> None:
    """Refuse a least accuracy that is not a fraction.

    Raises:
        InputError: It is not between 0 and 1.
    """
    if least is not None and not 0 <= least <= 1:
        raise InputError(f"--fail-under {least:g}: give a fraction between 0 and 1, such as 0.5.")


def fails_under(least: float | None, runs: Sequence[Evaluation]) -> bool:
    """Whether some run leaves less accuracy than asked for, or cannot be relied on; says which.

    Args:
        least: The least accuracy in the worst case, between 0 and 1; None if nothing was asked.
        runs: The finished runs.
    """
    failed = False
    for run in runs if least is not None else ():
        said = f"{run.accuracy:.3f} is below --fail-under {least:g}"
        if run.accuracy >= (least or 0):
            if run.level != "C":
                continue
            said = f"{run.accuracy:.3f} is of level C, which is not reliable"
        print(f"robustsnn: {printable(run.manifest.model)}: {said}", file=sys.stderr)
        failed = True
    return failed


def print_crosscheck(found: Crosscheck) -> None:
    """Print the tables of a crosscheck, the sentences about them, and what was left out."""
    from robustsnn.workflows.crosscheck.page import sentences, table

    out = console()
    for one in table(found.rows):
        out.print(one)
    for sentence in [*sentences(found.rows), *(f"left out: {text}" for text in found.left_out)]:
        out.print(sentence, markup=False)
    print(found.folder / "crosscheck.md")


def list_code(files: Iterable[Path]) -> None:
    """Say on stderr which Python files a suite names before any of them runs."""
    for path in dict.fromkeys(files):
        print(f"robustsnn: the suite runs {path}", file=sys.stderr)
