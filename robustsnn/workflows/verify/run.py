"""Verify a run: score its saved images again, with the model read anew, and compare verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from robustsnn.adversary.threat import ThreatModel
from robustsnn.common.files import expanded
from robustsnn.errors import InputError
from robustsnn.evaluation.header import densities_of
from robustsnn.evaluation.plan import adapting, check_device
from robustsnn.models.scoring import verdict_and_operations
from robustsnn.models.subject import Subject, checkpoint_subject, subject_of
from robustsnn.records.folder import RunFolder
from robustsnn.records.manifest import Manifest
from robustsnn.records.schema import (
    CLEAN,
    CONDITION,
    OPERATIONS,
    RESULTS,
    RESULTS_TEXT,
    Condition,
)
from robustsnn.records.summary import summarise
from robustsnn.workflows.rediagnose import Unknowable, diagnosis_of, differences

#: The columns of `results.csv` that do not follow from the records.
_ELSEWHERE = ("data", "steps", "restarts", "flags")
#: Those that do, numbers and text.
MEASURED = [name for name in RESULTS if name not in (*RESULTS_TEXT, "seed")]
NAMED = [name for name in RESULTS if name not in (*MEASURED, *_ELSEWHERE, *CONDITION)]
#: The fraction of verdicts that may differ, because a spike at its threshold may flip on another
#: machine.
TOLERATED = 0.005
#: The share by which the synaptic operations of an image may differ, for the same reason: one spike
#: more can cause others.
RECOUNTED = 0.01


@dataclass(frozen=True)
class Verification:
    """The result of scoring a run again.

    Args:
        images: The number of saved images.
        verdicts: The number of verdicts that were compared.
        differing: The id of the image and the attack, with its norm and size, of each verdict that
            differs.
        outside: The number of saved images outside their ball or range.
        rows: The number of rows of `results.csv`, worst cases included, that do not follow from
            the records.
        contradictory: The number of records whose margin contradicts their prediction.
        incomplete: The number of attacks without exactly one record for each image of the run.
        diagnosis: The differences between the flags and the level that follow from manifest and
            records and those that the run states, one sentence each.
        unknowable: Whether the run is too old to be diagnosed again.
        densities: The differences between the weights that the model has and those that the run
            states, one sentence each.
        miscounted: The number of saved images whose synaptic operations are not the recorded ones;
            none for runs that did not count them.
    """

    images: int
    verdicts: int
    differing: tuple[tuple[int, str], ...]
    outside: int
    rows: int
    contradictory: int = 0
    incomplete: int = 0
    diagnosis: tuple[str, ...] = ()
    unknowable: bool = False
    densities: tuple[str, ...] = ()
    miscounted: int = 0

    @property
    def passed(self) -> bool:
        """Whether at most 0.5 % of verdicts and counts differ, and nothing else is wrong."""
        few = max(len(self.differing), self.miscounted) <= TOLERATED * self.verdicts
        rest = self.outside + self.rows + self.contradictory + self.incomplete
        return few and rest == 0 and not self.diagnosis and not self.densities

    @property
    def sentence(self) -> str:
        """The result in one line."""
        parts = [
            f"{len(self.differing)} of {self.verdicts} verdicts on {self.images} saved images "
            "differ"
        ]
        if self.outside:
            parts.append(f"{self.outside} saved images are outside their ball or range")
        if self.rows:
            parts.append(f"{self.rows} rows of results.csv do not follow from the records")
        if self.contradictory:
            parts.append(f"{self.contradictory} records have a margin of another prediction")
        if self.incomplete:
            parts.append(f"{self.incomplete} attacks have not a record of each image")
        if self.miscounted:
            parts.append(
                f"{self.miscounted} saved images take other synaptic operations than recorded"
            )
        parts += self.diagnosis
        parts += self.densities
        if self.unknowable:
            parts.append(
                "flags and level were not taken again, as the run is too old to say what its "
                "attacks were"
            )
        return f"{'verified' if self.passed else 'NOT verified'}: {'; '.join(parts)}."


def verify(
    folder: Path | str,
    *,
    model: str | None = None,
    weights: Path | None = None,
    device: str = "cpu",
) -> Verification:
    """Score the saved images of a run again, in batches of the same shape as in the run.

    Args:
        folder: The folder of a finished run. A run that was made with `--save-images` holds all
            images, any other run a few.
        model: The place where the model lies now, if it was moved.
        weights: The state dict of a model given as `python.module:factory`.
        device: The device that computes.

    Raises:
        InputError: The run is not finished or is damaged, or its model is missing or another one.

    Examples:
        >>> import tempfile
        >>> import robustsnn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = robustsnn.evaluate(
        ...         "fashion-mnist/vgg5-ann", attack=["fgsm"], samples=4, output=folder
        ...     )
        ...     verify(folder).passed
        True
    """
    check_device(device)
    folder = expanded(folder)
    run, manifest = _finished(folder)
    subject = _subject(manifest, model, weights, device)
    network = subject.load()
    records, results, saved = _held(run)
    ids = saved["image_id"].tolist()
    labels, clean = saved["label"].to(device), saved["clean"].to(device)
    differing: list[tuple[int, str]] = []
    outside = verdicts = miscounted = 0
    for group, rows in records.groupby(CONDITION, sort=False):
        about = Condition(*map(str, group))
        name = CLEAN if about.attack == CLEAN else f"adversarial/{about.attack}@{about.epsilon}"
        if name not in saved:
            raise InputError(f"{folder} holds no images {name!r}: run the evaluation again.")
        images = saved[name].to(device)
        if about.attack != CLEAN:
            threat = ThreatModel(about.norm, about.epsilon)
            outside += int((~threat.admits(images, clean)).sum())
        wrong, other = _differing(network, images, labels, ids, rows, manifest)
        miscounted += other
        verdicts += len(ids)
        condition = about.attack if about.attack == CLEAN else " ".join(about)
        differing += [(ids[i], condition) for i in wrong]
    differing_diagnosis, unknowable = _diagnosis(manifest, records, results)
    return Verification(
        images=len(ids),
        verdicts=verdicts,
        differing=tuple(differing),
        outside=outside,
        rows=_rows(records, results, manifest.cascade),
        contradictory=_contradictory(records),
        incomplete=_incomplete(records, manifest.samples),
        diagnosis=differing_diagnosis,
        unknowable=unknowable,
        densities=_densities(manifest, subject.meta, network),
        miscounted=miscounted,
    )


def _finished(folder: Path) -> tuple[RunFolder, Manifest]:
    """The run of a folder and its manifest.

    Raises:
        InputError: The folder holds no run, or one that is not finished.
    """
    if not folder.is_dir():
        raise InputError(f"no run folder {folder}: name the folder of a finished evaluation.")
    run = RunFolder(folder)
    manifest = run.manifest()
    if not manifest.done:
        raise InputError(f"{folder} is not finished: run the same evaluation again first.")
    return run, manifest


def _held(run: RunFolder) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, torch.Tensor]]:
    """The records, the results and the saved images of a run."""
    try:
        saved = load_file(run.path / "examples.safetensors")
        if missing := [name for name in ("image_id", "label", "clean") if name not in saved]:
            raise KeyError(missing[0])
        return run.records(), run.results(), saved
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"{run.path} is damaged ({error}): run the evaluation again.") from None


def _diagnosis(
    manifest: Manifest, records: pd.DataFrame, results: pd.DataFrame
) -> tuple[tuple[str, ...], bool]:
    """What of a run's diagnosis does not follow, and whether nobody can tell."""
    try:
        return differences(manifest, diagnosis_of(manifest, records), results), False
    except Unknowable:
        return (), True


