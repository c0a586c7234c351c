"""Runs of every network of the study, and the rows of its table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustsnn.common.statistics import wilson
from robustsnn.data.images import Images
from robustsnn.errors import InputError
from robustsnn.evaluation.plan import prepare
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.run import run
from robustsnn.evaluation.suites import Suite, load_suite
from robustsnn.models.subject import Subject, subject_of
from robustsnn.models.zoo import zoo_names
from robustsnn.records.runs import Run, load_runs
from robustsnn.records.schema import CLEAN, WORST_CASE
from robustsnn.reporting.comparison import energy, verdicts
from studies.claims.members import CONVERTED, DRAWN, Member
from studies.shared import first_images, is_finished, written_ids

#: The suites: the published attack, the strongest one for networks that do not and that do draw,
#: and the sizes of the figure.
PUBLISHED, STANDARD, RAND, CURVE = "hire-iccv21", "standard", "rand", "curve"
STRONGEST = (STANDARD, RAND)
#: The images of each suite.
SAMPLES: Mapping[str, int] = {PUBLISHED: 500, STANDARD: 200, RAND: 100, CURVE: 500}
#: The parts of the study, in the order in which they are run.
ZOO, EPSILON, STEPS, CONVERSION, GRID, OVERHEAD = (
    "zoo", "epsilon", "steps", "conversion", "grid", "overhead",
)  # fmt: skip
PARTS = (ZOO, EPSILON, STEPS, OVERHEAD, CONVERSION, GRID)
#: The time steps of converted networks, of which `rand` would take days for a hundred images; they
#: are attacked in a part of their own.
LONG = (16, 64, 256)

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where runs are kept, and what is known already.

    Args:
        runs: The folder of the run folders.
        data_root: The folder of the data sets' folders; None for the data that ship.
        earlier: The table as it was; rows of runs that are not repeated are taken from it.
        samples: The most images of any run; None for those of `SAMPLES`.
        say: A function that prints progress.
        finished_only: Whether to read what is finished and run nothing.
    """

    runs: Path
    data_root: Path | None = None
    earlier: pd.DataFrame | None = None
    samples: int | None = None
    say: Callable[[str], None] = print
    finished_only: bool = False

    def of(self, suite: str) -> int:
        """The number of images of a suite."""
        most = SAMPLES[suite]
        return most if self.samples is None else min(most, self.samples)

    def images(self, subject: Subject, samples: int) -> Images | None:
        """The first test images of a network's data set; None where they cannot and need not be."""
        return first_images(subject, samples, self.data_root, self.say, self.finished_only)

    def known(self, part: str, model: str) -> list[Row]:
        """The earlier rows of a part about a model."""
        if self.earlier is None or self.earlier.empty:
            return []
        same = (self.earlier["part"] == part) & (self.earlier["model"] == model)
        return [_row(row) for _, row in self.earlier[same].iterrows()]

    def measured(
        self,
        about: Row,
        subject: Subject,
        images: Images | None,
        suite: Suite,
        *,
        substitute: str | None = None,
        recompute: int | None = None,
    ) -> list[Row]:
        """The rows of one run, which is made, resumed, read or taken from the earlier table.

        Args:
            about: What every row says: part, model, data, architecture, kind, seed.
            subject: The network.
            images: The images; None where only earlier rows can be had.
            suite: The suite.
            substitute: The network of a black-box attacker, if the suite has one.
            recompute: The time steps of a segment, for networks of many steps.
        """
        known = [r for r in self.known(about["part"], about["model"]) if r["suite"] == suite.name]
        if images is None:
            return known
        plan = prepare(
            Request.of(
                subject,
                images,
                suite,
                substitute=substitute,
                recompute=recompute,
                # The board verifies these runs, for which it needs every image.
                save_images=suite.name in STRONGEST,
            )
        )
        if known and known[0].get("identity") == plan.identity:
            return known
        label = about["model"].replace("/", "-").replace(" ", "-")
        output = self.runs / label / f"{suite.name}-{len(images)}"
        if not is_finished(output):
            if self.finished_only:
                return []
            self.say(f"{about['model']}, {len(images)} images, {suite.name}")
        run(plan, output, command=["studies", "claims"])
        (read,) = load_runs([output]).runs
        return rows_of(read, {**about, "suite": suite.name, "identity": plan.identity})


def _row(row: pd.Series) -> Row:
    return {str(key): value for key, value in row.items() if pd.notna(value)}


