"""What the stability study found: aims, page, figure and files."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from robustsnn.common import wording as formats
from robustsnn.common.files import write_atomically
from robustsnn.evaluation.suites import load_suite
from studies.shared import survivors_in
from studies.stability.study import (
    DRAWS,
    EVERYTHING,
    FACTS,
    HALF_A_POINT,
    PARTS,
    SCALES,
    SEED,
    STAGES,
    STANDARD,
    TEXT,
    Row,
    Study,
    key_of,
    merged,
    rows_of,
    tabled,
)


@dataclass(frozen=True)
class Aim:
    """What a part asks for, and what was found.

    Attributes:
        met: Whether it is so; None where nothing was run yet.
        sentence: What was found.
        complete: Whether all networks and variants of the part were run.
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
    """A row and the row of the first variant of its network."""

    first: Row
    row: Row

    @property
    def moved(self) -> int:
        """The number of survivors above that of the first variant."""
        return int(self.row["gained"]) - int(self.row["lost"])

    @property
    def still(self) -> bool:
        """Whether robust accuracy moved by less than half a point."""
        return HALF_A_POINT * abs(self.moved) < int(self.row["samples"])

    @property
    def agrees(self) -> bool:
        """Whether the verdicts are the same on all but half a percent of the images."""
        return HALF_A_POINT * len(str(self.row["differ"]).split()) <= int(self.row["samples"])

    @property
    def points(self) -> float:
        """`moved` as a fraction of the images."""
        return self.moved / int(self.row["samples"])


def pairs(some: pd.DataFrame, variant: str | None = None) -> list[Pair]:
    """Rows of a part, each with that of the first variant of its network, where it was run.

    Args:
        some: Rows of one part.
        variant: The name of the variant to take; None for all variants but the first.
    """
    found = []
    for _, group in some.groupby(["model", "samples"], sort=False):
        first, *others = rows_of(group)
        if first["lost"] == "":
            continue
        found += [Pair(first, row) for row in others if variant in (None, row["variant"])]
    return found


def budgets_aim(some: pd.DataFrame) -> Aim:
    """Doubling every budget hardly moves the number, or the run says that the number may fall."""
    asked = pairs(some, SCALES[2])
    if not asked:
        return NOTHING
    moved = [pair for pair in asked if not pair.still]
    believed = [_named(pair.row) for pair in moved if pair.first["level"] == "A"]
    most = max(asked, key=lambda pair: abs(pair.points))
    levels = (
        f" The run as it is nevertheless has level A on {formats.listing(believed)}."
        if believed
        else " Where it moves further, the run as it is says so: no level A."
        if moved
        else ""
    )
    return Aim(
        not believed,
        "With twice of every budget robust accuracy moves by less than half a point in "
        f"{len(asked) - len(moved)} of {formats.count(len(asked), 'comparison')}, at most by "
        f"{formats.points(most.points)} points ({_named(most.row)}).{levels}",
    )


def everything_aim(some: pd.DataFrame) -> Aim:
    """In a ball that holds every image, robust accuracy is not above chance."""
    if some.empty:
        return NOTHING
    rows = rows_of(some)
    below = [row for row in rows if _at_chance(row)]
    most = max(rows, key=lambda row: float(row["accuracy"]))
    return Aim(
        len(below) == len(rows),
        f"At epsilon {EVERYTHING} robust accuracy is at or below chance on {len(below)} of "
        f"{formats.count(len(rows), 'network')}, at most {_percent(most['accuracy'])} % "
        f"({_named(most)}).",
    )


def noise_aim(some: pd.DataFrame) -> Aim:
    """Noise does not break more images than a gradient step."""
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
    """The images in the same batch hardly change a verdict."""
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
    where = formats.listing(list(dict.fromkeys(_named(pair.row) for pair in asked)))
    said = f"the images that differ are {'; '.join(differing)}" if differing else "none differs"
    return Aim(
        len(fine) == len(asked),
        "Verdicts by image agree for all but half a percent of the images in "
        f"{len(fine)} of {formats.count(len(asked), 'comparison')}, on {where}; {said}.",
    )


AIMS: Mapping[str, tuple[str, Callable[[pd.DataFrame], Aim]]] = {
    "budgets": ("Half and twice of every budget", budgets_aim),
    "epsilon": ("A ball that holds everything", everything_aim),
    "noise": ("Noise and one gradient step", noise_aim),
    "batches": ("What is computed together", batches_aim),
}


def aims(table: pd.DataFrame) -> dict[str, Aim]:
    """What the table says about each part."""
    found = {}
    for part, (_, aim) in AIMS.items():
        some = table[table["part"] == part]
        found[part] = dataclasses.replace(aim(some), complete=not _missing(part, some))
    return found


def page(table: pd.DataFrame, stages: pd.DataFrame, command: str) -> str:
    """The text of `stability.md`."""
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
            for row in rows_of(some)
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
        "survive to makes smaller passes, padded to a power of two, four at least. *Reversed* "
        "hands the same images over with the last one first, so that each is computed with others.",
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
                for row in rows_of(some)
            ),
        ]
    return lines


def _with_pairs(some: pd.DataFrame) -> list[tuple[Row, Pair | None]]:
    """Every row with its pair, or with None if it has no pair."""
    known = {(*key_of(pair.row), pair.row["variant"]): pair for pair in pairs(some)}
    return [(row, known.get((*key_of(row), row["variant"]))) for row in rows_of(some)]


def _missing(part: str, some: pd.DataFrame) -> list[str]:
    """The networks of which the table lacks some variants."""
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
    return len(survivors_in(row)) * int(row["classes"]) <= int(row["samples"])


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
    """Draw the survivors of each stage against the passes that an image has cost until then."""
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
    fig.legend(frameon=False, fontsize=7, loc="outside upper center", ncols=2)
    drawn = io.BytesIO()
    fig.savefig(drawn, dpi=150, format="png")
    write_atomically(path, drawn.getvalue())
    plt.close(fig)


# --- files ----------------------------------------------------------------------------------------


def read(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of an earlier table; there are none if the file does not exist."""
    if not path.exists():
        return []
    table = pd.read_csv(path, keep_default_na=False, dtype=dict(TEXT))
    return rows_of(table.reindex(columns=list(columns), fill_value=""))


def write(found: Sequence[Study], output: Path, command: str) -> pd.DataFrame:
    """Write the tables, the page and the figure of all that was run, now or earlier."""
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
    # The rows of a ledger are kept with the row of their run.
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
