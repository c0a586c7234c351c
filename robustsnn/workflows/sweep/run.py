"""A sweep: its runs with workers, one table and one page over all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from robustsnn.common.files import check_output, made_folder, unwritable, write_atomically
from robustsnn.errors import InputError
from robustsnn.evaluation.finished import Evaluation
from robustsnn.evaluation.parallel import Asked, Told, carry_out
from robustsnn.evaluation.plan import Plan, prepare
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.run import run
from robustsnn.evaluation.workers import Computes, Processes
from robustsnn.records.runs import load_runs
from robustsnn.reporting.render import render
from robustsnn.workflows.sweep.spec import Sweep

#: The file that marks the folder of a sweep.
MARKER = "sweep.json"
FORMAT = "robustsnn-sweep-1"


@dataclass(frozen=True, eq=False)
class Swept:
    """A sweep that came to its end.

    Args:
        folder: The folder of the page, the table and the runs.
        page: The path of index.html; None if no run is finished.
        evaluations: The finished runs, by the names of their folders.
        failed: What went wrong with the others.
    """

    folder: Path
    page: Path | None
    evaluations: Mapping[str, Evaluation]
    failed: Mapping[str, InputError]


def sweep(
    asked: Sweep,
    output: Path,
    *,
    workers: Computes | int = 1,
    data_root: Path | None = None,
    allow_code: bool = False,
    command: Sequence[str] = (),
    told: Told | None = None,
) -> Swept:
    """Carry out a sweep in a folder; what is finished there is not run again.

    Args:
        asked: The sweep.
        output: The folder.
        workers: The number of processes on this machine, each with one thread, or workers of a
            cluster. The numbers do not depend on it.
        data_root: The folder of the data sets.
        allow_code: Whether Python files that suites name may be run.
        command: The command line that asked for the sweep.
        told: The function that is told of every finished cell, with the seconds that workers have
            worked, and those that they are expected to work in all.

    Raises:
        InputError: The folder holds something else or cannot be written.
    """
    requests = dict(asked.requests(data_root, allow_code))
    _claim(output, asked)
    runs = [
        Asked(name, partial(_planned, request), output / "runs" / name, tuple(command))
        for name, request in requests.items()
    ]
    torch.set_num_threads(1)
    if workers == 1:
        found = _alone(runs, told)
    else:
        found = carry_out(runs, Processes(workers) if isinstance(workers, int) else workers, told)
    return _written(output, dict(zip(requests, found, strict=True)))


def _planned(request: Request) -> Plan:
    return prepare(request)


def _alone(runs: Sequence[Asked], told: Told | None) -> list[Evaluation | InputError]:
    """Carry out runs one after another in this process."""
    found: list[Evaluation | InputError] = []
    for place, one in enumerate(runs):
        progress = None
        if told is not None:
            progress = partial(_told, told, one.name, place, len(runs))
        try:
            found.append(run(one.plan(), one.output, command=one.command, progress=progress))
        except InputError as error:
            found.append(error)
    return found


def _told(
    told: Callable[[str, float, float], None],
    name: str,
    place: int,
    runs: int,
    what: str,
    done: int,
    total: int,
) -> None:
    told(f"{name}: {what}", place + done / total, float(runs))


def _written(output: Path, found: Mapping[str, Evaluation | InputError]) -> Swept:
    done = {name: one for name, one in found.items() if isinstance(one, Evaluation)}
    failed = {name: one for name, one in found.items() if isinstance(one, InputError)}
    page = None
    if done:
        runs = load_runs(output / "runs" / name for name in done)
        tables = [
            one.results.assign(
                run=name, model=one.label, data=one.data, suite=one.suite, seed=one.manifest.seed
            )
            for name, one in zip(done, runs.runs, strict=True)
        ]
        table = pd.concat(tables, ignore_index=True)
        first = ["run", "model", "data", "suite", "seed"]
        table = table[[*first, *(name for name in table if name not in first)]]
        try:
            write_atomically(output / "results.csv", table.to_csv(index=False).encode())
        except OSError as error:
            raise unwritable(output, error) from error
        page = render(runs, output, baseline=runs.runs[0].model)
    return Swept(output, page, done, failed)


def _claim(folder: Path, asked: Sweep) -> None:
    """Mark a new folder as that of this sweep; refuse the folder of another one."""
    said = {"format": FORMAT, "sweep": asked.model_dump(mode="json")}
    marker = folder / MARKER
    try:
        if marker.is_file():
            try:
                held = json.loads(marker.read_text(encoding="utf-8"))
            except (ValueError, RecursionError):
                held = None
            if held != said:
                raise InputError(f"{folder} holds another sweep: name another --output.")
            return
        check_output(folder)
        with made_folder(folder):
            write_atomically(marker, (json.dumps(said, indent=2) + "\n").encode())
    except OSError as error:
        raise unwritable(folder, error) from None