def _differing(
    network: torch.nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    ids: list[int],
    rows: pd.DataFrame,
    manifest: Manifest,
) -> tuple[list[int], int]:
    """The positions of the images whose verdict is another, and how many have other operations."""
    size, seed, draws = manifest.batch_size, manifest.seed, manifest.draws
    said, found = verdict_and_operations(network, images, labels, ids, size, seed, draws)
    recorded = rows.drop_duplicates("image_id").set_index("image_id").reindex(ids)
    # Both are compared, because a tie at the top may be right by its class and is an error in
    # the worst case.
    wrong = (said.predictions.cpu().numpy() != recorded["prediction"].to_numpy()) | (
        (said.margins < 0).cpu().numpy() != (recorded["margin"] < 0).to_numpy()
    )
    miscounted = 0
    if OPERATIONS in recorded:
        counts = recorded[OPERATIONS].to_numpy(dtype=float)
        alike = np.isclose(counts, found.cpu().numpy(), rtol=RECOUNTED, atol=0, equal_nan=True)
        miscounted = int((~alike).sum())
    return [int(i) for i in wrong.nonzero()[0]], miscounted


def _subject(manifest: Manifest, model: str | None, weights: Path | None, device: str) -> Subject:
    if model is None and manifest.origin == "memory":
        raise InputError("the run's network was in memory: name its checkpoint with --model.")
    if model is not None:
        asked = model
        found = manifest.foreign
        # With other neurons within reach it would be another network by its digest.
        adapt = found and adapting("none" if found["left_alone"] else "auto")
        subject = subject_of(model, weights=weights, device=device, adapt=adapt or None)
    elif weights is not None:
        raise InputError("--weights goes with --model python.module:factory: name it too.")
    else:
        # The manifest may come from anybody, so what it names is looked up and never imported.
        asked = manifest.origin if Path(manifest.origin).is_dir() else manifest.model
        if ":" in asked and not Path(asked).exists():
            raise InputError(
                f"the run's network came from code ({asked}), which a manifest cannot make "
                "RobustSNN import: name it with --model (and --weights)."
            )
        subject = checkpoint_subject(asked, device=device)
    if subject.sha256 != manifest.checkpoint_sha256:
        raise InputError(
            f"{asked} is not the model of this run (sha256 {subject.sha256[:12]}, the run has "
            f"{manifest.checkpoint_sha256[:12]}): name the right one with --model."
        )
    return subject


