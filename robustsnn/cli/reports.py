"""The commands about finished runs: report, board and verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustsnn.cli.app import app
from robustsnn.cli.options import (
    DataRoot,
    Device,
    Threads,
    Weights,
    models_that_ship,
    use_threads,
)
from robustsnn.cli.screen import list_code, progress
from robustsnn.common.telling import telling
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

    with telling("writing the page"):
        page = write_report(runs, output, baseline, diagnose_again=diagnose_again)
    print(page)


@app.command(short_help="Rank models by what the strongest suite leaves, on one page.")
def board(
    runs: Annotated[list[Path], typer.Argument(help="Runs of standard, or of rand.")],
    output: Annotated[Path, typer.Option(help="Folder of the board.")],
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model", help="RUN=MODEL: the checkpoint or module:factory of a run; repeatable."
        ),
    ] = None,
    threads: Threads = None,
) -> None:
    """Rank models by what the strongest suite leaves of them, on one page that works offline.

    Each run is verified, with the model that its manifest names or that --model names; a run that
    is not verified is listed as reported.
    """
    named: dict[str, str] = {}
    for text in models or []:
        run, equals, model = text.partition("=")
        if not (equals and run and model):
            raise InputError(f"--model {text}: write RUN=MODEL, with the folder of a run.")
        named[run] = model
    from robustsnn.workflows.board import board as write_board

    use_threads(threads)
    print(write_board(runs, output, named, lambda text: typer.echo(text, err=True)))


@app.command(short_help="Check a run: images, numbers, flags and level.")
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
    substitute: Annotated[
        str | None,
        typer.Option(
            help="Its model of a black-box attacker, if that was moved or is code.",
            autocompletion=models_that_ship,
        ),
    ] = None,
    data_root: DataRoot = None,
    attack_again: Annotated[
        int, typer.Option(help="Let the whole suite attack N images again, drawn at random.")
    ] = 0,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code", help="Run the Python files that its suite names; they are listed first."
        ),
    ] = False,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Check a run: recompute all that it claims, and score its saved images again.

    Exit code 0: verified, all images were seen. 3: partly verified; the last line says how much
    was seen. 1: not verified; the last line says what is wrong. At most 0.5 % of the verdicts may
    differ, as a spike at its threshold flips with the machine.
    """
    if not run.is_dir():
        raise InputError(f"no run folder {run}: name the folder of a finished evaluation.")
    from robustsnn.workflows.verify.run import verify as check

    if attack_again and allow_code:
        from robustsnn.records.manifest import read_manifest
        from robustsnn.workflows.verify.run import files_named

        list_code(files_named(read_manifest(run)))
    use_threads(threads)
    with progress() if attack_again else telling("recomputing what the run says") as told:
        found = check(
            run,
            model=model,
            weights=weights,
            substitute=substitute,
            data_root=data_root,
            device=device,
            attack_again=attack_again,
            allow_code=allow_code,
            progress=told if callable(told) else None,
        )
    for image, condition in found.differing[:20]:
        print(f"  image {image}: {condition}")
    if found.digest:
        print(f"digest of the manifest: {found.digest}")
    print(found.sentence)
    raise typer.Exit(found.code)
