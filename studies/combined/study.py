"""Do gradients and search by score find more together than alone, at equal passes?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from robustsnn.evaluation.entry import Entry
from robustsnn.evaluation.plan import prepare
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.run import Evaluation, run
from robustsnn.evaluation.suites import Suite
from robustsnn.models.subject import subject_of
from robustsnn.records.schema import CLEAN
from robustsnn.records.summary import survivors
from studies.shared import first_images, is_finished, written_ids

#: Budgets: forward and backward passes of each image.
PASSES = (300, 1000, 5000)
#: All budgets together take about two hours of one core.
SAMPLES = 50
#: Networks and sizes at which the estimators break neither nearly all images nor nearly none.
NETWORKS: Mapping[str, str] = {
    "fashion-mnist/vgg5-snn": "4/255",
    "fashion-mnist/vgg5-snn-hire": "8/255",
    "fashion-mnist/vgg5-snn-at": "12/255",
    "fashion-mnist/resnet12-snn": "4/255",
}
_APGD = "apgd:steps={steps},loss=margin"
#: Attacks along one estimator alone, and the passes of one of their steps.
GRADIENTS: Mapping[str, tuple[str, str, int]] = {
    "own surrogate": (_APGD, "bptt", 2),
    "triangle 0.5": (_APGD, "bptt:triangle:width=0.5", 2),
    "arctan 8": (_APGD, "bptt:arctan:width=0.0796", 2),
    "ASSG 0.45": (_APGD, "assg:vanishing=0.45", 2),
    "HART 0.5": (_APGD, "hart:width=0.5", 2),
    "PDSG": (_APGD, "pdsg", 2),
    "BPTR": (_APGD, "bptr", 2),
    "RGA": (_APGD, "rga", 2),
    "twin": (_APGD, "twin", 3),
    "SA-PGD, ASSG 0.425": ("sa-pgd:steps={steps}", "assg:vanishing=0.425", 2),
}
_HERE = Path(__file__).parent / "attacks"
#: Searches by score, which the combinations are compared with.
SEARCHES: Mapping[str, str] = {
    "Square": "square:queries={passes}",
    "warm Square": f"{_HERE / 'warm_square.py'}:passes={{passes}}",
}
#: The combinations of gradients and search.
COMBINATIONS: Mapping[str, str] = {
    "guided": f"{_HERE / 'guided.py'}:passes={{passes}}",
    "corrected": f"{_HERE / 'corrected.py'}:passes={{passes}}",
}
COLUMNS = (
    "model epsilon samples clean passes method accuracy ci_low ci_high forward_passes "
    "backward_passes seconds standing"
).split()


def suite(passes: int, epsilon: str) -> Suite:
    """A suite that tries every method by itself, at one number of passes."""
    entries = [
        Entry(
            label=label,
            # The last iterate costs one more forward pass.
            attack=attack.format(steps=(passes - 1) // cost),
            estimator=estimator,
        )
        for label, (attack, estimator, cost) in GRADIENTS.items()
    ]
    entries += [
        Entry(label=label, attack=attack.format(passes=passes))
        for label, attack in {**SEARCHES, **COMBINATIONS}.items()
    ]
    fields = {"name": f"combined-{passes}", "epsilon": [epsilon], "entries": entries}
    return Suite.model_validate(fields)


def study(
    model: str,
    folder: Path,
    passes: Sequence[int] = PASSES,
    samples: int = SAMPLES,
    *,
    data_root: Path | None = None,
    say: Callable[[str], None] = print,
    finished_only: bool = False,
) -> pd.DataFrame:
    """The rows of one network in `combined.csv`; what is not finished is run.

    Args:
        model: One of `NETWORKS`.
        folder: The folder of the run folders.
        passes: The budgets.
        samples: The number of images, taken from the first one on.
        data_root: The folder of the data sets' folders.
        say: A function that prints progress.
        finished_only: Whether to read what is finished and run nothing.
    """
    subject = subject_of(model)
    images = first_images(subject, samples, data_root, say, finished_only)
    rows: list[dict[str, object]] = []
    if images is None:
        return pd.DataFrame(rows, columns=COLUMNS)
    for number in passes:
        some = suite(number, NETWORKS[model])
        output = folder / f"{model.replace('/', '-')}-{samples}" / some.name
        if finished_only and not is_finished(output):
            continue
        say(f"{model}, {samples} images, {number} passes")
        done = run(
            prepare(Request.of(subject, images, some)), output, command=["studies", "combined"]
        )
        rows += _rows(done, some, model, number)
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(done: Evaluation, some: Suite, model: str, passes: int) -> list[dict[str, object]]:
    labels = {entry.slug: entry.label for entry in some.entries}
    results = done.results.set_index("attack")
    clean = results["accuracy"][CLEAN]
    unattacked = done.records[done.records["attack"] == CLEAN]
    attacked = done.records[done.records["attack"] != CLEAN]
    found: list[dict[str, object]] = []
    for attack, rows in attacked.groupby("attack", sort=False):
        result: dict[Any, Any] = results.loc[str(attack)].to_dict()
        found.append(
            {
                "model": model,
                "epsilon": some.epsilon[0],
                "samples": int(result["samples"]),
                "clean": float(clean),
                "passes": passes,
                "method": labels[str(attack)],
                "accuracy": float(result["accuracy"]),
                "ci_low": float(result["ci_low"]),
                "ci_high": float(result["ci_high"]),
                "forward_passes": float(rows["forward_passes"].mean()),
                "backward_passes": float(rows["backward_passes"].mean()),
                "seconds": float(rows["seconds"].sum()),
                "standing": written_ids(survivors(pd.concat([unattacked, rows]))),
            }
        )
    return found


def with_earlier(table: pd.DataFrame, earlier: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table, with those of an earlier table for other networks and budgets."""
    key = ["model", "samples", "passes"]
    fresh = set(table[key].itertuples(index=False, name=None))
    kept = [row not in fresh for row in earlier[key].itertuples(index=False, name=None)]
    return pd.concat([earlier[kept], table], ignore_index=True) if any(kept) else table
