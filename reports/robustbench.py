"""The worst case of each run as JSON with the fields of a RobustBench entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from robustsnn.common import wording
from robustsnn.records.runs import Run, Runs
from robustsnn.records.schema import CLEAN_IMAGES, WORST_CASE, Condition, Size
from robustsnn.reporting.comparison import Comparison, comparisons


def render(runs: Runs, output: Path) -> list[Path]:
    """Write one file for each run and size; what a run cannot know is empty.

    RobustBench has one entry for a network under one threat model. Numbers are texts in per cent
    with two digits, as there. `autoattack_acc` is filled only if AutoAttack was run; the worst case
    over all attacks is `external`, which RobustBench takes where it is lower.
    """
    folder = output / "tables"
    written = []
    for comparison in comparisons(runs):
        for place, run in enumerate(comparison.runs):
            for size in _sizes(comparison, run):
                folder.mkdir(parents=True, exist_ok=True)
                about = wording.slug(f"{size.norm} {size.epsilon}")
                path = folder / f"robustbench-{comparison.slug}-{place}-{about}.json"
                text = json.dumps(_entry(comparison, run, size), indent=2, ensure_ascii=False)
                path.write_text(f"{text}\n", encoding="utf-8")
                written.append(path)
    return written


def _sizes(comparison: Comparison, run: Run) -> list[Size]:
    known = comparison.verdicts[run.label]
    sizes = dict.fromkeys(Size(c.norm, c.epsilon) for c in comparison.attacks if c.radius > 0)
    return [size for size in sizes if Condition(WORST_CASE, *size) in known]


def _entry(comparison: Comparison, run: Run, size: Size) -> dict[str, Any]:
    verdicts = comparison.verdicts[run.label]
    said = run.manifest
    network = f"{said.architecture}, {run.kind.upper() or 'network'}"
    if run.kind != "ann" and run.time_steps > 1:
        network += f", T = {run.time_steps}"
    return {
        "link": "",
        "name": run.model,
        "authors": "",
        "additional_data": None,
        "number_forward_passes": said.draws,
        "dataset": run.data,
        "venue": "",
        "architecture": network,
        "eps": size.epsilon,
        "clean_acc": _percent(float(verdicts[CLEAN_IMAGES].mean())),
        "reported": "",
        "autoattack_acc": _autoattack(comparison, run, size),
        "external": _percent(float(verdicts[Condition(WORST_CASE, *size)].mean())),
        "footnote": _footnote(comparison, run, size),
        "unreliable": run.level == "C",
    }


def _autoattack(comparison: Comparison, run: Run, size: Size) -> str:
    """The accuracy under AutoAttack by itself, if the run has it; a cascade has no such number."""
    if run.manifest.cascade:
        return ""
    for entry in run.manifest.entries:
        if str(entry.get("attack")).partition(":")[2].partition(":")[0] == "AutoAttack":
            attack = Condition(wording.slug(str(entry.get("label"))), *size)
            if attack in comparison.verdicts[run.label]:
                return _percent(float(comparison.verdicts[run.label][attack].mean()))
    return ""


def _footnote(comparison: Comparison, run: Run, size: Size) -> str:
    said = run.manifest
    row = comparison.cells.get((run.label, Condition(WORST_CASE, *size)))
    interval = "" if row is None else f", 95 % interval {_interval(row)}"
    level = f", level {run.level}" if run.level else ""
    return (
        f"RobustSNN {said.versions.get('robustsnn', '')}, suite {said.suite} version"
        f" {said.suite_version}, {size.norm}, {run.samples} images, seed {said.seed}"
        f"{interval}{level}."
    )


def _interval(row: Any) -> str:
    return f"{_percent(row['ci_low'])} to {_percent(row['ci_high'])}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"
