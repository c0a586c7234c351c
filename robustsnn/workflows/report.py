"""Tables, figures and one page of finished runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from robustsnn.common.files import expanded, read_text
from robustsnn.errors import InputError
from robustsnn.records.manifest import LARGEST, blaming
from robustsnn.records.runs import load_runs
from robustsnn.records.schema import COMPARISON, MANIFEST
from robustsnn.reporting.render import render
from robustsnn.workflows.rediagnose import diagnosed_again


def report(
    runs: Sequence[Path | str],
    output: Path | str | None = None,
    baseline: str | None = None,
    *,
    diagnose_again: bool = False,
) -> Path:
    """Write tables, figures and the page of finished runs.

    Args:
        runs: The run folders, or folders of comparisons, which stand for their runs. Folders that
            hold only a report are passed over.
        output: The folder of the page; by default the folder of the run or comparison if there is
            only one, and `runs/report` if there are more.
        baseline: The model that the others are compared with; by default the first one.
        diagnose_again: Whether flags and levels are determined again by the criteria of today. The
            page then says so, and the run folders stay as they are.

    Returns:
        The path of index.html.

    Raises:
        InputError: There is no run, one is not finished, or the folder cannot be written.

    Examples:
        >>> import tempfile
        >>> import robustsnn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = robustsnn.evaluate(
        ...         "fashion-mnist/vgg5-ann", attack=["fgsm"], samples=4, output=folder
        ...     )
        ...     report([folder]).name
        'index.html'
    """
    given = [expanded(run) for run in runs]
    folders: list[Path] = []
    for folder in given:
        if (folder / COMPARISON).is_file():
            folders += runs_of(folder)
        elif (folder / MANIFEST).is_file() or not (folder / "index.html").is_file():
            folders.append(folder)
    if output is None:
        output = given[0] if len(given) == 1 else Path("runs/report")
    with blaming(*folders):
        found = load_runs(folders)
        if diagnose_again:
            found = diagnosed_again(found)
        return render(found, output, baseline)


def runs_of(folder: Path) -> list[Path]:
    """The run folders of a comparison, in the order of its models.

    Raises:
        InputError: The file that lists them is damaged.
    """
    marker = folder / COMPARISON
    text = read_text(marker, LARGEST, "compare again")
    try:
        named = json.loads(text)["runs"]
        return [folder / str(name) for name in dict(named)]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"{marker} is damaged: name the run folders below {folder}, or compare again."
        ) from None
