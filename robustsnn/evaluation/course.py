"""The course of a run: the cells that judge its clean images and attack them, stage by stage.

What a stage attacks is read from what the stages before it left on disk and from nothing else, so
that a run that was killed goes on like one that was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from robustsnn.evaluation.batch import Batch, batches_of, inputs_of, kept_of, part_name
from robustsnn.evaluation.cascade import Cascade
from robustsnn.evaluation.cells import Cell
from robustsnn.evaluation.curve import found_before, keep_found
from robustsnn.evaluation.expected import passes_of
from robustsnn.evaluation.plan import Plan
from robustsnn.records.folder import RunFolder
from robustsnn.records.schema import CLEAN


class Course:
    """The cells of a plan whose parts lie in a folder.

    The cells of a stage can be computed in any order, and the next stage can be asked for once all
    of them are kept.

    Args:
        plan: The plan.
        folder: The folder of the parts.

    Attributes:
        plan: The plan.
        stored: The number of cells of the stages so far that were on disk already.
        ahead: The greatest number of cells that stages after the open one may have.
        expected: The passes that those cells are expected to take, a backward pass as two.
    """

    def __init__(self, plan: Plan, folder: RunFolder) -> None:
        self.plan, self._folder = plan, folder
        self.stored, self.ahead, self.expected = 0, 0, 0.0
        self._cascade: Cascade | None = None

    def clean(self) -> Iterator[list[Cell]]:
        """The stage of the clean images."""
        tasks = self.plan.tasks
        self.ahead = len(batches_of(self.plan)) * len(tasks)
        self.expected = len(self.plan.images) * sum(passes_of(task.attack) for task in tasks)
        yield self._missing(self._clean())

    def attacks(self) -> Iterator[list[Cell]]:
        """The stages of the attacks, with the clean images judged.

        Raises:
            InputError: The parts on disk are not those of this run.
        """
        tasks = self.plan.tasks
        if self.plan.suite.cascade:
            self._cascade = cascade = Cascade(self.plan, self._folder)
            for index in range(len(tasks)):
                later = [cascade.batches(task) for task in tasks[index + 1 :]]
                self.ahead = sum(map(len, later))
                self.expected = sum(
                    sum(map(len, batches)) * passes_of(task.attack)
                    for batches, task in zip(later, tasks[index + 1 :], strict=True)
                )
                yield self._missing(self._survivors(cascade, index))
                cascade.close(index)
            return
        # A size of a curve starts from what smaller ones found.
        apart = [[i] for i in range(len(tasks))] if self.plan.suite.curve else [range(len(tasks))]
        for place, indices in enumerate(apart):
            after = [i for later in apart[place + 1 :] for i in later]
            self.ahead = len(batches_of(self.plan)) * len(after)
            passes = sum(passes_of(tasks[i].attack) for i in after)
            self.expected = len(self.plan.images) * passes
            yield self._missing([cell for index in indices for cell in self._attacks(index)])

    def records(self) -> pd.DataFrame:
        """One row for each image and task, the clean images first; after the last stage."""
        return self._merged()[0] if self._cascade is None else self._cascade.records()

    def examples(self) -> dict[str, Any]:
        """The images to keep, by name; after the last stage."""
        return self._merged()[1] if self._cascade is None else self._cascade.examples()

    def _merged(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        batches = range(len(batches_of(self.plan)))
        parts = [CLEAN, *map(part_name, range(len(self.plan.tasks)))]
        return self._folder.merged([(part, batch) for part in parts for batch in batches])

    def _missing(self, cells: Iterable[tuple[str, int, Cell]]) -> list[Cell]:
        """The cells whose parts are not on disk."""
        every = list(cells)
        left = [cell for part, at, cell in every if not self._folder.part(part, at).exists()]
        self.stored += len(every) - len(left)
        return left

    def _clean(self) -> Iterator[tuple[str, int, Cell]]:
        for batch, where in enumerate(batches_of(self.plan)):
            yield (
                CLEAN,
                batch,
                Cell(
                    what="clean",
                    work="clean",
                    gather=partial(self._images, where, kept=kept_of(self.plan, where)),
                    keep=partial(self._keep_clean, batch),
                    passes=where.stop - where.start,
                ),
            )

    def _images(self, where: slice, **more: Any) -> dict[str, Any]:
        images, labels, ids = inputs_of(self.plan, where)
        return {"images": images, "labels": labels, "ids": ids, **more}

    def _keep_clean(self, batch: int, found: tuple[pd.DataFrame, dict[str, Any]]) -> None:
        self._folder.write_part(CLEAN, batch, *found)

    def _attacks(self, index: int) -> Iterator[tuple[str, int, Cell]]:
        """The cells of a task that attacks every image."""
        task = self.plan.tasks[index]
        for batch, where in enumerate(batches_of(self.plan)):
            yield (
                part_name(index),
                batch,
                Cell(
                    what=f"{task.label} {task.threat.norm} {task.threat.epsilon}",
                    work="attack",
                    gather=partial(self._given, index, batch, where),
                    keep=partial(self._keep_attacked, index, batch, where),
                    passes=(where.stop - where.start) * passes_of(task.attack),
                    index=index,
                    estimator=task.estimator,
                ),
            )

    def _given(self, index: int, batch: int, where: slice) -> dict[str, Any]:
        images, labels, ids = inputs_of(self.plan, where)
        said = self._folder.read_part(CLEAN, batch)["prediction"].to_numpy(copy=True)
        some = Batch(images, labels, ids, torch.from_numpy(said).to(self.plan.device))
        chosen = some.clean == labels
        if self.plan.suite.attack_misclassified:
            chosen = torch.ones_like(chosen)
        smaller = found_before(self.plan, self._folder, index, batch)
        if smaller is not None:
            chosen &= ~torch.tensor(smaller.fell, device=chosen.device)
        return {"batch": some, "chosen": chosen, "micro_batch": self.plan.batch_size}

    def _keep_attacked(
        self, index: int, batch: int, where: slice, found: tuple[pd.DataFrame, Tensor]
    ) -> None:
        rows, proposals = found
        smaller = found_before(self.plan, self._folder, index, batch)
        if smaller is not None:
            rows, proposals = smaller.kept(rows, proposals)
        keep_found(self.plan, self._folder, index, batch, rows, proposals)
        kept, task = kept_of(self.plan, where), self.plan.tasks[index]
        saved = {
            f"adversarial/{task.key}": proposals[:kept].cpu().numpy(),
            f"prediction/{task.key}": rows["prediction"].to_numpy()[:kept],
        }
        self._folder.write_part(part_name(index), batch, rows, saved if kept else {})

    def _survivors(self, cascade: Cascade, index: int) -> Iterator[tuple[str, int, Cell]]:
        """The cells of a task that attacks the survivors of those before it."""
        task = cascade.resolved(self.plan.tasks[index])
        what = f"{task.label} {task.threat.norm} {task.threat.epsilon}, "
        what += f"{cascade.left(task)} of {len(self.plan.images)} images left"
        for batch, where in enumerate(cascade.batches(task)):
            yield (
                part_name(index),
                batch,
                Cell(
                    what=what,
                    work="attack",
                    gather=partial(cascade.given, task, batch),
                    keep=partial(cascade.keep, index, batch),
                    passes=len(where) * passes_of(task.attack),
                    index=index,
                    estimator=task.estimator,
                    reading=cascade.reading(task),
                ),
            )
