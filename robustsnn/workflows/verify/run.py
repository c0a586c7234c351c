"""Verify a run: recompute what its folder claims, and say how much of it was seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from robustsnn.common.content import digest, files_in
from robustsnn.common.epsilon import parse_epsilon
from robustsnn.common.files import check_file, expanded
from robustsnn.data.images import Images
from robustsnn.diagnosis.diagnose import Diagnosis
from robustsnn.diagnosis.stages import Stage
from robustsnn.errors import InputError
from robustsnn.evaluation.digests import run_identity
from robustsnn.evaluation.identity import computed, function_in
from robustsnn.evaluation.meant import entries_for
from robustsnn.evaluation.options import Data
from robustsnn.evaluation.plan import (
    Plan,
    check_device,
    checked,
    files_of,
    tasks_of,
)
from robustsnn.evaluation.progress import Progress
from robustsnn.evaluation.suites import Suite
from robustsnn.models.batching import bounded
from robustsnn.models.function import Function
from robustsnn.models.subject import Subject
from robustsnn.records.folder import LARGEST, RunFolder
from robustsnn.records.manifest import Manifest, blaming, intact
from robustsnn.records.runs import odd_columns
from robustsnn.records.schema import CONDITION, OPERATIONS, Condition
from robustsnn.records.summary import summarise
from robustsnn.workflows.rediagnose import Unknowable, diagnosis_of, differences
from robustsnn.workflows.verify.again import attacked_again, on, one_step, some_of
from robustsnn.workflows.verify.asked import (
    Asked,
    Expected,
    asked_by,
    expected_of,
    mislabelled,
    other_version,
)
from robustsnn.workflows.verify.images import (
    Saved,
    at_hand,
    check_saved,
    held_by,
    odd_images,
    rescored,
)
from robustsnn.workflows.verify.measured import odd_activity, odd_preflight
from robustsnn.workflows.verify.model import odd_densities, subject_in, substitute_in, untrue
from robustsnn.workflows.verify.result import Verification
from robustsnn.workflows.verify.rows import (
    as_far_as_a_step,
    contradictory,
    incomplete,
    missing_columns,
    odd_rows,
    wrong_rows,
)

#: The steps from which an attack does at least as well as a single step.
SOME_STEPS = 5


@dataclass(frozen=True, eq=False)
class _Held:
    """What a run folder holds."""

    manifest: Manifest
    records: pd.DataFrame
    results: pd.DataFrame
    activity: pd.DataFrame
    saved: Saved
    edited: bool


def verify(
    folder: Path | str,
    *,
    model: str | None = None,
    weights: Path | None = None,
    substitute: str | None = None,
    data: Data = None,
    data_root: Path | str | None = None,
    device: str = "cpu",
    attack_again: int = 0,
    allow_code: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Recompute what a run claims, and score its saved images again with the model read anew.

    Identity, suite, attacks, records, every row and column of `results.csv`, flags, ledger, level,
    spikes and energy are computed again and compared, and the images with those of the data set
    where that is at hand.

    Args:
        folder: The folder of a finished run. A run that was made with `--save-images` holds all
            images, any other run a few.
        model: The place where the model lies now, if it was moved.
        weights: The state dict of a model given as `python.module:factory`.
        substitute: The place where the model of a black-box attacker lies now, if it was moved.
        data: The images of the run, if they were in memory.
        data_root: The folder of the data set; None for the sample that ships.
        device: The device that computes.
        attack_again: The number of images that the whole suite attacks again, drawn at random.
        allow_code: Whether files of the user's own that the suite names may be run for that.
        progress: The function that is told of every finished batch of these attacks.

    Raises:
        InputError: The run is not finished or is damaged, or its model is missing or another one.

    Examples:
        >>> import tempfile
        >>> import robustsnn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = robustsnn.evaluate(
        ...         "fashion-mnist/vgg5-ann", attack=["fgsm"], samples=4, output=folder
        ...     )
        ...     verify(folder).sentence
        'verified: all of 4 images.'
    """
    check_device(device)
    if attack_again < 0:
        raise InputError(f"--attack-again {attack_again}: give a number of at least 0.")
    folder = expanded(folder)
    places = (model, weights, substitute, None if data_root is None else Path(data_root))
    with blaming(folder):
        return _verified(
            folder, places, data, device, attack_again, allow_code=allow_code, progress=progress
        )