def rows_of(read: Run, about: Row) -> list[Row]:
    """The rows of a finished run: one for each condition, and one for each spiking layer."""
    ids = np.sort(read.records["image_id"].unique())
    found = []
    for condition, right in verdicts(read).items():
        low, high = wilson(int(right.sum()), len(right))
        row = {
            **about, **condition._asdict(), "samples": len(right), "last_id": int(ids[-1]),
            "accuracy": float(right.mean()), "low": low, "high": high,
            "steps": read.time_steps, "encoding": read.manifest.encoding,
        }  # fmt: skip
        if condition.attack == CLEAN:
            row |= {"spikes": read.spikes_per_neuron_and_step, "energy_uj": energy(read)}
        else:
            row["standing"] = written_ids(ids[right].tolist())
        if condition.attack == WORST_CASE:
            row |= {"level": read.level}
            row["flags"] = " ".join(sorted({str(flag["flag"]) for flag in read.flags}))
        found.append(row)
    by_layer = read.activity.groupby("layer", sort=False)["spikes_per_neuron"].mean()
    for layer, spikes in by_layer.items():
        found.append({**about, "attack": "activity", "layer": str(layer), "value": float(spikes)})
    return found


def about(part: str, member: Member) -> Row:
    """What the rows of a network say about it."""
    return {
        "part": part,
        "model": member.name,
        "data": member.data,
        "architecture": member.architecture,
        "kind": member.kind,
        "seed": member.seed,
    }


def without_substitute(suite: Suite) -> Suite:
    """A suite without the entries that need a second network."""
    kept = tuple(entry for entry in suite.entries if not entry.substitute)
    return suite.model_copy(update={"entries": kept})


def zoo_rows(member: Member, bench: Bench) -> list[Row]:
    """A network under the published attack and under the strongest one.

    A network that draws is attacked with averaged gradients only: the published attack takes one
    draw for each of its steps. Converted networks of many steps are attacked in another part.
    """
    if member.kind == CONVERTED:
        return []
    subject = subject_of(member.name)
    said = about(ZOO, member)
    if bool(getattr(subject.load(), "stochastic", False)):
        return bench.measured(
            said, subject, bench.images(subject, bench.of(RAND)), load_suite(RAND)
        )
    published, substitute = load_suite(PUBLISHED), member.other_seed.name
    if substitute not in zoo_names():
        published, substitute = without_substitute(published), ""
    images = bench.images(subject, bench.of(PUBLISHED))
    rows = bench.measured(said, subject, images, published, substitute=substitute or None)
    images = bench.images(subject, bench.of(STANDARD))
    return rows + bench.measured(said, subject, images, load_suite(STANDARD))


def epsilon_rows(member: Member, bench: Bench) -> list[Row]:
    """A network at growing epsilon, for the figure; none for kinds that it does not show."""
    if member.kind not in DRAWN or member.architecture != "vgg5":
        return []
    subject = subject_of(member.name)
    images = bench.images(subject, bench.of(CURVE))
    return bench.measured(about(EPSILON, member), subject, images, load_suite(CURVE))


def strongest(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the zoo that say what the strongest attack leaves."""
    if table.empty:
        return table
    return table[(table["attack"] == WORST_CASE) & table["suite"].isin(STRONGEST)]


def checked_parts(given: Sequence[str]) -> tuple[str, ...]:
    """The parts, if each of them is one.

    Raises:
        InputError: A part is not known.
    """
    for part in given:
        if part not in PARTS:
            raise InputError(f"--parts {part}: choose from {', '.join(PARTS)}.")
    return tuple(given)


def collected(
    bench: Bench, members: Sequence[Member], parts: Sequence[str]
) -> Iterator[pd.DataFrame]:
    """The table after each network of each part, which grows; at least one table comes.

    Earlier rows of what is not asked for now are kept.
    """
    from studies.claims.overhead import overhead_rows
    from studies.claims.sweeps import conversion_rows, grid_rows, steps_rows

    of_member = {
        ZOO: zoo_rows,
        EPSILON: epsilon_rows,
        STEPS: steps_rows,
        CONVERSION: conversion_rows,
    }
    alone = {OVERHEAD: overhead_rows, GRID: grid_rows}
    rows: list[Row] = []
    if bench.earlier is not None:
        rows = [_row(row) for _, row in bench.earlier.iterrows()]
    yield _table(rows)
    for part in parts:
        if part in alone:
            rows = _with(rows, alone[part](bench))
            yield _table(rows)
            continue
        for member in members:
            found = of_member[part](member, bench)
            if found:
                rows = _with(rows, found)
                yield _table(rows)


def _with(rows: Sequence[Row], found: Sequence[Row]) -> list[Row]:
    """The rows with new ones, which take the place of all earlier ones of the same runs."""
    run_of = ("part", "model", "suite")
    fresh = {tuple(row[name] for name in run_of) for row in found}
    return [row for row in rows if tuple(row[n] for n in run_of) not in fresh] + list(found)


def _table(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows in the order of parts and networks; empty, with its columns, if there are none."""
    order = {part: place for place, part in enumerate(PARTS)}
    ordered = sorted(rows, key=lambda row: order.get(str(row["part"]), len(order)))
    columns = ["part", "model", "data", "architecture", "kind", "seed", "suite", "attack", "layer"]
    return pd.DataFrame(ordered) if ordered else pd.DataFrame(columns=columns)
