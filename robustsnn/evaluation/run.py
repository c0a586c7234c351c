"""The evaluation: attack in batches, judge each proposal afresh, store it, resume a killed run."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from robustsnn.evaluation import forms
from robustsnn.evaluation.cells import Bench, Cell
from robustsnn.evaluation.course import Course
from robustsnn.evaluation.finished import Evaluation as Evaluation
from robustsnn.evaluation.ongoing import Ongoing
from robustsnn.evaluation.options import Data
from robustsnn.evaluation.plan import Plan, plans_of
from robustsnn.evaluation.progress import Progress as Progress
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.suites import Suite
from robustsnn.records.folder import RunFolder


def evaluate(
    network: nn.Module | str | Path,
    data: Data = None,
    suite: Suite | str | Path | None = None,
    *,
    attack: Any = (),
    epsilon: Any = None,
    norm: Any = None,
    output: Path | str | None = None,
    progress: Progress | None = None,
    command: Sequence[str] = (),
    **settings: Any,
) -> Evaluation:
    """Attack a network and measure the accuracy that remains.

    Args:
        network: A network in memory (it is copied before it is attacked), a zoo name, a checkpoint
            folder or `python.module:factory`. It maps pixels in [0, 1] to logits.
        data: A data set, its name, or images in [0, 1] with labels: a pair of tensors, arrays or
            lists, a DataLoader, a Dataset or Subset, or a list of pairs. By default the data set
            that the checkpoint was trained on.
        suite: A suite, its name or its YAML file; by default `quick`.
        attack: One or several attacks in place of a suite, such as `"pgd:steps=20"`.
        epsilon: A size or several in place of the suite's, such as `8/255` or `"8/255"`.
        norm: The norm in place of the suite's: inf or 2, `"Linf"` or `"L2"`.
        output: The run folder. The same evaluation is resumed or read there; None keeps nothing.
        progress: The function that is told of every finished batch.
        command: The command line that asked for the evaluation.
        **settings: The other fields of `robustsnn.Request`, such as `samples`, `seed`,
            `substitute`, `estimator` or `device`.

    Raises:
        InputError: An argument cannot be used.

    Examples:
        >>> import robustsnn
        >>> found = robustsnn.evaluate("fashion-mnist/vgg5-ann", samples=4, attack="fgsm")
        >>> found.results["attack"].tolist()
        ['clean', 'fgsm', 'worst-case']
        >>> found.level, found.clean
        ('B', 1.0)
    """
    what = {"attack": attack, "epsilon": epsilon, "norm": norm}
    (plan,) = plans_of(Request.of(network, data, suite, **what, **settings))
    folder, progress = forms.path("output", output), forms.called("progress", progress)
    if folder is not None:
        return run(plan, folder, command=command, progress=progress)
    with tempfile.TemporaryDirectory(prefix="robustsnn-") as scratch:
        done = run(plan, Path(scratch) / "run", command=command, progress=progress)
    return dataclasses.replace(done, folder=None)


def run(
    plan: Plan,
    output: Path,
    *,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """Carry out a plan in a folder, from where an earlier start was stopped.

    Args:
        plan: The plan.
        output: The run folder.
        command: The command line that asked for the run; empty for a call from Python.
        progress: The function that is told of every finished batch.

    Raises:
        InputError: The folder belongs to something else, or the network cannot be evaluated on
            the clean images.
    """
    with Ongoing(plan, output, command) as ongoing:
        _compute(ongoing.course, ongoing.stages(), progress)
        assert ongoing.found is not None
        return ongoing.found


def records_of(plan: Plan, folder: RunFolder, progress: Progress | None = None) -> pd.DataFrame:
    """The records of a plan, made in a folder that is there, without the files of a finished run.

    Args:
        plan: The plan.
        folder: The folder, which holds no parts of another run.
        progress: The function that is told of every finished batch.

    Raises:
        InputError: The network or an attack fails.
    """
    course = Course(plan, folder)
    _compute(course, itertools.chain(course.clean(), course.attacks()), progress)
    return course.records()


def _compute(course: Course, stages: Iterable[list[Cell]], progress: Progress | None) -> None:
    """Compute the cells of all stages in this process."""
    bench: Bench | None = None
    done = 0
    for cells in stages:
        for left, cell in zip(range(len(cells), 0, -1), cells, strict=True):
            bench = bench or Bench(course.plan)
            given = cell.gather()
            if progress is not None and cell.work == "probe":
                told = course.stored + done
                begun = partial(progress, cell.what, told, told + course.ahead)
                begun()
                # The probe takes long, so each piece of it is told.
                given["store"] = dataclasses.replace(given["store"], told=begun)
            cell.keep(bench.compute(*cell.asked, given))
            if cell.work not in ("clean", "attack"):
                # The others are not batches, and what is counted after the attacks takes a moment.
                continue
            done += 1
            if progress is not None:
                told = course.stored + done
                progress(cell.what, told, told + left - 1 + course.ahead)