def _verified(
    folder: Path,
    places: tuple[str | None, Path | None, str | None, Path | None],
    data: Data,
    device: str,
    attack_again: int,
    *,
    allow_code: bool,
    progress: Progress | None,
) -> Verification:
    model, weights, substitute, data_root = places
    held = _held(folder)
    manifest, records = held.manifest, held.records
    subject = subject_in(manifest, model, weights, device)
    network = subject.load()
    saved = held_by(manifest, held.saved, network)
    whole, why = at_hand(manifest, subject, data, data_root)
    asked = asked_by(manifest, OPERATIONS in records)
    network = checked(subject, saved, device)
    second, gone = substitute_in(manifest, substitute, device)
    expected, left_out, unmade = expected_of(
        asked, network, second.load() if second else None, saved, device
    )
    plan = _plan(manifest, subject, second, saved, asked, expected, left_out, device)
    images = rescored(network, held.saved, records, manifest, device)
    diagnosed, unknowable, found = _diagnosis(held)
    activity, uncounted = odd_activity(manifest, held.activity, plan, whole)
    checks, unchecked = odd_preflight(manifest, plan, whole)
    claims = [
        *_edited(held),
        *mislabelled(manifest, asked),
        *untrue(manifest, plan, not gone),
        *_stages(manifest, expected),
        *odd_rows(manifest, records, expected),
        *odd_images(manifest, records, held.saved, whole),
        *images.claims,
        *activity,
        *checks,
        *one_step(plan, records, _strong(expected)),
    ]
    unseen = [*([why] if why else []), *([gone] if gone else []), *unmade, *uncounted, *unchecked]
    unseen += other_version(manifest)
    if not manifest.digest:
        unseen.append("the run is older and carries no digest of its manifest")
    differing = images.differing
    if attack_again:
        some = some_of(whole or saved, attack_again)
        again = on(_runnable(plan, asked, manifest, network, allow_code), some)
        _, said, fallen = attacked_again(again, records, progress)
        claims += said
        differing = (*differing, *(fallen if said else ()))
    return Verification(
        images=len(saved),
        verdicts=images.verdicts,
        differing=differing,
        outside=images.outside,
        rows=_rows(held, found),
        contradictory=contradictory(records),
        incomplete=incomplete(records, manifest.samples),
        diagnosis=diagnosed,
        unknowable=unknowable,
        densities=odd_densities(manifest, subject.meta, network),
        miscounted=images.miscounted,
        samples=manifest.samples,
        claims=tuple(claims),
        unseen=tuple(unseen),
        digest=manifest.digest,
    )


def _held(folder: Path) -> _Held:
    """What a run folder holds.

    Raises:
        InputError: The folder holds no run, or one that is not finished, or it is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"no run folder {folder}: name the folder of a finished evaluation.")
    run = RunFolder(folder)
    manifest = run.manifest()
    if not manifest.done:
        raise InputError(f"{folder} is not finished: run the same evaluation again first.")
    try:
        check_file(folder / "examples.safetensors", LARGEST, "run the evaluation again")
        saved = load_file(folder / "examples.safetensors")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{folder} is damaged ({error}): run the evaluation again.") from None
    records, results = run.records(), run.results()
    if lacking := missing_columns(records, results):
        raise InputError(f"{folder} is damaged ({lacking[0]}): run the evaluation again.")
    if odd := odd_columns(records):
        raise InputError(
            f"{folder} is damaged ({odd[0]} has another type): run the evaluation again."
        )
    if not len(records):
        raise InputError(f"{folder} is damaged (it has no records): run the evaluation again.")
    check_saved(saved, records, folder)
    edited = bool(manifest.digest) and not intact(folder)
    return _Held(manifest, records, results, run.activity(), saved, edited)


def _edited(held: _Held) -> list[str]:
    """Whether the manifest is another than the one that the run wrote."""
    said = ["manifest.json was edited after the run: its digest is another"] if held.edited else []
    versions = held.manifest.versions
    if held.manifest.digest and not {"robustsnn", "torch", "numpy", "python"} <= versions.keys():
        said.append("the versions of the packages are missing")
    return said


def _stages(manifest: Manifest, expected: Sequence[Expected]) -> list[str]:
    """Whether the attacks are what the manifest says that they were, one sentence each."""
    said = []
    sizes = tuple(dict.fromkeys(one.condition.epsilon for one in expected))
    if manifest.sizes != sizes:
        said.append(f"the sizes in the manifest are not those of the suite ({', '.join(sizes)})")
    if manifest.stages is None:
        return said
    stated = [Condition(*(str(row.get(name)) for name in CONDITION)) for row in manifest.stages]
    if stated != [one.condition for one in expected]:
        return [*said, "the stages in the manifest are not the attacks of the suite"]
    for row, one in zip(manifest.stages, expected, strict=True):
        if one.stage is not None and dict(row) != dict(one.stage):
            wrong = [k for k, v in one.stage.items() if row.get(k) != v] or ["a field"]
            said.append(f"{wrong[0]} of {one.condition.attack} is not as the suite has it")
    return said


def _strong(expected: Sequence[Expected]) -> list[Expected]:
    """The attacks that follow the network's own gradient as far as their size, in some steps."""
    found = []
    for one in expected:
        stage = None if one.stage is None else Stage.of(one.stage)
        if stage is None or not stage.own or not as_far_as_a_step(one):
            continue
        steps = 1 if one.spec.partition(":")[0].strip() == "fgsm" else stage.long
        if (steps == 1 or steps >= SOME_STEPS) and parse_epsilon(one.condition.epsilon) > 0:
            found.append(one)
    return found


