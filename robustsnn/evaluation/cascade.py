"""Cascades: each entry of a suite attacks what the entries before it left, for each threat anew.

Who survives, where an attack may start and which estimator did best are read from the parts of
earlier entries and from nothing else, so a run that was killed goes on as one that was not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustsnn.common.kinds import BEST
from robustsnn.errors import InputError
from robustsnn.evaluation.batch import Batch, Networks, batches_of, labelled, part_name, together
from robustsnn.evaluation.judging import COUNTS, judged
from robustsnn.evaluation.plan import Plan, Task, estimator_name
from robustsnn.records.folder import RunFolder
from robustsnn.records.schema import CLEAN

#: Names the proposals of a part; they are no examples yet.
PROPOSAL = "proposal"

Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Probe:
    """An estimator and the margins `[image]` of what it proposed; NaN where it did not."""

    estimator: str
    margins: NDArray[np.float64]


@dataclass
class Line:
    """What one threat's entries have left so far of each image.

    Args:
        rows: Of each image, the row of the entry that broke it, else the clean one.
        alive: Whether it is right when clean and as ever proposed, `[image]`.
        margin: The largest that a proposal was judged to have, -inf without any.
        source: (task, batch, row) of that proposal, `[image, 3]`.
        probes: In the order of their entries.
    """

    rows: pd.DataFrame
    alive: NDArray[np.bool_]
    margin: NDArray[np.float64]
    source: NDArray[np.int64]
    probes: list[Probe] = field(default_factory=list)


def best_probe(probes: list[Probe]) -> str:
    """The estimator whose proposals have the largest mean margin, the first of several.

    The mean is over the images that survive all probes, or are attacked by all of them at least;
    without any it is the first one's.
    """
    survive = np.all([probe.margins < 0 for probe in probes], axis=0)
    if not survive.any():
        return probes[0].estimator

    def closeness(probe: Probe) -> float:
        # Exactly, so that neither the order of the images nor their batches can tip a tie.
        return math.fsum(probe.margins[survive].tolist())

    return max(probes, key=closeness).estimator


class Cascade:
    """How far a cascade is: each task is closed once all its batches are on disk.

    Args:
        plan: What is run.
        folder: With the clean images judged.
    """

    def __init__(self, plan: Plan, folder: RunFolder) -> None:
        self._plan, self._folder = plan, folder
        self._clean = range(len(batches_of(plan)))
        clean = pd.concat(
            [folder.read_part(CLEAN, batch) for batch in self._clean], ignore_index=True
        )
        right = (clean["prediction"] == clean["label"]) & (clean["margin"] < 0)
        self._lines = {
            task.size: Line(
                rows=_settled(clean),
                alive=right.to_numpy(dtype=bool, copy=True),
                margin=np.full(len(clean), -np.inf),
                source=np.full((len(clean), 3), -1, dtype=np.int64),
            )
            for task in plan.tasks
        }
        self._network = plan.subject.load()
        self._second = plan.substitute.load() if plan.substitute else None
        self._frames = [clean]
        self._attacked: list[NDArray[np.int64]] = []
        self._broken: list[NDArray[np.bool_]] = []

    def left(self, task: Task) -> int:
        """How many images survive under the threat of a task."""
        return int(self._lines[task.size].alive.sum())

    def batches(self, task: Task) -> list[NDArray[np.int64]]:
        """Positions of the images that a task attacks, pooled over the whole data set."""
        # A ball of radius 0 holds the image alone; there is nothing to look for.
        alive = np.flatnonzero(self._lines[task.size].alive & (task.threat.radius > 0))
        size = together(self._plan)
        return [alive[i : i + size] for i in range(0, len(alive), size)]

    def resolved(self, task: Task) -> Task:
        """The task with the estimator that it runs with."""
        if task.estimator != BEST:
            return task
        return dataclasses.replace(task, estimator=best_probe(self._lines[task.size].probes))

    def attack(self, task: Task, index: int, batch: int, networks: Networks) -> None:
        """Attack a batch of a resolved task's survivors, and store it.

        Raises:
            InputError: See `robustsnn.evaluation.judging.judged`.
        """
        plan = self._plan
        where = self.batches(task)[batch]
        images = torch.cat([plan.images.tensor(slice(i, i + 1)) for i in where.tolist()])
        labels = torch.from_numpy(plan.images.labels[where]).to(plan.device)
        some = Batch(images.to(plan.device), labels, plan.images.ids[where].tolist(), labels)
        # Few survivors are not padded to many: the shape is that of the attack and of its judge.
        micro_batch = min(plan.batch_size, 1 << (len(where) - 1).bit_length())
        rows, proposals = judged(
            plan,
            task,
            networks,
            some,
            torch.ones_like(labels, dtype=torch.bool),
            micro_batch,
            self._start(task, where, some.images),
        )
        self._folder.write_part(part_name(index), batch, rows, {PROPOSAL: proposals.cpu().numpy()})

    def close(self, index: int) -> None:
        """Take in what a task, the next one, has found.

        Raises:
            InputError: Its parts are not there, or of other images.
        """
        plan, task = self._plan, self.resolved(self._plan.tasks[index])
        line, batches = self._lines[task.size], self.batches(task)
        name = estimator_name(task, self._network, self._second if task.substitute else None)
        rows = line.rows.assign(**labelled(plan, task, name))
        where = np.concatenate([*batches, np.empty(0, dtype=np.int64)]).astype(np.int64)
        parts = [self._folder.read_part(part_name(index), b) for b in range(len(batches))]
        margins = np.full(len(rows), np.nan)
        if parts:
            found = pd.concat(parts, ignore_index=True)
            if found["image_id"].tolist() != plan.images.ids[where].tolist():
                raise InputError(
                    f"{self._folder.parts} holds {task.label} on other images than those that "
                    "survive: remove the run folder and run again."
                )
            rows = _replaced(rows, where, found)
            margins[where] = found["margin"]
            broken = where[~(margins[where] < 0)]
            line.rows = _replaced(line.rows, broken, _settled(rows.iloc[broken]))
            line.alive[broken] = False
            at = np.concatenate(
                [[(index, b, r) for r in range(len(p))] for b, p in enumerate(parts)]
            )
            better = margins[where] > line.margin[where]
            line.margin[where[better]] = margins[where[better]]
            line.source[where[better]] = at[better]
        if task.probe:
            line.probes.append(Probe(task.estimator, margins))
        self._frames.append(rows)
        self._attacked.append(where)
        self._broken.append(~(margins < 0))

    def records(self) -> pd.DataFrame:
        """One row per image and closed task, clean first."""
        return pd.concat(self._frames, ignore_index=True)

    def examples(self) -> dict[str, NDArray[Any]]:
        """The images to keep, by name; a settled one is that of the entry that broke it."""
        _, found = self._folder.merged([(CLEAN, batch) for batch in self._clean])
        kept = len(found[CLEAN])
        shown = {line: found[CLEAN].copy() for line in self._lines}
        for index, task in enumerate(self._plan.tasks):
            now = shown[task.size].copy()
            where = self._attacked[index]
            size = together(self._plan)
            for batch in range(-(-int((where < kept).sum()) // size)):
                here = where[batch * size : (batch + 1) * size]
                here = here[here < kept]
                now[here] = self._folder.read_images(
                    part_name(index), batch, PROPOSAL, range(len(here))
                )
            found[f"adversarial/{task.key}"] = now
            found[f"prediction/{task.key}"] = self._frames[index + 1]["prediction"].to_numpy()[
                :kept
            ]
            gone = where[(where < kept) & self._broken[index][where]]
            shown[task.size][gone] = now[gone]
        return found

    def _start(self, task: Task, where: NDArray[np.int64], images: Tensor) -> Tensor:
        """The proposal of largest margin of each image, the image itself without any."""
        start = images.clone()
        sources = self._lines[task.size].source[where]
        for index, batch in np.unique(sources[sources[:, 0] >= 0][:, :2], axis=0).tolist():
            here = np.flatnonzero((sources[:, 0] == index) & (sources[:, 1] == batch))
            found = self._folder.read_images(
                part_name(index), batch, PROPOSAL, sources[here, 2].tolist()
            )
            start[torch.from_numpy(here)] = torch.from_numpy(found).to(start)
        return start


def attack_survivors(plan: Plan, folder: RunFolder, progress: Told) -> Cascade:
    """Run a cascade to its end, from where an earlier start was stopped.

    Args:
        plan: Of a suite that is a cascade.
        folder: With the clean images judged.
        progress: Told of every finished batch; how many there will be at most shrinks.

    Raises:
        InputError: An attack proposes no images, or a user's own one fails.
    """
    cascade = Cascade(plan, folder)
    judging = plan.subject.load()
    done = len(batches_of(plan))
    for index, task in enumerate(plan.tasks):
        batches = cascade.batches(task)
        ahead = sum(len(cascade.batches(later)) for later in plan.tasks[index:])
        missing = [b for b in range(len(batches)) if not folder.part(part_name(index), b).exists()]
        if missing:
            resolved = cascade.resolved(task)
            networks = Networks.of(plan, resolved, judging)
            what = f"{task.label} {task.threat.norm} {task.threat.epsilon}"
            what += f", {cascade.left(task)} of {len(plan.images)} images left"
        for batch in missing:
            cascade.attack(resolved, index, batch, networks)
            progress(what, done + batch + 1, done + ahead)
        done += len(batches)
        cascade.close(index)
    return cascade


def _settled(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows as later entries repeat them: nothing more is spent on these images."""
    return rows.assign(**dict.fromkeys((*COUNTS, "projected"), 0), seconds=0.0)


def _replaced(rows: pd.DataFrame, where: NDArray[np.int64], by: pd.DataFrame) -> pd.DataFrame:
    """The rows, those at some positions replaced."""
    if not len(where):
        return rows
    order = np.arange(len(rows))
    order[where] = len(rows) + np.arange(len(where))
    return pd.concat([rows, by], ignore_index=True).iloc[order].reset_index(drop=True)
