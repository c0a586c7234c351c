"""Runs of every model that ships under the strongest suite, and the board of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from robustsnn.common.files import write_atomically
from robustsnn.evaluation.plan import prepare
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.run import run
from robustsnn.models.checkpoint import read_checkpoint
from robustsnn.models.subject import subject_of
from robustsnn.records.runs import load_runs
from robustsnn.records.schema import CLEAN, WORST_CASE
from robustsnn.workflows.board import board
from studies.shared import first_images, is_finished

#: The images under each suite: those of networks that do not draw and of those that do.
SAMPLES = {"standard": 200, "rand": 100}
#: Networks of more time steps than this would take days under `rand`, and are left out.
LONGEST = 16
COLUMNS = ("model", "sha256", "suite", "version", "samples", "clean", "accuracy", "level")


def runs_of(
    names: Sequence[str],
    folder: Path,
    *,
    data_root: Path | None = None,
    samples: int | None = None,
    say: Callable[[str], None] = print,
    finished_only: bool = False,
) -> list[Path]:
    """Run, resume or find the run of each model; every adversarial image is kept.

    Args:
        names: The zoo names.
        folder: The folder of the run folders.
        data_root: The folder of the data sets' folders.
        samples: The most images of a run; None for those of `SAMPLES`.
        say: A function that prints progress.
        finished_only: Whether to find what is finished and run nothing.
    """
    found = []
    for name in names:
        subject = subject_of(name)
        network = subject.load()
        if getattr(network, "time_steps", 1) > LONGEST:
            say(f"{name} is left out: it takes more than {LONGEST} time steps")
            continue
        suite = "rand" if bool(getattr(network, "stochastic", False)) else "standard"
        count = SAMPLES[suite] if samples is None else min(SAMPLES[suite], samples)
        output = folder / name.replace("/", "-") / f"{suite}-{count}"
        if not (finished_only and not is_finished(output)):
            images = first_images(subject, count, data_root, say, finished_only)
            if images is None:
                continue
            say(f"{name}, {len(images)} images, {suite}")
            plan = prepare(Request.of(subject, images, suite, save_images=True))
            run(plan, output, command=["studies", "board"])
            found.append(output)
    return found


def measured(folders: Sequence[Path]) -> str:
    """The table of what models keep, as CSV, for `robustsnn zoo list`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for read in load_runs(folders).runs if folders else ():
        by_attack = dict(zip(read.results["attack"], read.results["accuracy"], strict=True))
        said = read.manifest
        writer.writerow(
            [
                read.model, said.checkpoint_sha256, read.suite, said.suite_version, read.samples,
                f"{np.float64(by_attack[CLEAN]):.6g}", f"{np.float64(by_attack[WORST_CASE]):.6g}",
                read.level,
            ]
        )  # fmt: skip
    return text.getvalue()


def write(
    folders: Sequence[Path], output: Path, table: Path, say: Callable[[str], None] = print
) -> None:
    """Write the board, and the table of what models keep.

    Args:
        folders: The finished runs of models that ship.
        output: The folder of the board.
        table: The file of the table, `zoo/measured.csv`.
        say: A function that prints progress.
    """
    for folder in folders:
        # A run of weights that do not ship any more would be listed under the name of others.
        said = load_runs([folder]).runs[0].manifest
        assert said.checkpoint_sha256 == read_checkpoint(said.model).sha256
    board(folders, output, say=say)
    write_atomically(table, measured(folders).encode())
