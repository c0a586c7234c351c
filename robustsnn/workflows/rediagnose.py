"""Old runs by today's criteria: flags and level taken again from manifest and records."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from typing import Any

import pandas as pd

from robustsnn.adversary.catalogue import load_attack
from robustsnn.common.content import files_in
from robustsnn.common.kinds import BEST
from robustsnn.common.wording import slug
from robustsnn.diagnosis.diagnose import Diagnosis, diagnose
from robustsnn.errors import InputError
from robustsnn.evaluation.diagnose import stage_of
from robustsnn.records.manifest import Manifest
from robustsnn.records.runs import Run, Runs
from robustsnn.records.schema import CLEAN, CONDITION


def diagnosis_of(manifest: Manifest, records: pd.DataFrame) -> Diagnosis:
    """The diagnosis of a finished run by today's criteria.

    Args:
        manifest: The manifest of the run; that of an older run need not hold its stages.
        records: The records of the run.

    Raises:
        InputError: The run is older and holds attacks that can no longer be looked up.
    """
    if manifest.stages is None:
        manifest = manifest.but(stages=_stages(manifest, records))
    return diagnose(manifest, records)


def differences(manifest: Manifest, found: Diagnosis) -> tuple[str, ...]:
    """What a run says of itself and its manifest and records do not, in words.

    Args:
        manifest: The manifest of the run.
        found: Its diagnosis, taken again.
    """
    stated = {_key(row) for row in manifest.flags}
    follow = {_key(row) for row in _as_read(found.fields()["flags"])}
    said = []
    if missing := sorted({slug for slug, _ in follow - stated}):
        said.append(f"flags that follow and are not stated: {', '.join(missing)}")
    if extra := sorted({slug for slug, _ in stated - follow}):
        said.append(f"flags that are stated and do not follow: {', '.join(extra)}")
    if manifest.verdict and manifest.level != found.level.level:
        said.append(f"the level is stated as {manifest.level} and follows as {found.level.level}")
    elif manifest.verdict and _as_read(found.level.row()) != dict(manifest.verdict):
        said.append("the reasons of the level are not those that follow")
    return tuple(said)


def diagnosed_again(runs: Runs) -> Runs:
    """Runs with the flags, the ledger and the level of today's criteria, and a word about it.

    Args:
        runs: Finished runs; their folders stay as they are.

    Raises:
        InputError: One of them cannot be diagnosed again.
    """
    version = importlib.metadata.version("robustsnn")

    def again(run: Run) -> Run:
        found = diagnosis_of(run.manifest, run.records)
        was = (
            f", not {run.level} as the run says" if run.level not in ("", found.level.level) else ""
        )
        manifest = run.manifest.but(
            **_as_read(found.fields()),
            diagnosed_again=f"Diagnosed again by the criteria of RobustSNN {version}{was}.",
        )
        flags = found.results.set_index(CONDITION)["flags"]
        keys = pd.MultiIndex.from_frame(run.results[CONDITION].astype(str))
        results = run.results.assign(flags=flags.reindex(keys).fillna("").to_numpy())
        return dataclasses.replace(run, manifest=manifest, results=results)

    return Runs(tuple(again(run) for run in runs.runs))


def _stages(manifest: Manifest, records: pd.DataFrame) -> list[dict[str, Any]]:
    """The stages of an older run, from its entries and the attacks that its records name."""
    found = []
    for key, rows in records.groupby(CONDITION, sort=False):
        attack, norm, epsilon = map(str, key)
        if attack == CLEAN:
            continue
        named = [entry for entry in manifest.entries if slug(str(entry["label"])) == attack]
        kind = manifest.kind or "ann"
        meant = [entry for entry in named if kind in (entry.get("kinds") or (kind,))]
        if not meant or files_in(str(meant[0]["attack"])):
            raise InputError(
                f"the run of {manifest.model} under {manifest.suite} is an older one and does not "
                f"say what its attack {attack!r} was: run the evaluation again."
            )
        (entry, *_) = meant
        asked = str(entry.get("estimator") or "bptt").strip()
        found.append(
            stage_of(
                load_attack(str(entry["attack"])),
                attack,
                norm,
                epsilon,
                estimator=BEST if asked == BEST else str(rows["estimator"].iloc[0]),
                probe=bool(entry.get("probe")),
                substitute=bool(entry.get("substitute")),
            ).row()
        )
    return found


def _key(row: Any) -> tuple[str, str]:
    """What a flag is, without the last digits of what was measured."""
    return str(row.get("flag")), json.dumps([row.get("severity"), row.get("rows")])


def _as_read(value: Any) -> Any:
    """A value as it is read back from JSON."""
    return json.loads(json.dumps(value))
