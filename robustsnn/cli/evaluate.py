"""The commands that attack: evaluate, compare, crosscheck and demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from robustsnn.cli.app import app
from robustsnn.cli.options import (
    MODEL,
    FailUnder,
    Json,
    Model,
    models_that_ship,
    suites_that_ship,
    takes_request,
    use_threads,
)
from robustsnn.cli.screen import (
    about_images,
    asked,
    check_fail_under,
    fails_under,
    list_code,
    print_crosscheck,
    print_json,
    print_page,
    print_reprinted,
    print_run,
    progress,
)
from robustsnn.common.telling import telling


@app.command(short_help="Attack the models that ship: tables, figures and a page.")
def demo(
    output: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("runs/demo"),
) -> None:
    """Attack the models that ship on the images that ship: tables, figures and a page."""
    from robustsnn.common.files import check_output
    from robustsnn.records.schema import COMPARISON

    check_output(output, COMPARISON)
    from robustsnn.workflows.demo import demo as run_demo

    with progress() as told:
        page = run_demo(output, progress=told, command=asked())
    print_page(page)


@app.command(short_help="Attack one model and say what is left of its accuracy.")
@takes_request()
def evaluate(
    model: Model,
    settings: dict[str, Any],
    output: Annotated[
        Path | None, typer.Option(help="Run folder [default: runs/<hash>]; resumes or reprints.")
    ] = None,
    json_output: Json = False,
    fail_under: FailUnder = None,
) -> None:
    """Attack one model and say what is left of its accuracy."""
    check_fail_under(fail_under)
    from robustsnn.evaluation.request import Request

    request = Request((model,), **settings)
    request.check(output)
    list_code(request.code)
    from robustsnn.evaluation.plan import prepare
    from robustsnn.evaluation.run import run

    use_threads(request.threads)
    with telling("reading the model and the images"):
        plan = prepare(request)
    folder = output if output is not None else plan.default_folder
    with progress(about_images(plan.images)) as told:
        done = run(plan, folder, command=asked(), progress=told)
    if json_output:
        if done.reprinted:
            from robustsnn.records.runs import load_runs

            load_runs([folder])
        said = {"flags": list(done.manifest.flags), "verdict": done.manifest.verdict}
        print_json(folder, done.results, **said)
    else:
        print_run(folder)
    # Last, since a damaged folder is told in one line.
    if done.reprinted:
        print_reprinted(done.manifest, request)
    if fails_under(fail_under, [done]):
        raise typer.Exit(1)


@app.command(short_help="Attack several models on the same images, side by side.")
@takes_request(without=["weights"])
def compare(
    models: Annotated[
        list[str],
        typer.Argument(help=MODEL + " The first is the baseline.", autocompletion=models_that_ship),
    ],
    settings: dict[str, Any],
    output: Annotated[
        Path | None, typer.Option(help="Folder of page and runs [default: runs/compare-<hash>].")
    ] = None,
    json_output: Json = False,
    fail_under: FailUnder = None,
) -> None:
    """Attack several models on the same images and set them side by side."""
    check_fail_under(fail_under)
    from robustsnn.evaluation.request import Request

    request = Request(tuple(models), **settings)
    request.check(output)
    list_code(request.code)
    from robustsnn.workflows.compare import finished

    use_threads(request.threads)
    with telling("reading the images"):
        notes = about_images(request.images)
    with progress(notes) as told:
        compared = finished(request, output=output, progress=told, command=asked())
    page = compared.page
    if json_output:
        from robustsnn.records.runs import load_runs
        from robustsnn.workflows.report import runs_of

        runs = load_runs(runs_of(page.parent))
        flags = [dict(flag) for run in runs.runs for flag in run.flags]
        levels = {run.label: dict(run.diagnosis) for run in runs.runs}
        print_json(page.parent, runs.results, flags=flags, verdicts=levels)
    else:
        print_page(page)
    for done in compared.evaluations.values():
        if done.reprinted:
            print_reprinted(done.manifest, request)
    if fails_under(fail_under, list(compared.evaluations.values())):
        raise typer.Exit(1)


@app.command(short_help="Ask whether other libraries' attacks break more than ours.")
@takes_request(
    without=["attack", "estimator", "substitute", "recompute", "save_images"],
    defaults={"suite": "standard"},
    helps={"suite": "Our suite: its name or a YAML file."},
)
def crosscheck(
    model: Model,
    settings: dict[str, Any],
    peers: Annotated[
        str,
        typer.Option(
            help="The suite of peers: its name or a YAML file.", autocompletion=suites_that_ship
        ),
    ] = "peers",
    output: Annotated[
        Path | None, typer.Option(help="Folder of both runs [default: runs/crosscheck-<hash>].")
    ] = None,
    json_output: Json = False,
) -> None:
    """Attack one model with our suite and with other libraries: ours must be lowest."""
    from robustsnn.evaluation.request import Request

    request = Request((model,), **settings)
    request.check(output)
    from robustsnn.workflows.crosscheck.run import crosschecked, peers_suite

    theirs = peers_suite(peers, request.chosen, allow_code=request.allow_code)
    list_code((*request.code, *theirs.files()))
    use_threads(request.threads)
    with telling("reading the images"):
        notes = about_images(request.images)
    with progress(notes) as told:
        found = crosschecked(request, theirs, output=output, progress=told, command=asked())
    if json_output:
        from robustsnn.workflows.crosscheck.page import frame

        print_json(
            found.folder,
            frame(found.rows),
            lowest=found.lowest,
            against=list(found.against),
            left_out=list(found.left_out),
        )
    else:
        print_crosscheck(found)
    for manifest in found.reprinted:
        print_reprinted(manifest, request)
