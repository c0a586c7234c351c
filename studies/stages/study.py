"""What each possible stage of a cascade adds, on training images: none is tuned on test images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from robustsnn.data.datasets import load_training
from robustsnn.evaluation.meant import kind_of
from robustsnn.evaluation.plan import prepare
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.run import run
from robustsnn.evaluation.suites import Suite, load_suite
from robustsnn.models.subject import subject_of
from robustsnn.records.schema import CLEAN
from robustsnn.records.summary import survivors
from studies.shared import is_finished, root_of, subset, written_ids

SAMPLES = 200
NETWORKS = (
    "fashion-mnist/vgg5-ann",
    "fashion-mnist/vgg5-snn",
    "fashion-mnist/vgg5-ann-at",
    "fashion-mnist/vgg5-snn-at",
    "fashion-mnist/resnet12-ann",
    "fashion-mnist/resnet12-snn",
)
#: Candidates for spiking networks by label: an attack and an estimator.
SPIKING: Mapping[str, tuple[str, str]] = {
    "APGD CE 100, own surrogate": ("apgd:steps=100,loss=cross-entropy", "bptt"),
    "APGD CE 100, ASSG .425": ("apgd:steps=100,loss=cross-entropy", "assg:vanishing=0.425"),
    "APGD margin 200, ASSG .45": ("apgd:steps=200,loss=margin", "assg:vanishing=0.45"),
    "APGD margin 400, ASSG .45": ("apgd:steps=400,loss=margin", "assg:vanishing=0.45"),
    "APGD margin 2 x 200, ASSG .45": (
        "apgd:steps=200,restarts=2,loss=margin",
        "assg:vanishing=0.45",
    ),
    "APGD margin 200, arctan, reset attached": (
        "apgd:steps=200,loss=margin",
        "bptt:arctan:width=0.0796,reset=attached",
    ),
    "SA-PGD CE 100, ASSG .425": ("sa-pgd:steps=100", "assg:vanishing=0.425"),
    "SA-PGD CE 200, ASSG .425": ("sa-pgd:steps=200", "assg:vanishing=0.425"),
    "SA-PGD CE 400, ASSG .425": ("sa-pgd:steps=400", "assg:vanishing=0.425"),
    "SA-PGD CE 2 x 200, ASSG .425": ("sa-pgd:steps=200,restarts=2", "assg:vanishing=0.425"),
    "SA-PGD CE 200, ASSG .45": ("sa-pgd:steps=200", "assg:vanishing=0.45"),
    "SA-PGD margin 200, ASSG .425": ("sa-pgd:steps=200,loss=margin", "assg:vanishing=0.425"),
    "SA-PGD margin 200, ASSG .45": ("sa-pgd:steps=200,loss=margin", "assg:vanishing=0.45"),
    "SA-PGD CE 200, arctan": ("sa-pgd:steps=200", "bptt:arctan:width=0.0796"),
    "SA-PGD CE 200, own surrogate": ("sa-pgd:steps=200", "bptt"),
    "APGD targeted 9 x 50, ASSG .45": (
        "apgd:steps=50,loss=targeted-margin,targets=9",
        "assg:vanishing=0.45",
    ),
    "Square 1000": ("square:queries=1000", "bptt"),
    "Square 5000": ("square:queries=5000", "bptt"),
}
#: Candidates for networks without spikes.
PLAIN: Mapping[str, tuple[str, str]] = {
    "APGD CE 100": ("apgd:steps=100,loss=cross-entropy", "bptt"),
    "APGD CE 5 x 100": ("apgd:steps=100,restarts=5,loss=cross-entropy", "bptt"),
    "APGD CE 10 x 100": ("apgd:steps=100,restarts=10,loss=cross-entropy", "bptt"),
    "APGD margin 5 x 100": ("apgd:steps=100,restarts=5,loss=margin", "bptt"),
    "APGD margin 200": ("apgd:steps=200,loss=margin", "bptt"),
    "APGD margin 400": ("apgd:steps=400,loss=margin", "bptt"),
    "APGD margin 2 x 200": ("apgd:steps=200,restarts=2,loss=margin", "bptt"),
    "SA-PGD CE 100": ("sa-pgd:steps=100", "bptt"),
    "SA-PGD CE 200": ("sa-pgd:steps=200", "bptt"),
    "SA-PGD CE 400": ("sa-pgd:steps=400", "bptt"),
    "SA-PGD margin 200": ("sa-pgd:steps=200,loss=margin", "bptt"),
    "SA-PGD CE 5 x 200": ("sa-pgd:steps=200,restarts=5", "bptt"),
    "APGD targeted 9 x 100": ("apgd:steps=100,loss=targeted-dlr,targets=9", "bptt"),
    "APGD targeted 2 x 9 x 100": (
        "apgd:steps=100,restarts=2,loss=targeted-dlr,targets=9",
        "bptt",
    ),
    "APGD targeted margin 9 x 100": ("apgd:steps=100,loss=targeted-margin,targets=9", "bptt"),
    "Square 1000": ("square:queries=1000", "bptt"),
    "Square 5000": ("square:queries=5000", "bptt"),
}
COLUMNS = "model samples clean probed stage estimator broken passes seconds standing".split()


def study(
    model: str,
    folder: Path,
    samples: int = SAMPLES,
    *,
    data_root: Path | None = None,
    say: Callable[[str], None] = print,
    finished_only: bool = False,
) -> pd.DataFrame:
    """The rows of one network in `stages.csv`; what is not finished is run.

    Every candidate attacks, by itself, the training images that survive all probes of `standard`.

    Args:
        model: A zoo name.
        folder: The folder of the run folders.
        samples: The number of training images, taken from the first one on.
        data_root: The folder of the data sets' folders.
        say: A function that prints progress.
        finished_only: Whether to read what is finished and run nothing.
    """
    subject = subject_of(model)
    root = None if data_root is None else root_of(data_root, subject.meta)
    here = folder / f"{model.replace('/', '-')}-{samples}"
    if finished_only and not is_finished(here / "candidates"):
        return pd.DataFrame(columns=COLUMNS)
    images = load_training(str(subject.meta["data"]), root).first(samples)
    say(f"{model}, {samples} training images, probes")
    standard = load_suite("standard")
    probes = tuple(entry for entry in standard.entries if entry.probe)
    # The version is not that of `standard`: what follows the probes there changes nothing here.
    suite = standard.model_copy(update={"name": "probes", "version": 1, "entries": probes})
    first = run(prepare(Request.of(subject, images, suite)), here / "probes")
    probed = survivors(first.records)
    clean = survivors(first.records[first.records["attack"] == CLEAN])
    kind = SPIKING if kind_of(subject.load()) == "snn" else PLAIN
    candidates = _candidates(kind, standard.epsilon)
    say(f"{model}, {len(probed)} survivors of the probes, {len(kind)} candidates")
    request = Request.of(subject, subset(images, sorted(probed)), candidates)
    done = run(prepare(request), here / "candidates")
    common = {
        "model": model,
        "samples": samples,
        "clean": len(clean) / samples,
        "probed": len(probed) / samples,
    }
    labels = {entry.slug: entry.label for entry in candidates.entries}
    rows = [{**common, **row, "stage": labels[row["stage"]]} for row in _rows(done.records)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _candidates(kind: Mapping[str, tuple[str, str]], epsilon: Sequence[str]) -> Suite:
    """A suite that tries each candidate by itself."""
    entries = [
        {"label": label, "attack": attack, "estimator": estimator}
        for label, (attack, estimator) in kind.items()
    ]
    fields = {"name": "candidates", "epsilon": list(epsilon), "entries": entries}
    return Suite.model_validate(fields)


def _rows(records: pd.DataFrame) -> list[dict[str, Any]]:
    """What each candidate broke and cost, one row for each; `stage` is its slug."""
    unattacked = records[records["attack"] == CLEAN]
    attacked = records[records["attack"] != CLEAN]
    rows = []
    for slug, some in attacked.groupby("attack", sort=False):
        surviving = survivors(pd.concat([unattacked, some]))
        rows.append(
            {
                "stage": str(slug),
                "estimator": some["estimator"].iloc[0],
                "broken": len(some) - len(surviving),
                "passes": float((some["forward_passes"] + some["backward_passes"]).mean()),
                "seconds": float(some["seconds"].sum()),
                "standing": written_ids(surviving),
            }
        )
    return rows
