"""Does the number of `standard` hold still where it must: budgets, balls, noise and batches."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.soundness import MORE, NETWORKS, SAMPLES, is_finished, root_of
from robustsnn import formats
from robustsnn.errors import InputError
from robustsnn.evaluation import Evaluation, prepare, run
from robustsnn.folders import write_atomically
from robustsnn.formats import CLEAN
from robustsnn.planning import classes_of
from robustsnn.statistics import wilson
from robustsnn.subjects import Images, Subject, TensorSet, images_of, subject_of
from robustsnn.suites import Suite, load_suite

STANDARD = "standard"
SEED = 0
#: Budgets are enough if doubling them moves the number by less than this share of the images,
#: and verdicts may depend on what is computed together for as many: one in 200, half a percent.
HALF_A_POINT = 200
#: At this size every image can be made grey, so that no network can tell them apart.
EVERYTHING = "0.5"
#: Draws of noise that are taken together.
DRAWS = 100
#: Images whose verdicts are compared between batches, and the sizes of those, the first of which
#: the others are set beside.
BATCHED, BATCHES = 100, (100, 7, 1)
#: What is scaled of an attack.
BUDGET = re.compile(r"\b(steps|queries)=(\d+)")
SCALES: Mapping[float, str] = {1: "as it is", 0.5: "halved", 2: "doubled"}
#: What a run says, and what follows from it and from the first variant of its network.
FACTS = (
    "part model samples variant basis epsilon batch classes clean forward_passes backward_passes "
    "seconds level standing"
).split()
COLUMNS = [*FACTS, *"accuracy ci_low ci_high lost gained differ".split()]
STAGES = (
    "model samples basis stage estimator reached broken left forward_passes backward_passes seconds"
).split()
#: Read as they were written: ids and digests can look like numbers.
TEXT: Mapping[str, type] = dict.fromkeys("basis epsilon level standing differ".split(), str)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """One way to evaluate: what the table and its run folder call it, and what differs.

    `batch_size` None is the usual one.
    """

    name: str
    folder: str
    suite: Suite = field(repr=False)
    batch_size: int | None = None
    backwards: bool = False


@dataclass(frozen=True)
class Case:
    """A network, its first so many images, and the names of the variants; None for all."""

    model: str
    samples: int
    variants: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Part:
    """A question: what is run for it on which networks.

    The first variant is what the others are set beside, image by image.
    """

    variants: Callable[[Suite], tuple[Variant, ...]]
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Study:
    """Rows of one part and network: of its runs, and of the stages of `standard` as it is."""

    rows: tuple[Row, ...]
    stages: tuple[Row, ...] = ()


# --- what is run ----------------------------------------------------------------------------------


def scaled(suite: Suite, factor: float) -> Suite:
    """The suite with that many times the steps and queries of every entry, at least one each.

    Only what an entry spells out is scaled. The offset of Square is a place on its schedule, not a
    budget, and stays.
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
    """The suite as it is, and with half and twice of every budget."""
    suites = {name: scaled(suite, factor) for factor, name in SCALES.items()}
    return tuple(Variant(name, some.name, some) for name, some in suites.items())


def everything(suite: Suite) -> tuple[Variant, ...]:
    """The suite where the ball holds an image that says nothing, every pixel at 1/2."""
    folder = f"{suite.name}-epsilon-{EVERYTHING}"
    return (Variant(f"epsilon {EVERYTHING}", folder, suite.at(epsilon=EVERYTHING)),)


def noise(suite: Suite) -> tuple[Variant, ...]:
    """One gradient step, and many draws of noise to be taken together, at the suite's size."""

    def of(name: str, attacks: Mapping[str, str]) -> Suite:
        entries = [{"label": label, "attack": attack} for label, attack in attacks.items()]
        size = {"norm": suite.norm, "epsilon": list(suite.epsilon)}
        return Suite.model_validate({"name": name, "entries": entries, **size})

    # The label names the stream of an entry: every one draws other noise.
    draws = {f"draw {number}": "uniform-noise" for number in range(1, DRAWS + 1)}
    return (
        Variant("FGSM", "fgsm", of("fgsm", {"FGSM": "fgsm"})),
        Variant(f"{DRAWS} draws of noise", "noise", of("noise", draws)),
    )


