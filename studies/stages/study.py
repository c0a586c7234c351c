"""What each possible stage of a cascade adds, on training images, so that none is tuned on test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.tables import write_results
from robustsnn.common import wording as formats
from robustsnn.data.datasets import load_training
from robustsnn.data.images import Images, TensorSet
from robustsnn.evaluation.plan import kind_of
from robustsnn.evaluation.run import prepare, run
from robustsnn.evaluation.suites import Suite, load_suite
from robustsnn.models.subject import subject_of
from robustsnn.records.schema import CLEAN
from studies.soundness.study import is_finished, root_of

SAMPLES = 200
NETWORKS = (
    "fashion-mnist/vgg5-ann",
    "fashion-mnist/vgg5-snn",
    "fashion-mnist/vgg5-ann-at",
    "fashion-mnist/vgg5-snn-at",
    "fashion-mnist/resnet12-ann",
    "fashion-mnist/resnet12-snn",
)
#: Candidates by label: attack, and estimator where there are spikes.
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
    """Rows of one network, as `stages.csv` has them; runs what is not finished.

    Every candidate attacks, by itself, the training images that all probes of `standard` left.

    Args:
        model: A zoo name.
        folder: Where the run folders are.
        samples: The first so many training images.
        data_root: Folder of the data sets' folders.
        say: Told what is done.
        finished_only: Run nothing.
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
    # Not the version of `standard`: what comes after the probes changes nothing here.
    suite = standard.model_copy(update={"name": "probes", "version": 1, "entries": probes})
    first = run(prepare(subject, images, suite), here / "probes")
    left = standing(first.records)
    clean = float((first.records.query("attack == @CLEAN")["margin"] < 0).mean())
    kind = SPIKING if kind_of(subject.load()) == "snn" else PLAIN
    entries = [
        {"label": label, "attack": attack, "estimator": estimator}
        for label, (attack, estimator) in kind.items()
    ]
    fields = {"name": "candidates", "epsilon": list(standard.epsilon), "entries": entries}
    say(f"{model}, {len(left)} left, {len(entries)} candidates")
    done = run(
        prepare(subject, subset(images, left), Suite.model_validate(fields)), here / "candidates"
    )
    labels = {entry.slug: entry.label for entry in Suite.model_validate(fields).entries}
    attacked = done.records[done.records["attack"] != CLEAN]
    rows = [
        {
            "model": model,
            "samples": samples,
            "clean": clean,
            "probed": len(left) / samples,
            "stage": labels[str(attack)],
            "estimator": some["estimator"].iloc[0],
            "broken": int((some["margin"] >= 0).sum()),
            "passes": float((some["forward_passes"] + some["backward_passes"]).mean()),
            "seconds": float(some["seconds"].sum()),
            "standing": " ".join(map(str, some.loc[some["margin"] < 0, "image_id"])),
        }
        for attack, some in attacked.groupby("attack", sort=False)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def standing(records: pd.DataFrame) -> list[int]:
    """Ids of the images that are right when clean and under every attack.

    A tie is an error, and so is an image whose margin is NaN: its logits were not finite.
    """
    right = (records["prediction"] == records["label"]) & (records["margin"] < 0)
    every = right.groupby(records["image_id"], sort=False).all()
    return [int(image) for image in every.index[every]]


def subset(images: Images, ids: Sequence[int]) -> TensorSet:
    """Those of the images, in their order."""
    chosen = np.isin(images.ids, ids)
    return TensorSet(
        images.name,
        images.tensor()[chosen],
        images.labels[chosen],
        images.ids[chosen],
        images.class_names,
        f"{images.fingerprint}-{len(ids)}-{sum(ids)}",
    )


def greedy(some: pd.DataFrame, passes: float = np.inf) -> list[tuple[str, int]]:
    """The order in which stages break the most of what those before them left.

    Args:
        some: Rows of one network.
        passes: Stages that cost more by themselves are left out.

    Returns:
        Stages with how many images each adds, until none adds any.
    """
    left = {
        str(row["stage"]): set(str(row["standing"]).split())
        for _, row in some.iterrows()
        if row["passes"] <= passes
    }
    standing = set().union(*left.values()) if left else set()
    everything = round(float(some["probed"].iloc[0]) * int(some["samples"].iloc[0]))
    found: list[tuple[str, int]] = []
    count = everything
    while left:
        stage = min(left, key=lambda name: len(left[name] & standing))
        now = standing & left.pop(stage)
        if len(now) == count:
            break
        found.append((stage, count - len(now)))
        standing, count = now, len(now)
    return found


def page(table: pd.DataFrame, command: str) -> str:
    """`stages.md`."""
    lines = [
        "# Stages",
        "",
        f"Made by `{command}`. What one stage by itself breaks of the training images that the "
        "probes of `standard` left, L∞ 8/255, seed 0; the gradient stages of `standard` are put "
        "together from this, and not from test images; its probes and its search from the best "
        "point were not tried here. Passes are forward and backward, a mean over those images; "
        "*only* is what no other candidate breaks.",
        "",
    ]
    for (model, samples), some in table.groupby(["model", "samples"], sort=False):
        left = round(some["probed"].iloc[0] * samples)
        sets = {row["stage"]: set(str(row["standing"]).split()) for _, row in some.iterrows()}
        together = set.intersection(*sets.values())
        lines += [
            f"## {model}, {samples} training images",
            "",
            f"{100 * some['clean'].iloc[0]:.1f} % clean; the probes leave "
            f"{formats.count(left, 'image')}, all candidates together {len(together)}.",
            "",
            "| stage | broken | only | passes | seconds |",
            "|---|---:|---:|---:|---:|",
        ]
        for _, row in some.sort_values("broken", ascending=False, kind="stable").iterrows():
            others = [ids for name, ids in sets.items() if name != row["stage"]]
            only = set.intersection(*others) - sets[row["stage"]] if others else set()
            lines.append(
                f"| {row['stage']} | {row['broken']} | {len(only)} | {row['passes']:,.0f} "
                f"| {row['seconds']:,.0f} |"
            )
        order = ", ".join(f"{stage} ({added})" for stage, added in greedy(some))
        lines += ["", f"Greedily, with what each adds: {order or 'nothing'}.", ""]
    return "\n".join(lines)


def write(studies: Sequence[pd.DataFrame], output: Path, command: str) -> pd.DataFrame:
    """Table and page of all that was run, now or before."""
    filled = [one for one in studies if len(one)]
    table = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=COLUMNS)
    if (output / "stages.csv").exists():
        earlier = pd.read_csv(output / "stages.csv", keep_default_na=False)
        kept = earlier[~earlier["model"].isin(table["model"])]
        table = pd.concat([kept, table], ignore_index=True) if len(kept) else table
    write_results(output, "stages", table, page(table, command))
    return table
