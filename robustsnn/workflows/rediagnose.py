"""Old runs by today's criteria: flags and level taken again from manifest and records."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from robustsnn.adversary.catalogue import load_attack
from robustsnn.common.content import files_in
from robustsnn.common.kinds import BEST
from robustsnn.common.wording import slug
from robustsnn.diagnosis.diagnose import Diagnosis, diagnose
from robustsnn.diagnosis.finding import Finding
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
        Unknowable: The run is older and holds attacks that cannot be looked up.
        InputError: The manifest is damaged.
    """
    try:
        if manifest.stages is None:
            manifest = manifest.but(stages=_stages(manifest, records))
        return diagnose(manifest, records)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"the manifest of {manifest.model} under {manifest.suite} is damaged "
            f"({type(error).__name__}: {error}): run the evaluation again."
        ) from None


class Unknowable(InputError):
    """A run that is too old to say what its attacks were."""


def differences(
    manifest: Manifest, found: Diagnosis, results: pd.DataFrame | None = None
) -> tuple[str, ...]:
    """The parts of a diagnosis that a run states and that do not follow, in words.

    Args:
        manifest: The manifest of the run.
        found: Its diagnosis, taken again.
        results: The rows of its `results.csv`, to compare their flags.
    """
    follows = _as_read(found.fields())
    said = []
    stated, due = Counter(map(_key, manifest.flags)), Counter(map(_key, follows["flags"]))
    if missing := sorted({slug for slug, _ in due - stated}):
        said.append(f"flags that follow and are not stated: {', '.join(missing)}")
    if extra := sorted({slug for slug, _ in stated - due}):
        said.append(f"flags that are stated and do not follow: {', '.join(extra)}")
    if not manifest.verdict:
        if manifest.stages is not None:
            said.append(f"no level is stated, and {found.level.level} follows")
    elif manifest.level != found.level.level:
        said.append(f"the level is stated as {manifest.level} and follows as {found.level.level}")
    elif not _alike(manifest.verdict, follows["verdict"]):
        said.append("the reasons of the level are not those that follow")
    # Runs that are older than these do not have them.
    measured = _as_read([_of_its_time(*pair) for pair in _paired(found, manifest)])
    for name, due in (("ledger", follows["ledger"]), ("diagnostics", measured)):
        rows = [dict(row) for row in getattr(manifest, name)]
        if (rows or manifest.stages is not None) and not _alike(rows, due):
            said.append(f"the {name} in the manifest do not follow from the records")
    if results is not None and not _same_flags(results, found.results):
        said.append("the flags in results.csv do not follow")
    return tuple(said)


def _paired(found: Diagnosis, manifest: Manifest) -> Iterator[tuple[Finding, Mapping[str, Any]]]:
    """Each finding that follows, with the row that the manifest states in its place."""
    for place, finding in enumerate(found.diagnostics):
        stated = manifest.diagnostics
        yield finding, stated[place] if place < len(stated) else {}


def _of_its_time(finding: Finding, stated: Mapping[str, Any]) -> dict[str, Any]:
    """A finding as a row that has the sentences of the version that wrote the stated row."""
    row = finding.as_measure()
    if "wording" in row and "wording" not in stated:
        # In older runs the sentence was that of the flag, also where there is none.
        del row["wording"]
        row["sentence"] = finding.sentence
    return row


def _same_flags(results: pd.DataFrame, found: pd.DataFrame) -> bool:
    """Whether two tables state the same flags of each condition."""
    if "flags" not in results:
        return True
    stated, due = (
        frame[[*CONDITION, "flags"]].astype(str).sort_values(CONDITION).to_numpy().tolist()
        for frame in (results, found)
    )
    return bool(stated == due)


def _alike(stated: Any, due: Any) -> bool:
    """Whether two values of JSON are the same, numbers to six digits."""
    if isinstance(due, Mapping) and isinstance(stated, Mapping):
        return stated.keys() == due.keys() and all(_alike(stated[k], due[k]) for k in due)
    if isinstance(due, list | tuple) and isinstance(stated, list | tuple):
        return len(stated) == len(due) and all(map(_alike, stated, due))
    if isinstance(due, float) and isinstance(stated, float | int) and not isinstance(stated, bool):
        return math.isclose(stated, due, rel_tol=1e-6, abs_tol=1e-9)
    return bool(stated == due)


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
            raise Unknowable(
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


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    """What a flag says; the numbers behind it stand in its sentence."""
    parts = [row.get(name) for name in ("severity", "rows", "id", "sentence")]
    return str(row.get("flag")), json.dumps(parts)


def _as_read(value: Any) -> Any:
    """A value as it is read back from JSON."""
    return json.loads(json.dumps(value))