def batches(suite: Suite) -> tuple[Variant, ...]:
    """The suite with several numbers of images a pass, and with the images in reversed order."""
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
    "batches": Part(batches, tuple(_fashion("vgg5-snn", "vgg5-ann", samples=BATCHED))),
}  # fmt: skip


def cases_of(
    part: str, only: Sequence[str] | None = None, samples: int | None = None
) -> list[Case]:
    """What is run for a part, each network once if a number of images is given.

    Args:
        part: One of `PARTS`.
        only: Names of networks; None for all of the part's.
        samples: In place of the part's.
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
        parts: Of `PARTS`.
        folder: Where the run folders of all networks are.
        only: Names of networks; None for all.
        samples: Images of each network, in place of the parts'.
        data_root: Folder of the data sets' folders.
        say: Told what is done.
        finished_only: Read what is finished and run nothing.

    Raises:
        InputError: No such part, or a network that none of the parts is asked of.
    """
    for part in parts:
        if part not in PARTS:
            raise InputError(f"--parts {part}: choose of {', '.join(PARTS)}.")
    known = list(dict.fromkeys(case.model for part in parts for case in PARTS[part].cases))
    for name in only or ():
        if name not in known:
            raise InputError(f"--only {name}: choose of {', '.join(known)}.")
    suite = load_suite(STANDARD)
    found = []
    for part in parts:
        for case in cases_of(part, only, samples):
            subject = subject_of(case.model)
            root = None if data_root is None else root_of(data_root, subject.meta)
            images = images_of(None, subject, root=root, samples=case.samples)
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
        images: In the fixed order.
        variants: The part's first one before the others.
        folder: Where the run folders of all networks are.
        say: Told what is run.
        finished_only: Read what is finished and run nothing.
    """
    here = folder / f"{subject.name.replace('/', '-')}-{len(images)}"
    rows: list[Row] = []
    stages: list[Row] = []
    basis = ""
    for variant in variants:
        some = backwards(images) if variant.backwards else images
        plan = prepare(subject, some, variant.suite, seed=SEED, batch_size=variant.batch_size)
        # Runs of other weights, images or attacks than the first variant's have nothing to say to
        # it, although their rows may be called the same.
        basis = basis or plan.identity[:12]
        finished = is_finished(here / variant.folder)
        if finished_only and not finished:
            continue
        if not finished:
            say(f"{part}: {subject.name}, {len(images)} images, {variant.name}")
        done = run(plan, here / variant.folder, command=["benchmarks", "stability"])
        about = {"model": subject.name, "samples": len(images), "basis": basis}
        classes = classes_of(subject.load(), images, plan.device)
        rows.append({"part": part, **about, "classes": classes, **_facts(variant, done)})
        if part == "budgets" and variant.name == SCALES[1]:
            stages += [{**about, **stage} for stage in _stages(done)]
    return Study(tuple(rows), tuple(stages))


def backwards(images: Images) -> TensorSet:
    """The same images under the same ids, the last one first."""
    return TensorSet(
        images.name,
        images.tensor().flip(0),
        np.ascontiguousarray(images.labels[::-1]),
        np.ascontiguousarray(images.ids[::-1]),
        images.class_names,
        f"{images.fingerprint}-reversed",
    )


# --- runs to rows ---------------------------------------------------------------------------------


def standing(records: pd.DataFrame) -> list[int]:
    """Ids of the images that are right when clean and under everything, a tie being an error."""
    right = (records["prediction"] == records["label"]) & (records["margin"] < 0)
    every = right.groupby(records["image_id"]).all()
    return [int(image) for image in every.index[every]]


def _facts(variant: Variant, done: Evaluation) -> dict[str, Any]:
    records = done.records
    attacked = records[records["attack"] != CLEAN]
    images = records["image_id"].nunique()
    return {
        "variant": variant.name,
        "epsilon": ", ".join(variant.suite.epsilon),
        "batch": int(done.manifest["batch_size"]),
        "clean": len(standing(records[records["attack"] == CLEAN])) / images,
        "forward_passes": float(attacked["forward_passes"].sum() / images),
        "backward_passes": float(attacked["backward_passes"].sum() / images),
        "seconds": float(attacked["seconds"].sum()),
        "level": str(done.manifest["verdict"]["level"]),
        "standing": " ".join(map(str, standing(records))),
    }


def _stages(done: Evaluation) -> list[dict[str, Any]]:
    """What each stage reached, broke and cost, passes being those of the images it reached."""
    return [
        {
            "stage": stage["attack"],
            "reached": stage["attacked"],
            **{name: stage[name] for name in STAGES if name in stage},
        }
        for stage in done.manifest["ledger"]
    ]


def merged(rows: Sequence[Row], earlier: Sequence[Row]) -> list[Row]:
    """Rows of runs, and the earlier ones of variants that they say nothing of.

    What was run on another machine is kept unless the network, its images or the suite are others
    now: a number must be set beside one of the same kind.
    """
    fresh = {_key(row): row["basis"] for row in rows}
    said = {(*_key(row), row["variant"]) for row in rows}
    kept = [
        row
        for row in earlier
        if (*_key(row), row["variant"]) not in said
        and fresh.get(_key(row), row["basis"]) == row["basis"]
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
    """The table of `stability.csv`: intervals, and what differs from each network's first variant.

    `lost` are images that are robust there and not here, `gained` the other way round; both are
    empty where the first variant was not run.
    """
    suite = load_suite(STANDARD)
    names = {part: PARTS[part].variants(suite)[0].name for part in PARTS}
    first = {_key(row): _ids(row) for row in rows if row["variant"] == names.get(row["part"])}
    found = []
    for row in rows:
        left, before = _ids(row), first.get(_key(row))
        low, high = wilson(len(left), row["samples"])
        derived: dict[str, Any] = {
            "accuracy": len(left) / row["samples"],
            "ci_low": low,
            "ci_high": high,
            "lost": "",
            "gained": "",
            "differ": "",
        }
        if before is not None:
            derived["lost"], derived["gained"] = len(before - left), len(left - before)
            derived["differ"] = " ".join(map(str, sorted(before ^ left)))
        found.append({**row, **derived})
    return pd.DataFrame(found, columns=COLUMNS)


def _rows(table: pd.DataFrame) -> list[Row]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _key(row: Row) -> tuple[str, str, int]:
    return row["part"], row["model"], row["samples"]


def _ids(row: Row) -> set[int]:
    return {int(image) for image in row["standing"].split()}


def _index(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


# --- rows to a page -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aim:
    """Whether what a part asks for is so, None where nothing was asked yet, and a sentence.

    `complete` says that it was asked of everything that the part is about.
    """

    met: bool | None
    sentence: str
    complete: bool = True

    def __str__(self) -> str:
        word = {None: "Not run yet", True: "Met", False: "Not met"}[self.met]
        so_far = " so far" if self.met and not self.complete else ""
        return f"**{word}{so_far}.** {self.sentence}".strip()


NOTHING = Aim(None, "")


@dataclass(frozen=True)
class Pair:
    """A row beside the first variant of its network."""

    first: Row
    row: Row

    @property
    def moved(self) -> int:
        """Images by which the number is above that of the first variant."""
        return int(self.row["gained"]) - int(self.row["lost"])

    @property
    def still(self) -> bool:
        """Whether the number moved by less than half a point."""
        return HALF_A_POINT * abs(self.moved) < int(self.row["samples"])

    @property
    def agrees(self) -> bool:
        """Whether verdicts are the same on all but half a percent of the images."""
        return HALF_A_POINT * len(str(self.row["differ"]).split()) <= int(self.row["samples"])

    @property
    def points(self) -> float:
        """`moved` as a fraction of the images."""
        return self.moved / int(self.row["samples"])


def pairs(some: pd.DataFrame, variant: str | None = None) -> list[Pair]:
    """Rows of a part beside the first variants of their networks, where those were run.

    Args:
        some: Rows of one part.
        variant: Only rows of that name; None for all but the first ones.
    """
    found = []
    for _, group in some.groupby(["model", "samples"], sort=False):
        first, *others = _rows(group)
        if first["lost"] == "":
            continue
        found += [Pair(first, row) for row in others if variant in (None, row["variant"])]
    return found


def budgets_aim(some: pd.DataFrame) -> Aim:
    """Doubling every budget must hardly move the number."""
    asked = pairs(some, SCALES[2])
    if not asked:
        return NOTHING
    still = [pair for pair in asked if pair.still]
    most = max(asked, key=lambda pair: abs(pair.points))
    return Aim(
        len(still) == len(asked),
        "With twice of every budget robust accuracy moves by less than half a point in "
        f"{len(still)} of {formats.count(len(asked), 'comparison')}, at most by "
        f"{formats.points(most.points)} points ({_named(most.row)}).",
    )


def everything_aim(some: pd.DataFrame) -> Aim:
    """In a ball that holds everything no more may be left than chance."""
    if some.empty:
        return NOTHING
    rows = _rows(some)
    below = [row for row in rows if _at_chance(row)]
    most = max(rows, key=lambda row: float(row["accuracy"]))
    return Aim(
        len(below) == len(rows),
        f"At epsilon {EVERYTHING} robust accuracy is at or below chance on {len(below)} of "
        f"{formats.count(len(rows), 'network')}, at most {_percent(most['accuracy'])} % "
        f"({_named(most)}).",
    )


def noise_aim(some: pd.DataFrame) -> Aim:
    """Noise must not break more than a gradient step does."""
    asked = pairs(some)
    if not asked:
        return NOTHING
    fine = [pair for pair in asked if pair.moved >= 0]
    beaten = [_named(pair.row) for pair in asked if pair.moved < 0]
    said = f"; not on {formats.listing(beaten)}" if beaten else ""
    return Aim(
        not beaten,
        f"{DRAWS} draws of noise, the worst of them for each image, leave at least as much as "
        f"FGSM on {len(fine)} of {formats.count(len(asked), 'network')}{said}.",
    )


def batches_aim(some: pd.DataFrame) -> Aim:
    """What is computed together must hardly change a verdict."""
    asked = pairs(some)
    if not asked:
        return NOTHING
    fine = [pair for pair in asked if pair.agrees]
    images: dict[str, set[int]] = {}
    for pair in asked:
        ids = map(int, str(pair.row["differ"]).split())
        images.setdefault(_named(pair.row), set()).update(ids)
    differing = [
        f"{', '.join(map(str, sorted(ids)))} ({name})" for name, ids in images.items() if ids
    ]
    said = f"the images that differ are {'; '.join(differing)}" if differing else "none differs"
    return Aim(
        len(fine) == len(asked),
        "Verdicts by image agree for all but half a percent of the images in "
        f"{len(fine)} of {formats.count(len(asked), 'comparison')}; {said}.",
    )


AIMS: Mapping[str, tuple[str, Callable[[pd.DataFrame], Aim]]] = {
    "budgets": ("Half and twice of every budget", budgets_aim),
    "epsilon": ("A ball that holds everything", everything_aim),
    "noise": ("Noise and one gradient step", noise_aim),
    "batches": ("What is computed together", batches_aim),
}


def aims(table: pd.DataFrame) -> dict[str, Aim]:
    """What the table says of each part."""
    found = {}
    for part, (_, aim) in AIMS.items():
        some = table[table["part"] == part]
        found[part] = dataclasses.replace(aim(some), complete=not _missing(part, some))
    return found


def page(table: pd.DataFrame, stages: pd.DataFrame, command: str) -> str:
    """`stability.md`."""
    found = aims(table)
    epsilon = ", ".join(load_suite(STANDARD).epsilon)
    lines = [
        "# Stability",
        "",
        f"Made by `{command}`: the suite `{STANDARD}`, {formats.threat('Linf', epsilon)} unless "
        f"said otherwise, on the first images of the fixed order, seed {SEED}. Robust accuracy in "
        "%, with 95 % Wilson intervals; clean errors count as errors, and so does a tie at the "
        "top. *Lost* are images that are robust in the first row of a network and not in this "
        "one, *gained* the other way round; passes are forward and backward, a mean over all "
        "images.",
        "",
        *(f"- {title}: {found[part]}" for part, (title, _) in AIMS.items()),
    ]
    about = {"budgets": _budgets, "epsilon": _everything, "noise": _noise, "batches": _batches}
    for part, (title, _) in AIMS.items():
        some = table[table["part"] == part]
        lines += ["", f"## {title}", "", str(found[part])]
        if len(some):
            lines += ["", *about[part](some)]
        if part == "budgets" and len(stages):
            lines += ["", *_by_stage(stages)]
        missing = _missing(part, some)
        if missing and len(some):
            lines += ["", f"Not run yet: {formats.listing(missing)}."]
    return "\n".join([*lines, ""])


def _budgets(some: pd.DataFrame) -> list[str]:
    return [
        "Every `steps` and `queries` of the suite is scaled; the level is what the run "
        "says of its own number.",
        "",
        "| network | images | budgets | robust accuracy | points | less than half a point | lost "
        "| gained | forward / backward passes | seconds | level |",
        "|---|---:|---|---:|---:|---|---:|---:|---:|---:|---|",
        *(
            f"| {_start(row)} | {formats.points(pair.points) if pair else ''} "
            f"| {_yes(pair.still) if pair else ''} | {row['lost']} | {row['gained']} "
            f"| {_passes(row)} | {row['seconds']:,.0f} | {row['level']} |"
            for row, pair in _with_pairs(some)
        ),
    ]


def _everything(some: pd.DataFrame) -> list[str]:
    return [
        "| network | images | size | clean | robust accuracy | chance | at or below "
        "| forward / backward passes | seconds |",
        "|---|---:|---|---:|---:|---:|---|---:|---:|",
        *(
            f"| {row['model']} | {row['samples']} | {row['variant']} | {_percent(row['clean'])} "
            f"| {_interval(row)} | {_percent(1 / row['classes'])} | {_yes(_at_chance(row))} "
            f"| {_passes(row)} | {row['seconds']:,.0f} |"
            for row in _rows(some)
        ),
    ]


def _noise(some: pd.DataFrame) -> list[str]:
    return [
        "Each draw is uniform in the ball, and an image is robust if none of them fools it; FGSM "
        "follows the network's own surrogate on the cross-entropy, as it is by default.",
        "",
        "| network | images | attack | robust accuracy | points | at least as much as FGSM "
        "| lost | gained |",
        "|---|---:|---|---:|---:|---|---:|---:|",
        *(
            f"| {_start(row)} | {formats.points(pair.points) if pair else ''} "
            f"| {_yes(pair.moved >= 0) if pair else ''} | {row['lost']} | {row['gained']} |"
            for row, pair in _with_pairs(some)
        ),
    ]


def _batches(some: pd.DataFrame) -> list[str]:
    return [
        "What is varied is the most images that go through a network at once, in float32, for the "
        "clean images, every attack and the judge alike. A stage of the cascade that fewer images "
        "survive to makes smaller passes, padded to a power of two. *Reversed* hands the same "
        "images over with the last one first, so that each is computed with others.",
        "",
        "| network | images | computed together | most a pass | robust accuracy | lost | gained "
        "| all but half a percent agree | images that differ | seconds |",
        "|---|---:|---|---:|---:|---:|---:|---|---|---:|",
        *(
            f"| {row['model']} | {row['samples']} | {row['variant']} | {row['batch']} "
            f"| {_interval(row)} | {row['lost']} | {row['gained']} "
            f"| {_yes(pair.agrees) if pair else ''} "
            f"| {', '.join(row['differ'].split()) or 'none' if pair else ''} "
            f"| {row['seconds']:,.0f} |"
            for row, pair in _with_pairs(some)
        ),
    ]


def _by_stage(stages: pd.DataFrame) -> list[str]:
    lines = [
        "### What each stage does",
        "",
        "Of the suite as it is: images that reached a stage, that it broke, and that are left "
        "after it; passes and seconds are those of an image that reached it. The figure sums the "
        "passes.",
        "",
        "![Images left by passes](stages.png)",
        "",
    ]
    broken = stages.groupby("stage", sort=False)["broken"].sum()
    idle = [formats.attack(str(stage)) for stage in broken.index[broken == 0]]
    networks = stages.groupby(["model", "samples"], sort=False)
    lines += [
        f"In {formats.count(networks.ngroups, 'run')} every stage broke some image."
        if not idle
        else f"In {formats.count(networks.ngroups, 'run')} no image was broken by "
        f"{formats.listing(idle)}."
    ]
    for (model, samples), some in networks:
        lines += [
            "",
            f"{model}, {samples} images:",
            "",
            "| stage | estimator | reached | broken | left, % | forward / backward passes "
            "| seconds |",
            "|---|---|---:|---:|---:|---:|---:|",
            *(
                f"| {formats.attack(row['stage'])} | {row['estimator']} | {row['reached']} "
                f"| {row['broken']} | {_percent(row['left'])} | {_passes(row)} "
                f"| {row['seconds'] / max(row['reached'], 1):,.2f} |"
                for row in _rows(some)
            ),
        ]
    return lines


def _with_pairs(some: pd.DataFrame) -> list[tuple[Row, Pair | None]]:
    """Every row, with its pair if it has one."""
    known = {(*_key(pair.row), pair.row["variant"]): pair for pair in pairs(some)}
    return [(row, known.get((*_key(row), row["variant"]))) for row in _rows(some)]


def _missing(part: str, some: pd.DataFrame) -> list[str]:
    """Networks that are not in the table with all their variants."""
    suite = load_suite(STANDARD)
    run_already = set(some[["model", "samples", "variant"]].itertuples(index=False, name=None))
    missing = []
    for case in PARTS[part].cases:
        names = case.variants or [variant.name for variant in PARTS[part].variants(suite)]
        lacking = [name for name in names if (case.model, case.samples, name) not in run_already]
        if lacking:
            which = "" if len(lacking) == len(names) else f" ({', '.join(lacking)})"
            missing.append(f"{case.model} on {case.samples} images{which}")
    return missing


def _at_chance(row: Row) -> bool:
    return len(_ids(row)) * int(row["classes"]) <= int(row["samples"])


def _named(row: Row) -> str:
    return f"{row['model']}, {row['samples']} images"


def _start(row: Row) -> str:
    return f"{row['model']} | {row['samples']} | {row['variant']} | {_interval(row)}"


def _interval(row: Row) -> str:
    return f"{_percent(row['accuracy'])} {formats.bounds(row['ci_low'], row['ci_high'])}"


def _passes(row: Row) -> str:
    return f"{row['forward_passes']:,.0f} / {row['backward_passes']:,.0f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _yes(so: bool) -> str:
    return "yes" if so else "**no**"


def figure(stages: pd.DataFrame, path: Path) -> None:
    """What is left after each stage against the passes an image has cost until then."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(stages.groupby(["model", "samples"], sort=False))
    fig, axis = plt.subplots(figsize=(7.0, 4.0), layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0.0, 0.9, len(groups)))
    for colour, ((model, samples), some) in zip(colours, groups, strict=True):
        spent = (some["forward_passes"] + some["backward_passes"]) * some["reached"]
        axis.plot(
            spent.cumsum() / int(str(samples)), 100 * some["left"], "o-", color=colour,
            markersize=3, linewidth=1, label=f"{model}, {samples} images",
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xlabel("forward and backward passes of an image, the mean over all")
    axis.set_ylabel("images left, %")
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=7)
    fig.savefig(path, dpi=150)
    plt.close(fig)


