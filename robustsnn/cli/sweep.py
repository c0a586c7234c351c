"""The command that carries out many evaluations: sweep."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustsnn.cli.app import app
from robustsnn.cli.options import DataRoot, Json
from robustsnn.cli.screen import asked, print_json, print_page, print_table, spent
from robustsnn.errors import InputError

if TYPE_CHECKING:
    from robustsnn.evaluation.workers import Computes
    from robustsnn.workflows.sweep.spec import Sweep


@app.command(short_help="Evaluate models x suites x data x seeds, with several processes.")
def sweep(
    file: Annotated[Path, typer.Argument(help="A YAML file; see docs/scale.md.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder of page, table and runs [default: runs/<file>].")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes, each with one thread [default: 1].")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="A Ray cluster instead: auto, local or HOST:PORT.")
    ] = None,
    gpus_per_worker: Annotated[
        float, typer.Option(help="With --ray: the share of a GPU that a worker has.")
    ] = 0.0,
    data_root: DataRoot = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run factories and files that the sweep names.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be run and what it costs at most.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Evaluate every model under every suite, on every data set and with every seed.

    The same command goes on where an earlier one was stopped, and tries again what failed.
    """
    from robustsnn.workflows.sweep.spec import load_sweep

    _check(workers, ray, gpus_per_worker)
    found = load_sweep(file, allow_code=allow_code)
    for line in found.code():
        print(f"robustsnn: {file} runs {line}.", file=sys.stderr)
    if dry_run:
        _print_costs(found, workers or 1, data_root, allow_code)
        return
    folder = output if output is not None else Path("runs") / file.stem
    from robustsnn.workflows.sweep.run import sweep as carried_out

    places: Computes | int = workers or 1
    if ray is not None:
        from robustsnn.evaluation.cluster import RayWorkers

        places = RayWorkers(ray, gpus_per_worker)
    with spent(places if isinstance(places, int) else places.places) as told:
        done = carried_out(
            found,
            folder,
            workers=places,
            data_root=data_root,
            allow_code=allow_code,
            command=asked(),
            told=told,
        )
    for name, error in done.failed.items():
        print(f"robustsnn: {name} failed: {error}", file=sys.stderr)
    if done.page is not None and json_output:
        from robustsnn.records.runs import load_runs

        runs = load_runs(folder / "runs" / name for name in done.evaluations)
        print_json(folder, runs.results)
    elif done.page is not None:
        print_page(done.page, [folder / "runs" / name for name in done.evaluations])
    if done.failed:
        raise InputError(
            f"{len(done.failed)} of {len(done.failed) + len(done.evaluations)} runs failed; the "
            "same command tries them again and keeps the others."
        )


def _check(workers: int | None, ray: str | None, gpus_per_worker: float) -> None:
    """Refuse options that cannot be right together."""
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers}: give a whole number of at least 1.")
    if workers is not None and ray is not None:
        raise InputError("--workers and --ray exclude each other: drop one.")
    if not 0 <= gpus_per_worker <= 64:
        raise InputError(f"--gpus-per-worker {gpus_per_worker}: give a number from 0 to 64.")
    if gpus_per_worker and ray is None:
        raise InputError("--gpus-per-worker is for --ray: add that, or drop it.")


def _print_costs(sweep: Sweep, workers: int, data_root: Path | None, allow_code: bool) -> None:
    from robustsnn.workflows.sweep.cost import costs

    found = list(costs(sweep, data_root, allow_code=allow_code))
    rows = [
        (
            one.name,
            f"{one.cells:,}",
            f"{one.passes:,.0f}",
            f"{1000 * one.seconds_per_pass:.2f}",
            f"{one.hours:.2f}",
        )
        for one in found
    ]
    print_table(("Run", "Cells", "Passes", "ms a pass", "Hours"), rows)
    hours = sum(one.hours for one in found)
    print(
        f"{len(found)} runs, {sum(one.cells for one in found):,} cells: at most {hours:.2f} hours "
        f"of one worker, {hours / workers:.2f} with {workers}. Images that break early take less."
    )