def _densities(
    manifest: Manifest, meta: Mapping[str, Any], network: torch.nn.Module
) -> tuple[str, ...]:
    """What the run states about the weights of the model and is not so; nothing if it is older."""
    if manifest.densities is None:
        return ()
    found = {row["layer"]: row for row in densities_of(network)}
    stated = {row["layer"]: row for row in manifest.densities}
    differing = [
        f"the run states {_weights(stated.get(layer))} for {layer}, the model has "
        f"{_weights(found.get(layer))}"
        for layer in {**stated, **found}
        if stated.get(layer) != found.get(layer)
    ]
    # Only a checkpoint knows what it had before channels were removed.
    dense = meta.get("dense_weights")
    if meta and dense != manifest.dense_weights:
        differing.append(
            f"the run states {manifest.dense_weights} weights before channels were removed, the "
            f"checkpoint {dense}"
        )
    return tuple(differing)


def _weights(row: Mapping[str, Any] | None) -> str:
    return "no weights" if row is None else f"{row['kept']} of {row['weights']} weights"


def _rows(records: pd.DataFrame, results: pd.DataFrame, cascade: bool) -> int:
    """The number of rows of `results.csv` that do not follow from the records or are missing."""
    again = summarise(records, "", {}, cascade=cascade).set_index(CONDITION)
    written = results.set_index(CONDITION)
    if written.index.has_duplicates:
        return len(written)
    # Older runs do not have a column of draws.
    measured = [c for c in MEASURED if c in written or c != "draws_accuracy"]
    # Only runs of suites that ask for it count operations; a column that went missing is an error.
    measured += [OPERATIONS] if OPERATIONS in again or OPERATIONS in written else []
    wrong = len(again.index.symmetric_difference(written.index))
    for key in again.index.intersection(written.index):
        want, said = again.loc[key], written.loc[key]
        one, other = (row.reindex(measured).to_numpy(dtype=float) for row in (want, said))
        alike = np.allclose(one, other, rtol=1e-6, atol=1e-9, equal_nan=True)
        name, also = (row.reindex(NAMED).astype(str).tolist() for row in (want, said))
        wrong += not (alike and name == also)
    return wrong


def _contradictory(records: pd.DataFrame) -> int:
    """The number of records that are right by prediction and wrong by margin, or the reverse."""
    right = records["prediction"] == records["label"]
    margins = records["margin"]
    return int(((right & (margins.isna() | (margins > 0))) | (~right & (margins < 0))).sum())


def _incomplete(records: pd.DataFrame, samples: int) -> int:
    """The number of attacks, clean included, without one record for each image of the run."""
    clean = sorted(records[records["attack"] == CLEAN]["image_id"])
    groups = records.groupby(CONDITION, sort=False)["image_id"]
    return sum(len(ids) != samples or sorted(ids) != clean for _, ids in groups)
