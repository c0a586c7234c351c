"""A run that stopped at code of the user's own goes on in its folder once that code was mended.

What was mended has another digest, and thus the run another identity. What the mended code had no
part in stays as it is: the clean images, and the attacks before the first one that it changes.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from robustsnn.common.content import files_in
from robustsnn.errors import InputError
from robustsnn.evaluation.batch import part_name
from robustsnn.evaluation.digests import run_identity
from robustsnn.evaluation.earlier import refuse_other_versions
from robustsnn.evaluation.header import manifest_of
from robustsnn.evaluation.identity import computed
from robustsnn.evaluation.plan import Plan
from robustsnn.records.folder import RunFolder, locked
from robustsnn.records.manifest import Manifest, read_manifest
from robustsnn.records.schema import MANIFEST


def take_over(output: Path, plan: Plan) -> None:
    """Let a folder hold the run of a plan, if it holds the same run before its code was mended.

    Every other folder is left as it is.

    Args:
        output: The run folder, which need not exist.
        plan: The plan.
    """
    if not (output / MANIFEST).is_file():
        return
    held = read_manifest(output)
    if held.done or held.identity == plan.identity or not _same_request(held, plan):
        return
    try:
        refuse_other_versions(output, held)
    except InputError:
        return
    folder = RunFolder(output)
    files = dict(plan.files)
    if [*held.files] == [*files] and _identity(plan, held.files) == held.identity:
        with locked(output):
            _keep_before(folder, held, plan)
    elif held.files == files and held.basis not in ("", plan.basis) and not _attacked(folder):
        # Another network, of which only the clean images were judged.
        with locked(output):
            shutil.rmtree(folder.parts, ignore_errors=True)
            (output / MANIFEST).unlink()


def _same_request(held: Manifest, plan: Plan) -> bool:
    """Whether a run was asked for as a plan is, whatever the code holds by now."""
    asked = (plan.subject.name, plan.images.fingerprint, len(plan.images), plan.suite.digest())
    given = (held.model, held.data_fingerprint, held.samples, held.suite_sha256)
    return given == asked and (held.seed, held.save_images) == (plan.seed, plan.save_images)


def _identity(plan: Plan, files: dict[str, str]) -> str:
    """The identity that the run of a plan would have with other contents of the user's files."""
    function, suite = plan.function, plan.suite
    return run_identity(
        model=[plan.subject.identity, function.digest] if function else plan.subject.identity,
        data=[plan.images.fingerprint, plan.images.name, len(plan.images)],
        suite=[suite.name, suite.version, suite.digest(), [*files.values()]],
        substitute=computed(plan.substitute, plan.images) if plan.substitute else None,
        seed=plan.seed,
        save_images=plan.save_images,
    )


def _attacked(folder: RunFolder) -> bool:
    """Whether a batch of an attack is finished."""
    return any(folder.parts.glob(f"{part_name(0)[:-3]}*.parquet"))


def _keep_before(folder: RunFolder, held: Manifest, plan: Plan) -> None:
    """Drop what the mended files had a part in, and write the manifest of the run with them."""
    mended = {path for path, digest in plan.files if held.files[path] != digest}
    named: dict[str, set[str]] = defaultdict(set)
    rules: dict[str, set[str]] = defaultdict(set)
    for entry in plan.suite.entries:
        # Entries for networks of different kinds may share a label.
        named[entry.slug] |= {str(path) for path in files_in(entry.attack)}
        rules[entry.slug] |= {str(path) for path in files_in(entry.estimator)}
    first = next(
        index
        for index, task in enumerate(plan.tasks)
        if mended & (named[task.family] | rules[task.family])
    )
    for index in range(first, len(plan.tasks)):
        for part in folder.parts.glob(f"{part_name(index)}.*"):
            part.unlink()
    changes: dict[str, Any] = {
        "identity": plan.identity,
        "basis": plan.basis,
        "files": dict(plan.files),
    }
    if any(mended & files for files in rules.values()):
        for piece in folder.parts.glob("probe-*"):
            piece.unlink()
        changes |= {"probe": None, "probe_cost": {}}
    # Last, so that a kill leaves the folder to the run that it was of.
    folder.write_manifest(held.but(**changes, stages=manifest_of(plan).stages))
