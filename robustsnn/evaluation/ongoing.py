"""A run that goes on: its cells, stage by stage, from where an earlier start was stopped.

What a stage attacks is read from what the stages before it left on disk and from nothing else, so
that a run that was killed goes on like one that was not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from robustsnn.common.files import unwritable
from robustsnn.diagnosis.diagnose import diagnose
from robustsnn.errors import InputError
from robustsnn.evaluation.activity import IMAGES
from robustsnn.evaluation.batch import Batch, batches_of, inputs_of, kept_of, part_name
from robustsnn.evaluation.cascade import Cascade
from robustsnn.evaluation.cells import Cell
from robustsnn.evaluation.diagnose import wanted, with_probe
from robustsnn.evaluation.earlier import identity_in, refuse_other_versions
from robustsnn.evaluation.expected import passes_of
from robustsnn.evaluation.finished import Evaluation
from robustsnn.evaluation.header import as_started, manifest_of, with_stages
from robustsnn.evaluation.memory import fit_to_memory
from robustsnn.evaluation.plan import Plan
from robustsnn.records.folder import RunFolder, open_folder
from robustsnn.records.manifest import Manifest
from robustsnn.records.schema import CLEAN, DONE


class Ongoing:
    """A run in its folder, which no other process may carry out inside the `with` block.

    Args:
        plan: The plan.
        output: The run folder.
        command: The command line that asked for the run; empty for a call from Python.

    Attributes:
        plan: The plan, at the batch size that the run was started with.
        found: The finished run; None while there are cells left.
        stored: The number of cells of the stages so far that were on disk already.
        ahead: The greatest number of cells that stages after the open one may have.
        expected: The passes that those cells are expected to take, a backward pass as two.

    Raises:
        InputError: The folder belongs to something else, or the network cannot be evaluated on
            the clean images.
    """

    def __init__(self, plan: Plan, output: Path, command: Sequence[str] = ()) -> None:
        self.plan, self.stored, self.ahead, self.expected = plan, 0, 0, 0.0
        self.found: Evaluation | None = None
        self._fresh = not output.exists()
        self._locks = contextlib.ExitStack()

        def begun() -> Manifest:
            # A network that cannot be evaluated leaves no folder behind.
            fitting, checks = fit_to_memory(plan)
            found = manifest_of(fitting, command)
            return found.but(
                batch_size_asked=plan.batch_size, preflight=[check.as_check() for check in checks]
            )

        self._folder = open_folder(output, identity_in(output, plan), begun)
        self._manifest = self._folder.manifest()
        if self._manifest.done:
            self._folder.tidy()
            self.found = _read(self._folder, self._manifest, reprinted=True)
        else:
            refuse_other_versions(output, self._manifest)

    def __enter__(self) -> Ongoing:
        if self.found is None:
            self._locks.enter_context(_locked(self._folder.path))
            # The batches on disk have the size that the run was started with.
            self.plan = as_started(self.plan, self._manifest)
            self._manifest = with_stages(self._manifest, self.plan)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._locks.close()
        if isinstance(error, InputError) and self._fresh:
            shutil.rmtree(self._folder.path, ignore_errors=True)
        if isinstance(error, OSError):
            raise unwritable(self._folder.path, error) from error

    def stages(self) -> Iterator[list[Cell]]:
        """The cells that are left, stage by stage.

        The cells of a stage can be computed in any order, and the next stage can be asked for once
        all of them are kept. After the last one, `found` is the finished run.

        Raises:
            InputError: The parts on disk are not those of this run.
        """
        if self.found is not None:
            return
        plan, folder = self.plan, self._folder
        per_task = len(batches_of(plan))
        self.ahead = per_task * len(plan.tasks)
        self.expected = len(plan.images) * sum(passes_of(task.attack) for task in plan.tasks)
        yield self._missing(self._clean())
        # From here on the folder holds something worth keeping.
        self._fresh = False
        yield from self._probe()
        cascade = Cascade(plan, folder) if plan.suite.cascade else None
        if cascade is None:
            self.ahead, self.expected = 0, 0.0
            yield self._missing([c for i in range(len(plan.tasks)) for c in self._attacks(i)])
        else:
            for index in range(len(plan.tasks)):
                later = [cascade.batches(task) for task in plan.tasks[index + 1 :]]
                self.ahead = sum(map(len, later))
                self.expected = sum(
                    sum(map(len, batches)) * passes_of(task.attack)
                    for batches, task in zip(later, plan.tasks[index + 1 :], strict=True)
                )
                yield self._missing(self._survivors(cascade, index))
                cascade.close(index)
        spikes: list[Any] = []
        yield [self._activity(spikes)]
        self._finish(cascade, *spikes[0])

    def _missing(self, cells: Iterable[tuple[str, int, Cell]]) -> list[Cell]:
        """The cells whose parts are not on disk."""
        every = list(cells)
        left = [
            cell for part, number, cell in every if not self._folder.part(part, number).exists()
        ]
        self.stored += len(every) - len(left)
        return left

    def _clean(self) -> Iterator[tuple[str, int, Cell]]:
        for batch, where in enumerate(batches_of(self.plan)):
            kept = kept_of(self.plan, where)
            yield (
                CLEAN,
                batch,
                Cell(
                    what="clean",
                    work="clean",
                    gather=partial(self._images, where, kept=kept),
                    keep=partial(self._keep, CLEAN, batch),
                    passes=where.stop - where.start,
                ),
            )

    def _images(self, where: slice, **more: Any) -> dict[str, Any]:
        images, labels, ids = inputs_of(self.plan, where)
        return {"images": images, "labels": labels, "ids": ids, **more}

    def _keep(self, part: str, batch: int, found: tuple[pd.DataFrame, dict[str, Any]]) -> None:
        self._folder.write_part(part, batch, *found)

    def _probe(self) -> Iterator[list[Cell]]:
        given = wanted(self.plan, self._folder, self._manifest)
        if not given:
            return
        found: list[Any] = [None] * len(given)
        yield [
            Cell(
                what="diagnosis",
                work="probe",
                gather=partial(dict, one),
                keep=partial(found.__setitem__, place),
                passes=1000.0,
            )
            for place, one in enumerate(given)
        ]
        self._manifest = with_probe(self._manifest, found)
        self._folder.write_manifest(self._manifest)

    def _attacks(self, index: int) -> Iterator[tuple[str, int, Cell]]:
        """The cells of a task that attacks every image."""
        plan, task = self.plan, self.plan.tasks[index]
        for batch, where in enumerate(batches_of(plan)):
            yield (
                part_name(index),
                batch,
                Cell(
                    what=f"{task.label} {task.threat.norm} {task.threat.epsilon}",
                    work="attack",
                    gather=partial(self._given, batch, where),
                    keep=partial(self._keep_attacked, index, batch, where),
                    passes=(where.stop - where.start) * passes_of(task.attack),
                    index=index,
                    estimator=task.estimator,
                ),
            )

    def _given(self, batch: int, where: slice) -> dict[str, Any]:
        images, labels, ids = inputs_of(self.plan, where)
        said = self._folder.read_part(CLEAN, batch)["prediction"].to_numpy(copy=True)
        some = Batch(images, labels, ids, torch.from_numpy(said).to(self.plan.device))
        chosen = some.clean == labels
        if self.plan.suite.attack_misclassified:
            chosen = torch.ones_like(chosen)
        return {
            "batch": some,
            "chosen": chosen,
            "micro_batch": self.plan.batch_size,
        }

    def _keep_attacked(
        self, index: int, batch: int, where: slice, found: tuple[pd.DataFrame, Tensor]
    ) -> None:
        rows, proposals = found
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
                    keep=partial(_keep_survivors, cascade, index, batch),
                    passes=len(where) * passes_of(task.attack),
                    index=index,
                    estimator=task.estimator,
                ),
            )

    def _activity(self, found: list[Any]) -> Cell:
        where = slice(0, min(IMAGES, len(self.plan.images)))

        def gather() -> dict[str, Any]:
            images, _, ids = inputs_of(self.plan, where)
            return {"images": images, "ids": ids}

        return Cell("spikes", "activity", gather, found.append, float(where.stop))

    def _finish(
        self, cascade: Cascade | None, activity: pd.DataFrame, measured: dict[str, Any]
    ) -> None:
        if cascade is None:
            batches = range(len(batches_of(self.plan)))
            parts = [CLEAN, *map(part_name, range(len(self.plan.tasks)))]
            order = [(part, batch) for part in parts for batch in batches]
            records, examples = self._folder.merged(order)
        else:
            records, examples = cascade.records(), cascade.examples()
        found = diagnose(self._manifest, records)
        manifest = self._manifest.but(
            **found.fields(),
            **measured,
            seconds=round(float(records["seconds"].sum()), 3),
            status=DONE,
        )
        self._folder.finish(manifest, records, found.results, activity, examples)
        self.found = _read(self._folder, self._folder.manifest())


def _keep_survivors(
    cascade: Cascade, index: int, batch: int, found: tuple[pd.DataFrame, Tensor]
) -> None:
    cascade.keep(index, batch, *found)


def _read(folder: RunFolder, manifest: Manifest, reprinted: bool = False) -> Evaluation:
    return Evaluation(
        folder=folder.path,
        manifest=manifest,
        records=folder.records(),
        results=folder.results(),
        activity=folder.activity(),
        reprinted=reprinted,
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep a second process out of a run folder inside the block.

    The system releases the lock even if this process dies.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(
            f"another process is running the evaluation in {path}: wait for it, or name another "
            "--output."
        ) from None
    try:
        yield
    finally:
        os.close(handle)
