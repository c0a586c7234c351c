"""A run that goes on in its folder, from where an earlier start was stopped."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd

from robustsnn.common.files import unwritable
from robustsnn.diagnosis.diagnose import diagnose
from robustsnn.errors import InputError
from robustsnn.evaluation.activity import counted_images
from robustsnn.evaluation.batch import inputs_of
from robustsnn.evaluation.cells import Cell
from robustsnn.evaluation.course import Course
from robustsnn.evaluation.diagnose import wanted, with_probe
from robustsnn.evaluation.earlier import identity_in, refuse_other_versions
from robustsnn.evaluation.finished import Evaluation
from robustsnn.evaluation.header import as_started, manifest_of, with_stages
from robustsnn.evaluation.memory import fit_to_memory
from robustsnn.evaluation.mended import take_over
from robustsnn.evaluation.plan import Plan
from robustsnn.records.folder import RunFolder, locked, open_folder
from robustsnn.records.manifest import Manifest, blaming
from robustsnn.records.schema import DONE


class Ongoing:
    """A run in its folder, which no other process may carry out inside the `with` block.

    Args:
        plan: The plan.
        output: The run folder.
        command: The command line that asked for the run; empty for a call from Python.

    Attributes:
        course: The cells of the run, of the plan at the batch size that it was started with.
        found: The finished run; None while there are cells left.

    Raises:
        InputError: The folder belongs to something else, or the network cannot be evaluated on
            the clean images.
    """

    def __init__(self, plan: Plan, output: Path, command: Sequence[str] = ()) -> None:
        self.found: Evaluation | None = None
        take_over(output, plan)
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
        self.course = Course(plan, self._folder)
        self._manifest = self._folder.manifest()
        if self._manifest.done:
            self._folder.tidy()
            self.found = _read(self._folder, self._manifest, reprinted=True)
        else:
            refuse_other_versions(output, self._manifest)

    def __enter__(self) -> Ongoing:
        if self.found is None:
            self._locks.enter_context(locked(self._folder.path))
            # The batches on disk have the size that the run was started with.
            with blaming(self._folder.path):
                plan = as_started(self.course.plan, self._manifest)
                self._manifest = with_stages(self._manifest, plan)
            self.course = Course(plan, self._folder)
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
        """The cells that are left, stage by stage, as `Course` has them.

        After the last one, `found` is the finished run.

        Raises:
            InputError: The parts on disk are not those of this run.
        """
        if self.found is not None:
            return
        yield from self.course.clean()
        # From here on the folder holds something worth keeping.
        self._fresh = False
        yield from self._probe()
        yield from self.course.attacks()
        spikes: list[Any] = []
        plan = self.course.plan
        count = counted_images(plan)
        yield [
            Cell("spikes", "activity", partial(_images, plan, count), spikes.append, float(count))
        ]
        self._finish(*spikes[0])

    def _probe(self) -> Iterator[list[Cell]]:
        given = wanted(self.course.plan, self._folder, self._manifest)
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

    def _finish(self, activity: pd.DataFrame, measured: dict[str, Any]) -> None:
        records = self.course.records()
        found = diagnose(self._manifest, records)
        manifest = self._manifest.but(
            **found.fields(),
            **measured,
            seconds=round(float(records["seconds"].sum()), 3),
            status=DONE,
        )
        self._folder.finish(manifest, records, found.results, activity, self.course.examples())
        self.found = _read(self._folder, self._folder.manifest())


def _images(plan: Plan, count: int) -> dict[str, Any]:
    images, _, ids = inputs_of(plan, slice(0, count))
    return {"images": images, "ids": ids}


def _read(folder: RunFolder, manifest: Manifest, reprinted: bool = False) -> Evaluation:
    return Evaluation(
        folder=folder.path,
        manifest=manifest,
        records=folder.records(),
        results=folder.results(),
        activity=folder.activity(),
        reprinted=reprinted,
    )
