"""A comparison of what ships: four models under attack, in minutes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustsnn.evaluation.plan import plans_of
from robustsnn.evaluation.progress import Progress
from robustsnn.evaluation.request import Request
from robustsnn.records.runs import load_runs
from robustsnn.reporting.render import render
from robustsnn.workflows.compare import names, run_all

#: An ANN, the SNN converted from it, a pruned SNN and one trained with crafted noise.
MODELS = (
    "fashion-mnist/vgg5-ann",
    "fashion-mnist/vgg5-snn",
    "fashion-mnist/vgg5-snn-agc-10x",
    "fashion-mnist/vgg5-snn-hire",
)
FOLDER = Path("runs/demo")
SAMPLES = {"quick": 500, "curve": 100}


def demo(
    output: Path = FOLDER,
    *,
    models: Sequence[str] = MODELS,
    samples: dict[str, int] | None = None,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> Path:
    """Attack the models that ship on the images that ship, and write the page about it.

    Args:
        output: The folder of the page and of the run folders.
        models: The names of the models; the first one is the baseline.
        samples: The number of images for each suite, by the name of the suite.
        progress: The function that is told of every finished batch.
        command: The command line that asked for the demo.

    Returns:
        The path of index.html.

    Raises:
        InputError: The folder holds something else.
    """
    runs = []
    for suite, count in (samples or SAMPLES).items():
        plans = plans_of(Request(tuple(models), suite=suite, samples=count))
        runs += [(f"{suite}-{name}", p) for name, p in zip(names(plans), plans, strict=True)]
    run_all(runs, output, progress=progress, command=command)
    return render(load_runs(output / name for name, _ in runs), output)
