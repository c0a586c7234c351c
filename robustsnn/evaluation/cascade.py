"""Cascades: each entry of a suite attacks the survivors of those before it, at each size anew.

Which images survive, where an attack may start and which estimator did best is read from the parts
of earlier entries and from nothing else, so that a run that was killed goes on like one that was
not.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustsnn.common.kinds import BEST
from robustsnn.errors import InputError
from robustsnn.evaluation.batch import PROPOSAL, Batch, batches_of, labelled, part_name, together
from robustsnn.evaluation.diagnose import inner_readings
from robustsnn.evaluation.judging import COUNTS
from robustsnn.evaluation.plan import Plan, Task, estimator_name
from robustsnn.evaluation.rounds import Round, rest_after, sampled
from robustsnn.models.reading import Reading
from robustsnn.records.folder import RunFolder
from robustsnn.records.schema import CLEAN, Size


@dataclass(frozen=True)
class Ranked:
    """An estimator that a probe ranks against others.

    Args:
        estimator: The estimator.
        margins: The margins of the proposals made with it, `[image]`; NaN for an image that the
            probe did not attack.
    """

    estimator: str
    margins: NDArray[np.float64]


@dataclass
class Progression:
    """How far a cascade is with each image at one norm and size.

    Args:
        rows: The row of the entry that broke each image, or its clean row for a survivor.
        surviving: Whether each image survived so far: it is right when clean and in every proposal,
            bool `[image]`.
        margin: The largest margin of a proposal for each image, `[image]`; -inf without any.
        source: The task, the batch and the row of that proposal, `[image, 3]`.
        probes: The estimators that were ranked, in the order of their entries.
    """

    rows: pd.DataFrame
    surviving: NDArray[np.bool_]
    margin: NDArray[np.float64]
    source: NDArray[np.int64]
    probes: list[Ranked] = field(default_factory=list)


def best_probe(probes: list[Ranked]) -> str:
    """The estimator whose proposals have the largest mean margin; the first one of equals.

    The mean is over the images that every probe attacked and that survived all of them. If there
    are none, it is the estimator of the first probe.

    Examples:
        >>> probes = [Ranked("a", np.array([-2.0, 1.0])), Ranked("b", np.array([-1.0, 0.5]))]
        >>> best_probe(probes)
        'b'
    """
    survive = np.all([probe.margins < 0 for probe in probes], axis=0)
    if not survive.any():
        return probes[0].estimator

    def closeness(probe: Ranked) -> float:
        # Summed exactly, so that neither the order of the images nor their batches decide a tie.
        return math.fsum(probe.margins[survive].tolist())

    return max(probes, key=closeness).estimator


class Cascade:
    """The state of a cascade; each task is closed once all its batches are on disk.

    Args:
        plan: The plan that is carried out.
        folder: The run folder, with the clean images judged.
    """

    def __init__(self, plan: Plan, folder: RunFolder) -> None:
        self._plan, self._folder = plan, folder
        self._clean = range(len(batches_of(plan)))
        clean = pd.concat(
            [folder.read_part(CLEAN, batch) for batch in self._clean], ignore_index=True
        )
        right = (clean["prediction"] == clean["label"]) & (clean["margin"] < 0)
        self._lines = {
            task.size: Progression(
                rows=_settled(clean),
                surviving=right.to_numpy(dtype=bool, copy=True),
                margin=np.full(len(clean), -np.inf),
                source=np.full((len(clean), 3), -1, dtype=np.int64),
            )
            for task in plan.tasks
        }
        self._network = plan.subject.load()
        self._second = plan.substitute.load() if plan.substitute else None
        # Where the network is read at each norm and size at which its score is blind.
        self._readings = inner_readings(plan, folder)
        self._frames = [clean]
        # The finished rounds of entries that have several, by the norm and size and the entry.
        self._rounds: dict[tuple[Size, str], list[Round]] = {}
        self._attacked: list[NDArray[np.int64]] = []
        self._broken: list[NDArray[np.bool_]] = []

    def left(self, task: Task) -> int:
        """The number of survivors at the norm and size of a task."""
        return int(self._lines[task.size].surviving.sum())

    def batches(self, task: Task) -> list[NDArray[np.int64]]:
        """The positions of the images that a task attacks, pooled over the whole data set.

        A task that waits for a finding attacks nothing without it, and a round nothing if the one
        before it found that the entry has converged, or that it breaks none of a sample.
        """
        # A ball of radius 0 holds only the image itself; there is nothing to look for.
        survivors = np.flatnonzero(self._lines[task.size].surviving & (task.threat.radius > 0))
        if not self._meant(task):
            survivors = survivors[:0]
        survivors = self._in_round(task, survivors)
        size = together(self._plan)
        return [survivors[i : i + size] for i in range(0, len(survivors), size)]

    def _meant(self, task: Task) -> bool:
        """Whether what a task waits for was found at its norm and size."""
        if task.when is None:
            return True
        at = task.size
        return at in self._readings and (task.reads is None or self._readings[at] is not None)

    def reading(self, task: Task) -> Reading | None:
        """Where the network is read under a task; None for its logits."""
        return None if task.reads is None else self._readings.get(task.size)

    def _in_round(self, task: Task, survivors: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the survivors that the round of a task attacks."""
        plan = self._plan
        before = self._rounds.get((task.size, task.family), [])[: task.round]
        if task.until is not None:
            asked = before[task.until.least - 1 :]
            done = any(task.until.reached(one.broken, len(plan.images)) for one in asked)
            return survivors[:0] if done else survivors
        if task.sample is None:
            return survivors
        if task.round == 0:
            return survivors[sampled(plan.images.ids[survivors], task.sample)]
        # Before the sample is attacked, all others may follow.
        return rest_after(before, survivors) if before else survivors

    def resolved(self, task: Task) -> Task:
        """The task with the estimator that it runs with, which replaces `best`."""
        if task.estimator != BEST:
            return task
        return dataclasses.replace(task, estimator=best_probe(self._lines[task.size].probes))

    def given(self, task: Task, batch: int) -> dict[str, Any]:
        """What the attack on a batch of the survivors takes, by name.

        Args:
            task: The task, resolved.
            batch: The number of the batch in the task.
        """
        plan = self._plan
        where = self.batches(task)[batch]
        images = torch.cat([plan.images.tensor(slice(i, i + 1)) for i in where.tolist()])
        labels = torch.from_numpy(plan.images.labels[where]).to(plan.device)
        some = Batch(images.to(plan.device), labels, plan.images.ids[where].tolist(), labels)
        return {
            "batch": some,
            "chosen": torch.ones_like(labels, dtype=torch.bool),
            # Few survivors are not padded to many; the attack and the judge run at one shape.
            "micro_batch": min(plan.batch_size, 1 << (len(where) - 1).bit_length()),
            "start": self._start(task, where, some.images),
        }

    def keep(self, index: int, batch: int, found: tuple[pd.DataFrame, Tensor]) -> None:
        """Store the records of a batch and its proposals, `[batch, ...]`.

        Args:
            index: The number of the task in the plan.
            batch: The number of the batch in the task.
            found: The records, and the proposals that were judged.
        """
        rows, proposals = found
        self._folder.write_part(part_name(index), batch, rows, {PROPOSAL: proposals.cpu().numpy()})

    def close(self, index: int) -> None:
        """Take in the results of the next task.

        Args:
            index: The number of the task in the plan.

        Raises:
            InputError: The parts of the task are not there, or hold other images.
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
            line.surviving[broken] = False
            at = np.concatenate(
                [[(index, b, r) for r in range(len(p))] for b, p in enumerate(parts)]
            )
            better = margins[where] > line.margin[where]
            line.margin[where[better]] = margins[where[better]]
            line.source[where[better]] = at[better]
        if task.probe:
            line.probes.append(Ranked(task.estimator, margins))
        if task.until is not None or task.sample is not None:
            now = Round(where, int(np.sum(~(margins[where] < 0))))
            self._rounds.setdefault((task.size, task.family), []).append(now)
        self._frames.append(rows)
        self._attacked.append(where)
        self._broken.append(~(margins < 0))

    def records(self) -> pd.DataFrame:
        """One row for each image and closed task, the clean images first."""
        return pd.concat(self._frames, ignore_index=True)

    def examples(self) -> dict[str, NDArray[Any]]:
        """The images to keep, by name; a broken image is that of the entry that broke it.

        The names are `adversarial/` and `prediction/` with the key of each task, next to those of
        the clean images.
        """
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
        """The proposal of largest margin for each image; the image itself if there is none."""
        start = images.clone()
        sources = self._lines[task.size].source[where]
        for index, batch in np.unique(sources[sources[:, 0] >= 0][:, :2], axis=0).tolist():
            here = np.flatnonzero((sources[:, 0] == index) & (sources[:, 1] == batch))
            found = self._folder.read_images(
                part_name(index), batch, PROPOSAL, sources[here, 2].tolist()
            )
            start[torch.from_numpy(here)] = torch.from_numpy(found).to(start)
        return start


def _settled(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows as later entries copy them: nothing more is spent on these images."""
    return rows.assign(**dict.fromkeys((*COUNTS, "projected"), 0), seconds=0.0)


def _replaced(rows: pd.DataFrame, where: NDArray[np.int64], by: pd.DataFrame) -> pd.DataFrame:
    """The rows, with those at some positions replaced."""
    if not len(where):
        return rows
    order = np.arange(len(rows))
    order[where] = len(rows) + np.arange(len(where))
    return pd.concat([rows, by], ignore_index=True).iloc[order].reset_index(drop=True)
