"""Is the number of `standard` stable where it has to be: budgets, balls, noise and batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustsnn.common.statistics import wilson
from robustsnn.data.images import Images, TensorSet
from robustsnn.errors import InputError
from robustsnn.evaluation.meant import classes_of
from robustsnn.evaluation.plan import prepare
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.run import Evaluation, run
from robustsnn.evaluation.suites import Suite, load_suite
from robustsnn.models.subject import Subject, subject_of
from robustsnn.records.schema import CLEAN
from robustsnn.records.summary import survivors
from studies.shared import (
    MORE,
    NETWORKS,
    SAMPLES,
    first_images,
    is_finished,
    survivors_in,
    written_ids,
)

STANDARD = "standard"
SEED = 0
#: One image in 200 is half a percent. Budgets are large enough if doubling them moves the number by
#: less than this share of the images; the verdict may depend on the batch on at most this share.
HALF_A_POINT = 200
#: At this size every image can be made grey, so that no network can tell them apart.
EVERYTHING = "0.5"
#: Draws of noise, of which the worst one for each image counts.
DRAWS = 100
#: The number of images whose verdicts are compared between batches, and the sizes of the batches;
#: the first size is the one that the others are compared with.
BATCHED, BATCHES = 100, (100, 7, 1)
#: The fields of an attack that are scaled.
BUDGET = re.compile(r"\b(steps|queries)=(\d+)")
SCALES: Mapping[float, str] = {1: "as it is", 0.5: "halved", 2: "doubled"}
#: What a run says; `COLUMNS` adds what follows from it and the first variant of its network.
FACTS = (
    "part model samples variant basis epsilon batch classes clean forward_passes backward_passes "
    "seconds level standing"
).split()
COLUMNS = [*FACTS, *"accuracy ci_low ci_high lost gained differ".split()]
STAGES = (
    "model samples basis stage estimator reached broken left forward_passes backward_passes seconds"
).split()
#: Columns that are read as text, since ids and digests can look like numbers.
TEXT: Mapping[str, type] = dict.fromkeys("basis epsilon level standing differ".split(), str)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """One way to evaluate.

    Attributes:
        name: Its name in the table.
        folder: The name of its run folder.
        suite: The suite that it runs.
        batch_size: The number of images in one pass; None for the usual number.
        backwards: Whether the images are in reversed order.
    """

    name: str
    folder: str
    suite: Suite = field(repr=False)
    batch_size: int | None = None
    backwards: bool = False


@dataclass(frozen=True)
class Case:
    """A network, its number of images, and the names of its variants (None for all)."""

    model: str
    samples: int
    variants: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Part:
    """A question: the variants that are run for it, and the networks.

    The other variants are compared with the first one, image by image.
    """

    variants: Callable[[Suite], tuple[Variant, ...]]
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Study:
    """The rows of one part and network: of its runs, and of the stages of `standard` as it is."""

    rows: tuple[Row, ...]
    stages: tuple[Row, ...] = ()


# --- what is run ----------------------------------------------------------------------------------


def scaled(suite: Suite, factor: float) -> Suite:
    """The suite with the steps and queries of every entry multiplied by a factor, at least 1 each.

    Only what an entry spells out is scaled. The offset of Square is a position in its schedule and
    not a budget, so it is not scaled.
    """
    if factor == 1:
        return suite

    def budget(found: re.Match[str]) -> str:
        return f"{found[1]}={max(1, round(factor * int(found[2])))}"

    fields = suite.model_dump(mode="json")
    fields["name"] = f"{suite.name}-{SCALES.get(factor, f'times-{factor:g}')}"
    for entry in fields["entries"]:
        entry["attack"] = BUDGET.sub(budget, entry["attack"])
    return Suite.model_validate(fields)


def budgets(suite: Suite) -> tuple[Variant, ...]:
    """The suite as it is, with half of every budget, and with twice every budget."""
    suites = {name: scaled(suite, factor) for factor, name in SCALES.items()}
    return tuple(Variant(name, some.name, some) for name, some in suites.items())


def everything(suite: Suite) -> tuple[Variant, ...]:
    """The suite with a ball that holds an image without information, every pixel at 1/2."""
    folder = f"{suite.name}-epsilon-{EVERYTHING}"
    return (Variant(f"epsilon {EVERYTHING}", folder, suite.at(epsilon=EVERYTHING)),)


def noise(suite: Suite) -> tuple[Variant, ...]:
    """One gradient step, and many draws of noise taken together, at the size of the suite."""

    def of(name: str, attacks: Mapping[str, str]) -> Suite:
        entries = [{"label": label, "attack": attack} for label, attack in attacks.items()]
        size = {"norm": suite.norm, "epsilon": list(suite.epsilon)}
        return Suite.model_validate({"name": name, "entries": entries, **size})

    # The label of an entry names its random stream, so each entry draws different noise.
    draws = {f"draw {number}": "uniform-noise" for number in range(1, DRAWS + 1)}
    return (
        Variant("FGSM", "fgsm", of("fgsm", {"FGSM": "fgsm"})),
        Variant(f"{DRAWS} draws of noise", "noise", of("noise", draws)),
    )


def batches(suite: Suite) -> tuple[Variant, ...]:
    """The suite with several numbers of images in one pass, and with the images reversed."""
    of_size = (Variant(f"{n} a pass", f"{suite.name}-batch-{n}", suite, n) for n in BATCHES)
    size = BATCHES[0]
    return (
        *of_size,
        Variant(f"{size} a pass, reversed", f"{suite.name}-reversed", suite, size, backwards=True),
    )


def _fashion(*names: str, samples: int, variants: tuple[str, ...] | None = None) -> list[Case]:
    return [Case(f"fashion-mnist/{name}", samples, variants) for name in names]


_ALL = tuple(Case(name, SAMPLES) for name in NETWORKS)
PARTS: Mapping[str, Part] = {
    "budgets": Part(
        budgets,
        (
            *_fashion(
                *("vgg5-ann", "vgg5-snn", "vgg5-ann-at", "vgg5-snn-at", "resnet12-snn"),
                samples=SAMPLES,
            ),
            *_fashion(
                "vgg5-snn", "vgg5-ann-at", samples=MORE, variants=(SCALES[1], SCALES[2])
            ),
        ),
    ),
    "epsilon": Part(everything, _ALL),
    "noise": Part(noise, _ALL),
    "batches": Part(
        batches, tuple(_fashion("vgg5-snn", "vgg5-ann", "resnet12-snn", samples=BATCHED))
    ),
}  # fmt: skip


def cases_of(
    part: str, only: Sequence[str] | None = None, samples: int | None = None
) -> list[Case]:
    """The cases of a part; if a number of images is given, each network is a case only once.

    Args:
        part: One of `PARTS`.
        only: Names of networks; None for all networks of the part.
        samples: A number of images that replaces the numbers of the part.
    """
    some = [case for case in PARTS[part].cases if only is None or case.model in only]
    if samples is None:
        return some
    first = {case.model: case for case in reversed(some)}
    return [Case(name, samples, first[name].variants) for name in dict.fromkeys(reversed(first))]


def studies(
    parts: Sequence[str],
    folder: Path,
    only: Sequence[str] | None = None,
    samples: int | None = None,
    *,
    data_root: Path | None = None,
    say: Callable[[str], None] = print,
    finished_only: bool = False,
) -> list[Study]:
    """Run, resume or read some parts.

    Args:
        parts: Names out of `PARTS`.
        folder: The folder of the run folders of all networks.
        only: Names of networks; None for all.
        samples: A number of images of each network that replaces the numbers of the parts.
        data_root: The folder of the data sets' folders.
        say: A function that prints progress.
        finished_only: Whether to read what is finished and run nothing.

    Raises:
        InputError: A part does not exist, or a network is in none of the parts.
    """
    for part in parts:
        if part not in PARTS:
            raise InputError(f"--parts {part}: choose from {', '.join(PARTS)}.")
    known = list(dict.fromkeys(case.model for part in parts for case in PARTS[part].cases))
    for name in only or ():
        if name not in known:
            raise InputError(f"--only {name}: choose from {', '.join(known)}.")
    suite = load_suite(STANDARD)
    found = []
    for part in parts:
        for case in cases_of(part, only, samples):
            subject = subject_of(case.model)
            images = first_images(subject, case.samples, data_root, say, finished_only)
            if images is None:
                continue
            variants = [
                one
                for one in PARTS[part].variants(suite)
                if case.variants is None or one.name in case.variants
            ]
            found.append(
                study(part, subject, images, variants, folder, say=say, finished_only=finished_only)
            )
    return found


def study(
    part: str,
    subject: Subject,
    images: Images,
    variants: Sequence[Variant],
    folder: Path,
    *,
    say: Callable[[str], None] = print,
    finished_only: bool = False,
) -> Study:
    """Run, resume or read the variants of one part on one network.

    Args:
        part: One of `PARTS`.
        subject: The network.
        images: The images in the fixed order.
        variants: The variants, with the first one of the part before the others.
        folder: The folder of the run folders of all networks.
        say: A function that prints progress.
        finished_only: Whether to read what is finished and run nothing.
    """
    here = folder / f"{subject.name.replace('/', '-')}-{len(images)}"
    rows: list[Row] = []
    stages: list[Row] = []
    basis = ""
    for variant in variants:
        some = backwards(images) if variant.backwards else images
        plan = prepare(
            Request.of(subject, some, variant.suite, seed=SEED, batch_size=variant.batch_size)
        )
        # A run of other weights, images or attacks cannot be compared with the first variant,
        # although their rows may have the same name. The identity tells them apart.
        basis = basis or plan.identity[:12]
        finished = is_finished(here / variant.folder)
        if finished_only and not finished:
            continue
        if not finished:
            say(f"{part}: {subject.name}, {len(images)} images, {variant.name}")
        done = run(plan, here / variant.folder, command=["studies", "stability"])
        about = {"model": subject.name, "samples": len(images), "basis": basis}
        classes = classes_of(subject.load(), images, plan.device)
        rows.append({"part": part, **about, "classes": classes, **_facts(variant, done)})
        if part == "budgets" and variant.name == SCALES[1]:
            stages += [{**about, **stage} for stage in _stages(done)]
    return Study(tuple(rows), tuple(stages))


def backwards(images: Images) -> TensorSet:
    """The same images with the same ids, in reversed order."""
    return TensorSet(
        images.name,
        images.tensor().flip(0),
        np.ascontiguousarray(images.labels[::-1]),
        np.ascontiguousarray(images.ids[::-1]),
        images.class_names,
        f"{images.fingerprint}-reversed",
    )


# --- runs to rows ---------------------------------------------------------------------------------


def _facts(variant: Variant, done: Evaluation) -> dict[str, Any]:
    records = done.records
    attacked = records[records["attack"] != CLEAN]
    images = records["image_id"].nunique()
    return {
        "variant": variant.name,
        "epsilon": ", ".join(variant.suite.epsilon),
        "batch": done.manifest.batch_size,
        "clean": len(survivors(records[records["attack"] == CLEAN])) / images,
        "forward_passes": float(attacked["forward_passes"].sum() / images),
        "backward_passes": float(attacked["backward_passes"].sum() / images),
        "seconds": float(attacked["seconds"].sum()),
        "level": done.manifest.level,
        "standing": written_ids(survivors(records)),
    }


def _stages(done: Evaluation) -> list[dict[str, Any]]:
    """What each stage reached, broke and cost; its passes are those of the images it reached."""
    return [
        {
            "stage": stage["attack"],
            "reached": stage["attacked"],
            **{name: stage[name] for name in STAGES if name in stage},
        }
        for stage in done.manifest.ledger
    ]


def merged(rows: Sequence[Row], earlier: Sequence[Row]) -> list[Row]:
    """Rows of runs, with those earlier rows that they do not replace.

    A row of a run on another machine is kept unless the network, its images or the suite have
    changed, since only numbers of the same kind can be compared.
    """
    fresh = {key_of(row): row["basis"] for row in rows}
    said = {(*key_of(row), row["variant"]) for row in rows}
    kept = [
        row
        for row in earlier
        if (*key_of(row), row["variant"]) not in said
        and fresh.get(key_of(row), row["basis"]) == row["basis"]
    ]
    suite = load_suite(STANDARD)
    order = {name: [v.name for v in part.variants(suite)] for name, part in PARTS.items()}

    def place(row: Row) -> tuple[int, int, int, int]:
        return (
            _index(list(PARTS), row["part"]),
            row["samples"],
            _index(list(NETWORKS), row["model"]),
            _index(order.get(row["part"], []), row["variant"]),
        )

    return sorted([*kept, *rows], key=place)


def tabled(rows: Sequence[Row]) -> pd.DataFrame:
    """The table of `stability.csv`: rows with intervals and the difference from the first variant.

    `lost` counts the images that survive the first variant of the network and not this one,
    `gained` those that survive only this one. Both are empty where the first variant was not run.
    """
    suite = load_suite(STANDARD)
    names = {part: PARTS[part].variants(suite)[0].name for part in PARTS}
    first = {
        key_of(row): survivors_in(row) for row in rows if row["variant"] == names.get(row["part"])
    }
    found = []
    for row in rows:
        now, before = survivors_in(row), first.get(key_of(row))
        low, high = wilson(len(now), row["samples"])
        derived: dict[str, Any] = {
            "accuracy": len(now) / row["samples"],
            "ci_low": low,
            "ci_high": high,
            "lost": "",
            "gained": "",
            "differ": "",
        }
        if before is not None:
            derived["lost"], derived["gained"] = len(before - now), len(now - before)
            derived["differ"] = " ".join(map(str, sorted(before ^ now)))
        found.append({**row, **derived})
    return pd.DataFrame(found, columns=COLUMNS)


def rows_of(table: pd.DataFrame) -> list[Row]:
    """The rows of a table, as mappings."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def key_of(row: Row) -> tuple[str, str, int]:
    """The part, the network and the number of images, within which rows are compared."""
    return row["part"], row["model"], row["samples"]


def _index(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)
