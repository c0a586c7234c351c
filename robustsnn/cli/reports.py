"""The commands about finished runs: report and verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustsnn.cli.app import app
from robustsnn.cli.options import Device, Threads, Weights, models_that_ship, use_threads
from robustsnn.errors import InputError


@app.command(short_help="Write tables, figures and one page about finished runs.")
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders or comparisons.")],
    output: Annotated[
        Path | None, typer.Option(help="Where to [default: the one run's folder, or runs/report].")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Model to compare with [default: the first].")
    ] = None,
    diagnose_again: Annotated[
        bool,
        typer.Option(
            "--diagnose-again", help="Take flags and level again, by today's criteria, and say so."
        ),
    ] = False,
) -> None:
    """Write tables, figures and one page about finished runs."""
    from robustsnn.workflows.report import report as write_report

    print(write_report(runs, output, baseline, diagnose_again=diagnose_again))


@app.command(short_help="Check a run: its images, numbers, flags and level.")
def verify(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Its model, if that was moved or came from python.module:factory.",
            autocompletion=models_that_ship,
        ),
    ] = None,
    weights: Weights = None,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Check a run: score its saved images again with the model read anew; exit 1 if they disagree.

    Every number of results.csv, the flags and the level are computed again from the records. At
    most 0.5 % of the verdicts may differ, as a spike at its threshold flips with the machine.
    """
    if not run.is_dir():
        raise InputError(f"no run folder {run}: name the folder of a finished evaluation.")
    from robustsnn.workflows.verify import verify as score_again

    use_threads(threads)
    found = score_again(run, model=model, weights=weights, device=device)
    print(found.sentence)
    for image, condition in found.differing[:20]:
        print(f"  image {image}: {condition}")
    raise typer.Exit(0 if found.passed else 1)
