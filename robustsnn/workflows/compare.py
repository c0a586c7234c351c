"""The comparison of several models under the same suite on the same images."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from robustsnn.common.files import (
    check_output,
    expanded,
    made_folder,
    read_text,
    unwritable,
    write_atomically,
)
from robustsnn.common.wording import slug
from robustsnn.errors import InputError
from robustsnn.evaluation import forms
from robustsnn.evaluation.options import Data, Model
from robustsnn.evaluation.plan import Plan, plans_of
from robustsnn.evaluation.progress import Progress
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.run import Evaluation, run
from robustsnn.evaluation.suites import Suite
from robustsnn.records.folder import check_folder
from robustsnn.records.manifest import LARGEST
from robustsnn.records.runs import Runs, load_runs
from robustsnn.records.schema import COMPARISON
from robustsnn.reporting.render import render

FORMAT = "robustsnn-comparison-1"


@dataclass(frozen=True, eq=False, repr=False)
class Compared:
    """A finished comparison: its page, and the data that the page shows.

    It stands for the path of the page wherever a path is taken, and has the attributes of one,
    such as `parent` and `read_text`.

    Args:
        page: The path of index.html.
        evaluations: The finished run of each model by its name, the baseline first.
    """

    page: Path
    evaluations: Mapping[str, Evaluation]

    @cached_property
    def runs(self) -> Runs:
        """The runs as reports read them."""
        return load_runs(found.folder for found in self.evaluations.values() if found.folder)

    @property
    def results(self) -> pd.DataFrame:
        """The rows of `results.csv` of all runs; the column `model` tells them apart."""
        return self.runs.results

    @property
    def records(self) -> pd.DataFrame:
        """The rows of `records.parquet` of all runs, with the columns of their runs."""
        return self.runs.records

    @property
    def accuracies(self) -> dict[str, float]:
        """The accuracy that is left of each model in the worst case, between 0 and 1."""
        return {name: found.accuracy for name, found in self.evaluations.items()}

    @property
    def levels(self) -> dict[str, str]:
        """The level of each model, `A`, `B` or `C`."""
        return {name: found.level for name, found in self.evaluations.items()}

    def __getitem__(self, name: str) -> Evaluation:
        return self.evaluations[name]

    def __fspath__(self) -> str:
        return str(self.page)

    def __str__(self) -> str:
        return str(self.page)

    def __getattr__(self, name: str) -> Any:
        # Only what is not found above; a private name must not look for `page` while it is copied.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.page, name)

    def __repr__(self) -> str:
        said = [f"{name} {found!r}" for name, found in self.evaluations.items()]
        return f"<{self.page}: {'; '.join(said)}>"

    def _repr_html_(self) -> str:
        """The results of all models, and where the page is, for notebooks."""
        parts = [found._repr_html_() for found in self.evaluations.values()]
        return f"{''.join(parts)}<p>{html.escape(str(self.page))}</p>"


def compare(
    models: Sequence[Model | tuple[str, Model]] | Mapping[str, Model],
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
) -> Compared:
    """Evaluate models on the same images and write the page that compares them.

    Args:
        models: The models, as for `evaluate`, or a dict of names to models, which names networks
            in memory; the first one is the baseline.
        data: The images, as for `evaluate`; by default the data set that the first model was
            trained on.
        suite: The suite, as for `evaluate`.
        attack: The attacks in place of a suite, as for `evaluate`.
        epsilon: The sizes in place of the suite's, as for `evaluate`.
        norm: The norm in place of the suite's, as for `evaluate`.
        output: The folder of the page and of one run folder for each model; by default
            `runs/compare-<hash>`.
        progress: The function that is told of every finished batch.
        command: The command line that asked for the comparison.
        **settings: The other fields of `robustsnn.Request`.

    Returns:
        The finished runs by name, and their rows together; it stands for the path of index.html
        wherever a path is taken.

    Raises:
        InputError: An argument cannot be used.

    Examples:
        >>> import tempfile
        >>> models = {"ann": "fashion-mnist/vgg5-ann", "snn": "fashion-mnist/vgg5-snn"}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = compare(models, attack="fgsm", samples=4, output=folder)
        >>> found.name, list(found.accuracies), found["ann"].clean
        ('index.html', ['ann', 'snn'], 1.0)
    """
    what = {"attack": attack, "epsilon": epsilon, "norm": norm}
    request = Request.of_all(models, data=data, suite=suite, **what, **settings)
    folder, progress = forms.path("output", output), forms.called("progress", progress)
    return finished(request, output=folder, progress=progress, command=command)


def finished(
    request: Request,
    *,
    output: Path | str | None = None,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> Compared:
    """Evaluate the models of a request and write the page that compares them; see `compare`.

    Args:
        request: The request.
        output: The folder of the page and of one run folder for each model; by default
            `runs/compare-<hash>`.
        progress: The function that is told of every finished batch.
        command: The command line that asked for the comparison.

    Raises:
        InputError: The request cannot be carried out.
    """
    plans = plans_of(request)
    runs = list(zip(names(plans), plans, strict=True))
    folder = expanded(output) if output is not None else default_folder(plans)
    done = run_all(runs, folder, progress=progress, command=command)
    read = load_runs(folder / name for name, _ in runs)
    page = render(read, folder, baseline=plans[0].subject.name)
    called: dict[str, Evaluation] = {}
    for (folder_name, plan), one in zip(runs, done, strict=True):
        # Two models of one name are told apart as their folders are.
        name = plan.subject.name
        called[name if name not in called else folder_name] = one
    return Compared(page, called)


def names(plans: Sequence[Plan]) -> list[str]:
    """A name of a run folder for each model, no two alike; one that is taken gets a number."""
    found: list[str] = []
    for plan in plans:
        name = slug(plan.subject.name) or "model"
        # The number is the place of the model, or the next that is free.
        places = range(len(found) + 1, 2 * len(plans) + 2)
        tried = [name, *(f"{name}-{number}" for number in places)]
        found.append(next(one for one in tried if one not in found))
    return found


def default_folder(plans: Sequence[Plan]) -> Path:
    """The folder of a comparison if no other is asked for."""
    digest = hashlib.sha256(" ".join(plan.identity for plan in plans).encode())
    return Path("runs") / f"compare-{digest.hexdigest()[:12]}"


def run_all(
    runs: Sequence[tuple[str, Plan]],
    folder: Path,
    *,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> list[Evaluation]:
    """Carry out plans, each in its own sub-folder; each is resumed or read on its own.

    Args:
        runs: The name of the sub-folder and the plan of each run.
        folder: The folder, which holds nothing but this comparison.
        progress: The function that is told of every finished batch.
        command: The command line that asked for the runs.

    Raises:
        InputError: The folder holds something else.
    """
    identity = {name: plan.identity for name, plan in runs}
    _claim(folder, identity)
    for name, plan in runs:
        check_folder(folder / name, plan.identity)
    done = []
    for position, (name, plan) in enumerate(runs):
        told = None if progress is None else _prefixed(progress, plan, position, len(runs))
        done.append(run(plan, folder / name, command=command, progress=told))
    return done


def _prefixed(progress: Progress, plan: Plan, position: int, count: int) -> Progress:
    def told(what: str, done: int, total: int) -> None:
        head = f"[{position + 1}/{count}] {plan.subject.name}, {plan.suite.name}: "
        progress(head + what, done, total)

    return told


def _claim(folder: Path, identity: Mapping[str, str]) -> None:
    """Mark a new folder as that of this comparison; refuse the folder of another one."""
    marker = folder / COMPARISON
    try:
        if marker.is_file():
            try:
                held = json.loads(read_text(marker, LARGEST, "name another --output"))
            except (ValueError, RecursionError):
                held = None
            if held != {"format": FORMAT, "runs": dict(identity)}:
                raise InputError(f"{folder} holds another comparison: name another --output.")
            return
        check_output(folder)
        text = json.dumps({"format": FORMAT, "runs": dict(identity)}, indent=2)
        with made_folder(folder):
            write_atomically(marker, (text + "\n").encode())
    except OSError as error:
        raise unwritable(folder, error) from None
