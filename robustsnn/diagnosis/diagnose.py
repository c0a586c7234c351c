"""The diagnosis of a run, from its manifest and records alone: flags, ledger and level.

Neither the network nor the plan is needed, so that an old run can be diagnosed again by the
criteria of today.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robustsnn.diagnosis.clean import clean_at_chance
from robustsnn.diagnosis.finding import BLIND, Finding, of_check, of_measure
from robustsnn.diagnosis.flags import by_row, flags_of
from robustsnn.diagnosis.ledger import few_classes, ledger, total
from robustsnn.diagnosis.level import Level, level_of
from robustsnn.diagnosis.stages import (
    FEW_CLASSES,
    Stage,
    as_recorded,
    attacking,
    black_box,
    by_size,
    convergence,
    missing,
    noise_survives,
    surrogate_gap,
)
from robustsnn.errors import InputError
from robustsnn.records.manifest import Manifest
from robustsnn.records.schema import CLEAN, Condition, Size
from robustsnn.records.summary import own_rows, summarise, survivors


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The diagnosis of a run: how far its numbers can be trusted, and why.

    Args:
        flags: The findings that speak against the numbers.
        diagnostics: The findings that were measured on the records, flagged or not.
        ledger: What each stage broke and cost, one row for each stage.
        level: The level of the numbers.
        results: The rows of `results.csv`, with their flags.
    """

    flags: tuple[Finding, ...]
    diagnostics: tuple[Finding, ...]
    ledger: tuple[dict[str, Any], ...]
    level: Level
    results: pd.DataFrame

    def fields(self) -> dict[str, Any]:
        """The fields of the manifest that the diagnosis fills."""
        return {
            "flags": [flag.as_flag() for flag in self.flags],
            "diagnostics": [finding.as_measure() for finding in self.diagnostics],
            "ledger": list(self.ledger),
            "verdict": self.level.row(),
        }


def diagnose(manifest: Manifest, records: pd.DataFrame) -> Diagnosis:
    """The diagnosis of a run.

    Args:
        manifest: The manifest of the run, with the preflight, the probe and the stages.
        records: The records of the run, in the order in which they were made.

    Raises:
        InputError: The manifest does not say what the attacks were, as in older runs.
    """
    if manifest.stages is None:
        raise InputError(
            f"the run of {manifest.model} under {manifest.suite} does not say what its attacks "
            "were: run the evaluation again."
        )
    every = [Stage.of(row) for row in manifest.stages]
    settings = {stage.attack: (stage.steps, stage.restarts) for stage in every}
    # A cascade copies what was found once into the rows of later attacks; there it must not count.
    rounds = {stage.condition for stage in every if stage.family}
    own = records[own_rows(records, manifest.cascade, rounds)]
    plain = summarise(records, manifest.data, settings, cascade=manifest.cascade)
    stages = as_recorded(attacking(every), own)
    classes = _classes(manifest, records)
    probed = [_where_any_survives(of_measure(row), own) for row in manifest.probe or ()]
    rows = ledger(own, stages)
    measured = [
        *_of_stages(own, stages, manifest.cascade, probed),
        total(rows, manifest.samples, manifest.probe_cost),
    ]
    chance = clean_at_chance(records[records["attack"] == CLEAN], classes)
    if chance.flagged:
        measured.append(chance)
    if classes <= FEW_CLASSES:
        measured.append(few_classes(classes, manifest.left_out))
    flags = flags_of(
        own,
        plain,
        {stage.attack: stage.kind for stage in every},
        classes,
        [of_check(row) for row in manifest.preflight],
        manifest.stochastic,
        manifest.cascade,
        stages,
        [*probed, *measured],
        max((stage.draws for stage in stages), default=1),
    )
    results = summarise(records, manifest.data, settings, by_row(flags, plain), manifest.cascade)
    return Diagnosis(
        tuple(flags), tuple(measured), tuple(rows), _level(manifest, own, stages, flags), results
    )


def _where_any_survives(finding: Finding, records: pd.DataFrame) -> Finding:
    """The finding; a blind score is not a flag at a size at which no image survives."""
    if finding.slug != BLIND or not finding.flagged:
        return finding
    (about,) = finding.rows
    left = survivors(records, Size(about.norm, about.epsilon))
    return finding if left else dataclasses.replace(finding, flagged=False)


def _level(
    manifest: Manifest, own: pd.DataFrame, stages: Sequence[Stage], flags: Sequence[Finding]
) -> Level:
    most = max((len(survivors(own, size)) for size in by_size(stages)), default=manifest.samples)
    lacking = missing(stages, _spiking(manifest), manifest.stochastic)
    if manifest.estimator is not None:
        lacking.append(f"its own estimators, all of which {manifest.estimator} replaced")
    full = "rand" if manifest.stochastic else "standard"
    return level_of(flags, lacking, most, full, manifest.samples)


def _spiking(manifest: Manifest) -> bool:
    """Whether the network spikes, so that there are several ways to differentiate it."""
    return manifest.kind == "snn" if manifest.spiking is None else manifest.spiking


def _classes(manifest: Manifest, records: pd.DataFrame) -> int:
    known = manifest.classes or len(manifest.class_names)
    return known or int(records["label"].max()) + 1


def _of_stages(
    records: pd.DataFrame, stages: Sequence[Stage], cascade: bool, probed: Sequence[Finding]
) -> list[Finding]:
    """The findings on the stages of each norm and size, about the rows that each concerns."""
    found: list[Finding] = []
    for size, some in by_size(stages).items():
        whole = Condition("", *size)
        own = next((stage.condition for stage in some if stage.own), whole)
        for about, finding in (
            (own, surrogate_gap(records, some, cascade)),
            (whole, convergence(records, some, cascade)),
            (whole, black_box(records, some)),
        ):
            if finding is not None:
                found.append(finding.about(about))
        for finding in probed:
            fooled = finding.details.get("fooled by noise")
            if finding.rows == (whole,) and fooled is not None:
                draws = int(finding.details["draws"])
                found.append(noise_survives(records, size, fooled, draws).about(whole))
    return found