def _diagnosis(held: _Held) -> tuple[tuple[str, ...], bool, Diagnosis | None]:
    """What of a run's diagnosis does not follow, whether nobody can tell, and what follows."""
    try:
        found = diagnosis_of(held.manifest, held.records)
    except Unknowable:
        return (), True, None
    return differences(held.manifest, found, held.results), False, found


def _rows(held: _Held, found: Diagnosis | None) -> int:
    """The number of rows of `results.csv` that do not follow."""
    if found is not None:
        return wrong_rows(held.results, found.results)
    due = summarise(held.records, held.manifest.data, {}, cascade=held.manifest.cascade)
    return wrong_rows(held.results, due, without=("steps", "restarts", "flags"))


def _runnable(
    plan: Plan, asked: Asked, manifest: Manifest, network: nn.Module, allow_code: bool
) -> Plan:
    """The plan with its attacks.

    Raises:
        InputError: An attack is a file that may not be run or is another one by now, cannot be
            made, or crafts on a network that is not at hand.
    """
    for path in files_named(manifest):
        if not allow_code:
            raise InputError(
                f"the suite of the run names Python files that --attack-again would run ({path}): "
                "look at them, then add --allow-code."
            )
        if digest(path) != manifest.files.get(str(path)):
            raise InputError(f"{path} is not the file that was run: put that one in its place.")
    entries = [
        entry.model_copy(update={"attack": spec})
        for entry, spec in zip(asked.suite.entries, asked.specs, strict=True)
    ]
    suite: Suite = asked.suite.model_copy(update={"entries": tuple(entries)})
    meant = entries_for(suite, network, plan.images, plan.device)
    tasks = tasks_of(suite, plan.images, meant)
    if plan.substitute is None and any(task.substitute for task in tasks):
        raise InputError("the suite attacks through a substitute: name it with --substitute.")
    return dataclasses.replace(plan, suite=suite, tasks=tasks)


def files_named(manifest: Manifest) -> tuple[Path, ...]:
    """The Python files that the suite of a run names; they are neither looked for nor run here."""
    specs = [
        str(entry.get(name, "")) for entry in manifest.entries for name in ("attack", "estimator")
    ]
    return tuple(dict.fromkeys(path for spec in specs for path in files_in(spec)))


def _plan(
    manifest: Manifest,
    subject: Subject,
    second: Subject | None,
    images: Images,
    asked: Asked,
    expected: Sequence[Expected],
    left_out: Sequence[str],
    device: str,
) -> Plan:
    """The evaluation of a manifest, planned anew, without its attacks."""
    specs = [
        (spec, entry.estimator)
        for spec, entry in zip(asked.specs, asked.suite.entries, strict=True)
    ]
    files = [(str(path), manifest.files.get(str(path), "")) for path in files_of(specs)]
    suite = [manifest.suite, manifest.suite_version, manifest.suite_sha256]
    black = second if any(one.black_box for one in expected) else None
    function = _function(manifest, subject, images)
    identity = run_identity(
        model=[subject.identity, function.digest] if function else subject.identity,
        data=[manifest.data_fingerprint, manifest.data, manifest.samples],
        suite=[*suite, [sha256 for _, sha256 in files]],
        substitute=computed(black, images) if black else None,
        seed=manifest.seed,
        save_images=manifest.save_images,
    )
    return Plan(
        subject=subject,
        images=images,
        suite=asked.suite,
        estimator=manifest.estimator,
        files=tuple(files),
        tasks=(),
        left_out=tuple(left_out),
        substitute=black,
        seed=manifest.seed,
        device=device,
        batch_size=bounded(manifest.batch_size, manifest.samples),
        recompute=manifest.recompute,
        save_images=manifest.save_images,
        identity=identity,
        function=function,
        # Without such a network there is none.
        basis=manifest.basis if function else "",
    )


def _function(manifest: Manifest, subject: Subject, images: Images) -> Function | None:
    """What the model of a run computes; as the manifest has it, if only rounding differs."""
    function = function_in(subject, images)
    said = manifest.function
    if function is None or said is None:
        return function
    same = said.get("contents") == function.contents
    numbers = said.get("numbers")
    if same and isinstance(numbers, list | tuple) and function.rounded_alike(numbers):
        return Function(**{**said, "numbers": tuple(numbers)})
    return function
