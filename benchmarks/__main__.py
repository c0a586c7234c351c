"""The command line, `python -m benchmarks`: speed and memory of this and other libraries."""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.store import Store
from robustsnn.common.process import let_idle_threads_sleep
from robustsnn.errors import InputError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
OUTPUT = Path("docs/results/speed")
CELLS = Path("runs/bench")
GPU_PAGE, GPU_DRY = Path("docs/results/gpu.md"), Path("runs/gpu.md")
GPU_MODEL = "fashion-mnist/vgg5-snn"
PARTS = ("speed", "process", "memory", "attack", "profile")


class Process(StrEnum):
    """The settings of the process in which all libraries run."""

    product = "product"
    default = "default"


ProcessOption = Annotated[
    Process, typer.Option(help="Settings of the whole process: those of `robustsnn`, or none.")
]
ThreadsOption = Annotated[int | None, typer.Option(help="Threads [default: torch's choice].")]
OutputOption = Annotated[Path, typer.Option(help="Folder of the tables and figures.")]
CellsOption = Annotated[Path, typer.Option(help="Folder of finished measurements, kept.")]


@app.command()
def run(
    quick: Annotated[bool, typer.Option(help="A few cells, in five minutes.")] = False,
    output: OutputOption = OUTPUT,
    cells: CellsOption = CELLS,
    model: Annotated[
        str | None,
        typer.Option(help="SNN of the PGD evaluation [default: CIFAR-10 if its data are there]."),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Images of the PGD evaluation.")] = None,
    epsilon: Annotated[
        str | None,
        typer.Option(help="Size of its ball [default: the first from 8/255 on with under 10 %]."),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(envvar="ROBUSTSNN_DATA", help="Folder of the data [default: the sample]."),
    ] = None,
    only: Annotated[
        str, typer.Option(help=f"Parts, separated by commas, out of {', '.join(PARTS)}.")
    ] = ",".join(PARTS),
    limit: Annotated[
        int | None, typer.Option(help="Stop after this number of new speed cells.", hidden=True)
    ] = None,
    process: ProcessOption = Process.product,
    threads: ThreadsOption = None,
) -> None:
    """Measure what is not measured yet, and write tables and figures of everything that is."""
    started = time.perf_counter()
    from benchmarks import machine, pgd

    _settle(process, threads)
    parts = {p.strip() for p in only.split(",")}
    if not parts <= set(PARTS):
        raise InputError(f"--only {only}: choose from {', '.join(PARTS)}.")
    here = machine.describe(process.value)
    store = Store(cells, machine.identity(here))
    model = pgd.default_model(data_root) if model is None else model
    samples = (100 if quick else 1000) if samples is None else samples
    measured = Measured(
        _speed(store, quick, "speed" in parts, limit),
        _memory(store, quick, "memory" in parts, process, threads),
        None if quick else _long(store, "memory" in parts, process, threads),
        [] if quick else _default_process(store, "process" in parts, threads),
        _profile(store, "profile" in parts),
        _attack(store, "attack" in parts, model, samples, data_root, epsilon),
    )
    _write(output, measured, here)
    say(f"{output / 'speed.md'} is written after {time.perf_counter() - started:.0f} s.")


@app.command()
def profile(
    steps: Annotated[int, typer.Option(help="Time steps.")] = 8,
    batch: Annotated[int, typer.Option(help="Images.")] = 32,
    process: ProcessOption = Process.product,
    threads: ThreadsOption = None,
) -> None:
    """Show where the time of our input gradient goes."""
    from benchmarks import profiling
    from benchmarks.page import profile_markdown

    _settle(process, threads)
    typer.echo(profile_markdown(profiling.measure(steps, batch)))


@app.command()
def settings(
    steps: Annotated[int, typer.Option(help="Time steps.")] = 8,
    batch: Annotated[int, typer.Option(help="Images.")] = 32,
    rounds: Annotated[int, typer.Option(help="Runs of each setting.")] = 3,
    compiled: Annotated[bool, typer.Option(help="Also under torch.compile.")] = True,
    process: ProcessOption = Process.product,
    threads: ThreadsOption = None,
) -> None:
    """Compare the settings of each peer by time, to show that it runs with its best ones."""
    from benchmarks import cells as measuring

    _settle(process, threads)
    for name, seconds in measuring.measure_settings(steps, batch, rounds, compiled).items():
        typer.echo(f"{name:44} {batch / seconds:8.2f} input gradients a second")


@app.command()
def gpu(
    dry_run: Annotated[
        bool | None,
        typer.Option(
            help="Run on the CPU with tiny sizes and measure nothing [default: without a GPU]."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The page [default: docs/results/gpu.md; of a dry run, runs/gpu.md]."),
    ] = None,
    model: Annotated[str, typer.Option(help="SNN of the zoo, or a checkpoint.")] = GPU_MODEL,
) -> None:
    """Measure a GPU in less than ten minutes, against SpikingJelly and torchattacks."""
    import torch

    from benchmarks import gpu as measuring
    from benchmarks.tables import write

    there = torch.cuda.is_available()
    if dry_run is False and not there:
        raise InputError("there is no GPU that torch can use: leave --no-dry-run out to try it.")
    dry = not there if dry_run is None else dry_run
    if dry:
        say(measuring.NOTHING)
    rows, notes = measuring.measure(model, dry, say)
    path = (GPU_DRY if dry else GPU_PAGE) if output is None else output
    path.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    write(path, measuring.page(rows, notes, dry, command))
    say(f"{path} is written. {measuring.NOTHING if dry else ''}".strip())


@app.command(hidden=True)
def measure_cell(
    task: str, process: ProcessOption = Process.product, threads: ThreadsOption = None
) -> None:
    """Print a cell of the aims as JSON, without the compiled peer; `run` starts it as a process."""
    from benchmarks import cells as measuring

    _settle(process, threads)
    cell = measuring.Cell(task, *measuring.HEADLINE)
    typer.echo(json.dumps(measuring.measure(cell, compiled=False)))


@app.command(hidden=True)
def measure_memory(
    library: str,
    architecture: str,
    steps: int,
    batch: int,
    recompute: int | None = None,
    process: ProcessOption = Process.product,
    threads: ThreadsOption = None,
) -> None:
    """Print the peak memory of one library as JSON; `run` starts it as a process."""
    from benchmarks import memory

    _settle(process, threads)
    typer.echo(json.dumps(memory.measure(library, architecture, steps, batch, recompute)))


def say(text: str) -> None:
    """Print progress on stderr."""
    typer.echo(text, err=True)


@dataclass(frozen=True)
class Measured:
    """Everything that is measured so far; None or an empty list where nothing is.

    Attributes:
        cells: The speed cells.
        memory: The peak memory of each library and size.
        long: The peak memory of a long sequence.
        default_process: The cells of the aims in a process with default settings.
        profile: The parts of the time of an input gradient.
        attack: The PGD evaluation.
    """

    cells: list[dict[str, Any]]
    memory: list[dict[str, Any]]
    long: dict[str, Any] | None
    default_process: list[dict[str, Any]]
    profile: dict[str, Any] | None
    attack: dict[str, Any] | None


def _speed(store: Store, quick: bool, wanted: bool, limit: int | None) -> list[dict[str, Any]]:
    from benchmarks import cells

    found, fresh = [], 0
    for cell in cells.all_cells(quick):
        key = f"{cell.key}-quick" if quick else cell.key
        stored = store.read(key)
        if stored is None and wanted and (limit is None or fresh < limit):
            fresh += 1
            say(key)
            stored = store.write(key, cells.measure(cell, quick))
            say(_described(stored))
        if stored is not None:
            found.append(stored)
    return found


def _memory(
    store: Store, quick: bool, wanted: bool, process: Process, threads: int | None
) -> list[dict[str, Any]]:
    from benchmarks import memory

    found = []
    for steps, batch in memory.QUICK_SIZES if quick else memory.SIZES:
        for library in memory.LIBRARIES:
            key = memory.key(library, steps, batch)
            stored = store.read(key)
            if stored is None and wanted:
                made = memory.in_fresh_process(library, steps, batch, process.value, threads)
                stored = store.write(key, made)
                say(f"{key}: {stored['bytes'] / 2**20:.0f} MiB")
            if stored is not None:
                found.append(stored)
    return found


def _long(
    store: Store, wanted: bool, process: Process, threads: int | None
) -> dict[str, Any] | None:
    from benchmarks import memory

    stored = store.read(memory.LONG_KEY)
    if stored is None and wanted:
        say(memory.LONG_KEY)
        made = memory.long_in_fresh_process(process.value, threads)
        stored = store.write(memory.LONG_KEY, made)
        say(f"  {stored['bytes'] / 2**20:.0f} MiB, {stored['seconds']:.0f} s")
    return stored


def _default_process(store: Store, wanted: bool, threads: int | None) -> list[dict[str, Any]]:
    from benchmarks import cells
    from benchmarks.contenders.base import TASKS

    found = []
    for task in TASKS:
        key = f"default-process-{task}"
        stored = store.read(key)
        if stored is None and wanted:
            say(key)
            stored = store.write(key, cells.in_default_process(task, threads))
            say(_described(stored))
        if stored is not None:
            found.append(stored)
    return found


def _profile(store: Store, wanted: bool) -> dict[str, Any] | None:
    from benchmarks import profiling

    stored = store.read("profile")
    if stored is None and wanted:
        say("profile")
        stored = store.write("profile", profiling.measure())
    return stored


def _attack(
    store: Store,
    wanted: bool,
    model: str,
    samples: int,
    data_root: Path | None,
    epsilon: str | None,
) -> dict[str, Any] | None:
    from benchmarks import pgd

    key = pgd.key(model, samples, epsilon)
    stored = store.read(key)
    if stored is None and wanted:
        say(key)
        stored = store.write(key, pgd.measure(model, samples, data_root, epsilon, say))
    return stored


def _write(output: Path, measured: Measured, here: dict[str, Any]) -> None:
    """Write tables, page and figures, and print which aims are met."""
    from benchmarks import cells, figures, machine, tables
    from benchmarks.aims import aims
    from benchmarks.page import page

    output.mkdir(parents=True, exist_ok=True)
    table = tables.tidy(
        measured.cells,
        measured.memory,
        measured.attack,
        measured.default_process,
        measured.long,
    )
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    tables.write(output / "speed.csv", table.to_csv(index=False, float_format="%.6g"))
    text = page(
        table,
        measured.cells,
        cells.HEADLINE,
        machine.as_markdown(here, command),
        measured.attack,
        measured.profile,
        cells.notes(measured.cells),
        measured.long,
    )
    tables.write(output / "speed.md", text)
    tables.write(output / "machine.json", json.dumps({**here, "command": command}, indent=1) + "\n")
    if measured.profile is not None:
        parts = tables.profile_csv(measured.profile)
        tables.write(output / "profile.csv", parts.to_csv(index=False, float_format="%.4g"))
    figures.throughput(table, output / "throughput-vs-T.png")
    figures.memory(table, output / "memory-vs-T.png")
    for aim in aims(table, cells.HEADLINE):
        met = {None: "-", True: "met", False: "NOT MET"}[aim.met]
        say(f"{met:8} {aim.what}, {aim.against}: {aim.measured} (aim: {aim.aim})")


def _settle(process: Process, threads: int | None) -> None:
    import torch

    from benchmarks.machine import apply_process_settings

    apply_process_settings(process.value)
    if threads is not None:
        if threads < 1:
            raise InputError(f"--threads {threads}: give at least 1.")
        torch.set_num_threads(threads)


def _described(stored: dict[str, Any]) -> str:
    """The speeds, firing rates and differences of a cell, in two lines."""
    from statistics import median

    from benchmarks.tables import OURS

    batch = stored["cell"]["batch"]
    ours = median(stored["seconds"][OURS])
    speeds = ", ".join(
        f"{name} {batch / median(s):.2f}/s ({median(s) / ours:.2f}x)"
        for name, s in stored["seconds"].items()
    )
    rates = ", ".join(f"{rate:.0%}" for rate in stored["rates"].values())
    off = ", ".join(
        f"{name} {d['logits']:.0e}/{d['gradient']:.0e}" for name, d in stored["differences"].items()
    )
    return f"  rates {rates}; off by (logits/gradient) {off}\n  {speeds}"


def main() -> None:
    """Run a command, and report a mistake in its options in one line."""
    if not {"default", "--process=default"} & set(sys.argv):
        # It has an effect only before torch is imported.
        let_idle_threads_sleep()
    try:
        app()
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
