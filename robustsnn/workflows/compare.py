"""The comparison of several models under the same suite on the same images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustsnn.common.files import check_output, expanded, unwritable, write_atomically
from robustsnn.common.wording import slug
from robustsnn.data.images import Images
from robustsnn.errors import InputError
from robustsnn.evaluation.plan import Plan, plans_of
from robustsnn.evaluation.progress import Progress
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.run import Evaluation, run
from robustsnn.evaluation.suites import Suite
from robustsnn.records.folder import check_folder
from robustsnn.records.runs import load_runs
from robustsnn.records.schema import COMPARISON
from robustsnn.reporting.render import render

FORMAT = "robustsnn-comparison-1"


def compare(
    models: Sequence[nn.Module | str | Path],
    data: Images | tuple[Tensor, Tensor] | str | None = None,
    suite: Suite | str | Path | None = None,
    *,
    output: Path | str | None = None,
    progress: Progress | None = None,
    command: Sequence[str] = (),
    **settings: Any,
) -> Path:
    """Evaluate models on the same images and write the page that compares them.

    Args:
        models: The models, as for `evaluate`; the first one is the baseline.
        data: The images, as for `evaluate`; by default the data set that the first model was
            trained on.
        suite: The suite, as for `evaluate`.
        output: The folder of the page and of one run folder for each model; by default
            `runs/compare-<hash>`.
        progress: The function that is told of every finished batch.
        command: The command line that asked for the comparison.
        **settings: The other fields of `robustsnn.Request`.

    Returns:
        The path of index.html.

    Raises:
        InputError: An argument cannot be used.

    Examples:
        >>> import tempfile
        >>> models = ["fashion-mnist/vgg5-ann", "fashion-mnist/vgg5-snn"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     compare(models, attack=["fgsm"], samples=4, output=folder).name
        'index.html'
    """
    request = Request.of_all(models, data=data, suite=suite, **settings)
    return compared(request, output=output, progress=progress, command=command)


def compared(
    request: Request,
    *,
    output: Path | str | None = None,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> Path:
    """Evaluate the models of a request and write the page that compares them; see `compare`.

    Args:
        request: The request.
        output: The folder of the page and of one run folder for each model; by default
            `runs/compare-<hash>`.
        progress: The function that is told of every finished batch.
        command: The command line that asked for the comparison.

    Returns:
        The path of index.html.

    Raises:
        InputError: The request cannot be carried out.
    """
    plans = plans_of(request)
    runs = list(zip(names(plans), plans, strict=True))
    folder = expanded(output) if output is not None else default_folder(plans)
    run_all(runs, folder, progress=progress, command=command)
    return render(
        load_runs(folder / name for name, _ in runs), folder, baseline=plans[0].subject.name
    )


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
                held = json.loads(marker.read_text(encoding="utf-8"))
            except ValueError:
                held = None
            if held != {"format": FORMAT, "runs": dict(identity)}:
                raise InputError(f"{folder} holds another comparison: name another --output.")
            return
        check_output(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": FORMAT, "runs": dict(identity)}, indent=2)
        write_atomically(marker, (text + "\n").encode())
    except OSError as error:
        raise unwritable(folder, error) from None