# --- files ----------------------------------------------------------------------------------------


def read(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of an earlier table, none if there is no such file."""
    if not path.exists():
        return []
    table = pd.read_csv(path, keep_default_na=False, dtype=dict(TEXT))
    return _rows(table.reindex(columns=list(columns), fill_value=""))


def write(found: Sequence[Study], output: Path, command: str) -> pd.DataFrame:
    """Tables, page and figure of all that was run, now or before."""
    output.mkdir(parents=True, exist_ok=True)
    rows = merged([row for one in found for row in one.rows], read(output / "stability.csv", FACTS))
    table = tabled(rows)
    fresh = [row for one in found for row in one.stages]
    now = {(row["model"], row["samples"]) for row in fresh}
    before = [
        row
        for row in read(output / "stages.csv", STAGES)
        if (row["model"], row["samples"]) not in now
    ]
    # A ledger goes with the run that it is of.
    of = [
        (row["model"], row["samples"], row["basis"])
        for row in rows
        if row["part"] == "budgets" and row["variant"] == SCALES[1]
    ]
    kept = [row for row in [*before, *fresh] if (row["model"], row["samples"], row["basis"]) in of]
    kept.sort(key=lambda row: of.index((row["model"], row["samples"], row["basis"])))
    stages = pd.DataFrame(kept, columns=STAGES)
    for name, some in (("stability.csv", table), ("stages.csv", stages)):
        write_atomically(output / name, some.to_csv(index=False, float_format="%.6g").encode())
    write_atomically(output / "stability.md", page(table, stages, command).encode())
    if len(stages):
        figure(stages, output / "stages.png")
    return table
