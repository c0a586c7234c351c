"""The command line, `python -m benchmarks`: speed and memory of this and other libraries."""

from __future__ import annotations

import json
import shlex
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from robustsnn.common.process import let_idle_threads_sleep
from robustsnn.errors import InputError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
OUTPUT = Path("docs/results/speed")
CELLS = Path("runs/bench")
PARTS = ("speed", "process", "memory", "attack", "profile")


class Process(StrEnum):
    """Settings of the process that all libraries run in."""

    product = "product"
    default = "default"


ProcessOption = Annotated[
    Process, typer.Option(help="Settings of the whole process: those of `robustsnn`, or none.")
]
ThreadsOption = Annotated[int | None, typer.Option(help="Threads, by default torch's choice.")]
OutputOption = Annotated[Path, typer.Option(help="Folder of the tables and figures.")]
CellsOption = Annotated[Path, typer.Option(help="Folder of finished measurements, to resume.")]


@app.command()
def run(
    quick: Annotated[bool, typer.Option(help="A few cells, in five minutes.")] = False,
    output: OutputOption = OUTPUT,
    cells: CellsOption = CELLS,
    model: Annotated[
        str | None, typer.Option(help="SNN of the PGD evaluation [default: CIFAR-10 if it ships].")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Images of the PGD evaluation.")] = None,
    epsilon: Annotated[
        str | None, typer.Option(help="Its size [default: from 8/255 on, what leaves a tenth].")
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(envvar="ROBUSTSNN_DATA", help="Folder of the data [default: the sample]."),
    ] = None,
    only: Annotated[str, typer.Option(help=f"Parts, of {', '.join(PARTS)}.")] = ",".join(PARTS),
    limit: Annotated[
        int | None, typer.Option(help="Stop after so many new speed cells.", hidden=True)
    ] = None,
    process: ProcessOption = Process.product,
    threads: ThreadsOption = None,
) -> None:
    """Measure what is not yet measured, and write tables and figures of all that is."""
    started = time.perf_counter()
    from benchmarks import cells as measuring
    from benchmarks import figures, machine, memory, profiling, tables
    from benchmarks import pgd as attack
    from benchmarks.contenders import base as contenders

    _settle(process, threads)
    parts = {p.strip() for p in only.split(",")}
    if not parts <= set(PARTS):
        raise InputError(f"--only {only}: choose of {', '.join(PARTS)}.")
    here = machine.describe(process.value)
    store = measuring.Store(cells, machine.identity(here))
    fresh = 0
    stored_cells: list[dict[str, Any]] = []
    for cell in measuring.all_cells(quick):
        key = f"{cell.key}-quick" if quick else cell.key
        stored = store.read(key)
        if stored is None and "speed" in parts and (limit is None or fresh < limit):
            fresh += 1
            say(key)
            stored = store.write(key, measuring.measure(cell, quick))
            say(_told(stored))
        if stored is not None:
            stored_cells.append(stored)
    stored_memory = []
    for steps, batch in memory.QUICK_SIZES if quick else memory.SIZES:
        for library in memory.LIBRARIES:
            key = memory.key(library, steps, batch)
            stored = store.read(key)
            if stored is None and "memory" in parts:
                stored = store.write(
                    key, memory.in_fresh_process(library, steps, batch, process.value, threads)
                )
                say(f"{key}: {stored['bytes'] / 2**20:.0f} MiB")
            if stored is not None:
                stored_memory.append(stored)
    stored_long = None if quick else store.read(memory.LONG_KEY)
    if stored_long is None and "memory" in parts and not quick:
        say(memory.LONG_KEY)
        stored_long = store.write(
            memory.LONG_KEY, memory.long_in_fresh_process(process.value, threads)
        )
        say(f"  {stored_long['bytes'] / 2**20:.0f} MiB, {stored_long['seconds']:.0f} s")
    stored_default = []
    for task in () if quick else contenders.TASKS:
        key = f"default-process-{task}"
        stored = store.read(key)
        if stored is None and "process" in parts:
            say(key)
            stored = store.write(key, measuring.in_default_process(task, threads))
            say(_told(stored))
        if stored is not None:
            stored_default.append(stored)
    stored_profile = store.read("profile")
    if stored_profile is None and "profile" in parts:
        say("profile")
        stored_profile = store.write("profile", profiling.measure())
    model = attack.default_model(data_root) if model is None else model
    samples = (100 if quick else 1000) if samples is None else samples
    key = attack.key(model, samples, epsilon)
    stored_attack = store.read(key)
    if stored_attack is None and "attack" in parts:
        say(key)
        stored_attack = store.write(key, attack.measure(model, samples, data_root, epsilon, say))

    output.mkdir(parents=True, exist_ok=True)
    table = tables.tidy(stored_cells, stored_memory, stored_attack, stored_default, stored_long)
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    description = machine.as_markdown(here, command)
    tables.write(output / "speed.csv", table.to_csv(index=False, float_format="%.6g"))
    tables.write(
        output / "speed.md",
        tables.page(
            table,
            stored_cells,
            measuring.HEADLINE,
            description,
            stored_attack,
            stored_profile,
            measuring.notes(stored_cells),
            stored_long,
        ),
    )
    tables.write(output / "machine.json", json.dumps({**here, "command": command}, indent=1) + "\n")
    if stored_profile is not None:
        tables.write(
            output / "profile.csv",
            tables.profile_csv(stored_profile).to_csv(index=False, float_format="%.4g"),
        )
    figures.throughput(table, output / "throughput-vs-T.png")
    figures.memory(table, output / "memory-vs-T.png")
    for aim in tables.aims(table, measuring.HEADLINE):
        verdict = {None: "-", True: "met", False: "NOT MET"}[aim.met]
        say(f"{verdict:8} {aim.what}, {aim.against}: {aim.measured} (aim: {aim.aim})")
    say(f"{output / 'speed.md'} written, {time.perf_counter() - started:.0f} s")


@app.command()
def profile(
    steps: Annotated[int, typer.Option(help="Time steps.")] = 8,
    batch: Annotated[int, typer.Option(help="Images.")] = 32,
    process: ProcessOption = Process.product,
    threads: ThreadsOption = None,
) -> None:
    """Say where the time of our input gradient goes."""
    from benchmarks import profiling, tables

    _settle(process, threads)
    typer.echo(tables.profile_markdown(profiling.measure(steps, batch)))


@app.command()
def settings(
    steps: Annotated[int, typer.Option(help="Time steps.")] = 8,
    batch: Annotated[int, typer.Option(help="Images.")] = 32,
    rounds: Annotated[int, typer.Option(help="Runs of each.")] = 3,
    compiled: Annotated[bool, typer.Option(help="Also under torch.compile.")] = True,
    process: ProcessOption = Process.product,
    threads: ThreadsOption = None,
) -> None:
    """Time each peer's settings against each other, to see that it is given its best."""
    from benchmarks import cells as measuring

    _settle(process, threads)
    for name, seconds in measuring.measure_settings(steps, batch, rounds, compiled).items():
        typer.echo(f"{name:44} {batch / seconds:8.2f} input gradients a second")


@app.command(hidden=True)
def measure_cell(
    task: str, process: ProcessOption = Process.product, threads: ThreadsOption = None
) -> None:
    """Print the aims' cell as JSON, without the compiled peer; what `run` calls, once a process."""
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
    """Print one library's peak memory as JSON; what `run` calls, once a process."""
    from benchmarks import memory

    _settle(process, threads)
    typer.echo(json.dumps(memory.measure(library, architecture, steps, batch, recompute)))


def say(text: str) -> None:
    """Progress, on stderr."""
    typer.echo(text, err=True)


def _settle(process: Process, threads: int | None) -> None:
    import torch

    from benchmarks.machine import apply_process_settings

    apply_process_settings(process.value)
    if threads is not None:
        if threads < 1:
            raise InputError(f"--threads {threads}: give at least 1.")
        torch.set_num_threads(threads)


def _told(stored: dict[str, Any]) -> str:
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
    """Run, with mistakes in what was given told in one line."""
    if not {"default", "--process=default"} & set(sys.argv):
        # Before torch is imported.
        let_idle_threads_sleep()
    try:
        app()
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
