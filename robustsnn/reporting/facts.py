"""What was measured, with what and when: the facts by which a page on paper can be checked."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from robustsnn.common import wording
from robustsnn.records.manifest import Manifest
from robustsnn.records.runs import Run
from robustsnn.reporting.comparison import Comparison
from robustsnn.reporting.text_table import Cell, TextTable

_UNKNOWN = "not recorded"


def title_row(runs: Sequence[Run]) -> list[str]:
    """Date, version, suites, images and seed of some runs, each as a short text."""
    manifests = [run.manifest for run in runs]
    versions = {m.versions.get("robustsnn", "of an unknown version") for m in manifests}
    days = sorted({m.start.partition("T")[0] for m in manifests if m.start})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}" if days else "an unknown day"
    suites = _distinct(f"{m.suite}, version {m.suite_version}" for m in manifests)
    images = _distinct(f"{run.samples:,}" for run in runs)
    return [
        f"RobustSNN {_listed(versions)}",
        f"measured on {when}",
        f"{'suite' if len(suites) == 1 else 'suites'} {_listed(suites)}",
        f"n = {_listed(images)}",
        f"seed {_listed(str(m.seed) for m in manifests)}",
    ]


def commands(runs: Sequence[Run]) -> list[str]:
    """The command lines that asked for some runs, each once; none for calls from Python."""
    return _distinct(shlex.join(run.manifest.command) for run in runs if run.manifest.command)


def facts_of_comparison(comparison: Comparison) -> list[tuple[str, str]]:
    """What the runs of a comparison have in common: data, suite, sizes and seed."""
    run = comparison.runs[0]
    said = run.manifest
    sizes = [c.size for c in comparison.attacks if c.radius > 0]
    return [
        ("Data", f"{wording.data(run.data)}, {wording.count(comparison.samples, 'image')}"),
        ("Fingerprint of the data", said.data_fingerprint or _UNKNOWN),
        ("Suite", f"{said.suite}, version {said.suite_version}"),
        ("Digest of the suite", said.suite_sha256 or _UNKNOWN),
        ("Sizes of the perturbation", ", ".join(dict.fromkeys(sizes)) or "no attack"),
        ("Seed", str(said.seed)),
    ]


def facts_of_run(run: Run) -> list[tuple[str, str]]:
    """What is peculiar to one run: network, time, versions, command and level."""
    said = run.manifest
    versions = [f"{name} {version}" for name, version in said.versions.items()]
    return [
        ("Network", _network(said)),
        ("sha256 of its weights", said.checkpoint_sha256 or _UNKNOWN),
        ("Started", said.start or _UNKNOWN),
        ("Versions", ", ".join(versions) or _UNKNOWN),
        ("Command", shlex.join(said.command) if said.command else "called from Python"),
        ("Identity of the run", said.identity or _UNKNOWN),
        ("Level", f"{run.level}, {run.diagnosis.get('title')}" if run.level else "not diagnosed"),
    ]


def _network(said: Manifest) -> str:
    parts = [said.model, said.architecture, said.kind.upper()]
    if said.kind != "ann" and said.time_steps > 1:
        parts.append(f"T = {said.time_steps}")
    return ", ".join(part for part in parts if part)


def attacks_table(comparison: Comparison) -> TextTable | None:
    """The attacks of the suite with their settings; None for a run that does not hold them."""
    run = comparison.runs[0]
    left_out = set.intersection(*(set(r.manifest.left_out) for r in comparison.runs))
    rows = [
        (
            Cell(str(entry.get("label"))),
            Cell(str(entry.get("attack")), _peculiar(entry)),
            Cell(str(entry.get("estimator") or "bptt")),
            Cell(_where(entry.get("kinds"))),
        )
        for entry in run.manifest.entries
        if entry.get("label") not in left_out
    ]
    if not rows:
        return None
    return TextTable(
        name=f"attacks-{comparison.slug}",
        title=f"Attacks of the suite {run.suite}, version {run.manifest.suite_version}",
        head=tuple(map(Cell, ("Attack", "Settings", "Gradient estimator", "Run on"))),
        rows=tuple(rows),
    )


def _peculiar(entry: Mapping[str, Any]) -> str:
    """What else an entry says: its own size, whether it ranks an estimator, when it ends."""
    said = [wording.threat(str(entry.get("norm") or ""), str(entry.get("epsilon") or ""))]
    said += ["a substitute" if entry.get("substitute") else ""]
    said += ["ranks its estimator" if entry.get("probe") else ""]
    if isinstance(entry.get("until"), Mapping):
        said += ["repeated with doubled length"]
    if entry.get("sample"):
        said += [f"a sample of {entry['sample']} first"]
    return ", ".join(part for part in said if part)


def _where(kinds: object) -> str:
    if not isinstance(kinds, list | tuple) or not kinds:
        return "all networks"
    return " and ".join(f"{str(kind).upper()}s" for kind in kinds)


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _listed(texts: Iterable[str]) -> str:
    return wording.listing(_distinct(texts))
