"""What a run says of itself: the probe beside its attacks, flags, ledger and level."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from robustsnn.common.kinds import BEST
from robustsnn.diagnosis import stages as of
from robustsnn.diagnosis.finding import Finding
from robustsnn.diagnosis.flags import Flag, diagnose
from robustsnn.diagnosis.ledger import few_classes, ledger, total
from robustsnn.diagnosis.level import reliability
from robustsnn.diagnosis.probe.measure import IMAGES, probe
from robustsnn.diagnosis.probe.specimen import Sizes
from robustsnn.diagnosis.stages import Stage
from robustsnn.estimators.make import draws_of
from robustsnn.evaluation.batch import batches_of, inputs_of
from robustsnn.evaluation.memory import MEMORY_BYTES, membranes
from robustsnn.evaluation.plan import Plan, Task, classes_of, estimator_name, kind_of
from robustsnn.records.folder import RunFolder
from robustsnn.records.schema import CLEAN, Condition
from robustsnn.records.summary import survivors

#: What a layer's watched backward pass holds of each neuron and step, in bytes: its spikes,
#: membrane, both gradients and what they are compared with, in float32.
WATCHED_BYTES = 20


@dataclass(frozen=True)
class Judgement:
    """Flags of a run, and what its header says beside them."""

    flags: list[Flag]
    header: dict[str, Any]


def probed(
    plan: Plan,
    folder: RunFolder,
    manifest: Mapping[str, Any],
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """The header of a run with what the probe finds; once it is there, it is kept.

    Only a cascade is probed: attacks that are over in seconds are not worth the time, and are
    called an upper bound anyway.

    Args:
        plan: What is run.
        folder: With the clean images judged.
        manifest: Its header so far.
        progress: Told that it begins.
    """
    header = dict(manifest)
    if not plan.suite.cascade or "probe" in header:
        return header
    batches = len(batches_of(plan))
    progress("diagnosis", batches, batches * (1 + len(plan.tasks)))
    count = min(IMAGES, len(plan.images))
    images, labels, ids = inputs_of(plan, slice(0, count))
    found: list[dict[str, Any]] = []
    cost: dict[str, float] = {}
    draws = draws_of([task.estimator for task in plan.tasks])
    # Watched layers keep all their time steps, whether or not attacks run them in segments.
    held = WATCHED_BYTES * membranes(plan.subject.load(), images[:1], ids[:1])
    micro_batch = min(plan.batch_size, max(1, MEMORY_BYTES // max(1, held)))
    for threat in dict.fromkeys(task.threat for task in plan.tasks):
        network = plan.subject.load()
        measured = probe(
            network,
            images,
            labels,
            ids,
            threat,
            micro_batch,
            plan.seed,
            _clean(folder, plan, count).to(labels.device),
            draws=draws,
            sizes=Sizes.of(len(plan.images)),
        )
        about = {"norm": threat.norm, "epsilon": threat.epsilon}
        found += [{**finding.row(), **about} for finding in measured.findings]
        for name, value in measured.row().items():
            cost[name] = cost.get(name, 0) + value
    header |= {"probe": found, "probe_cost": cost}
    folder.write_manifest(header)
    return header


def _clean(folder: RunFolder, plan: Plan, count: int) -> torch.Tensor:
    predictions: list[int] = []
    batch = 0
    while len(predictions) < count:
        predictions += folder.read_part(CLEAN, batch)["prediction"].tolist()
        batch += 1
    return torch.tensor(predictions[:count], dtype=torch.int64)


def judgement(
    plan: Plan,
    manifest: Mapping[str, Any],
    records: pd.DataFrame,
    results: pd.DataFrame,
    cascade: bool,
) -> Judgement:
    """What a finished run says of itself.

    Args:
        plan: What was run.
        manifest: Its header.
        records: One row per image and attack; in a cascade, those that an attack made itself.
        results: Their summary.
        cascade: Whether it was one.
    """
    network = plan.subject.load()
    classes = classes_of(network, plan.images, plan.device)
    stochastic = bool(manifest.get("stochastic"))
    some = of.as_recorded(stages_of(plan), records)
    preflight: Sequence[Mapping[str, Any]] = manifest.get("preflight") or ()
    about = [_of_probe(row) for row in manifest.get("probe") or ()]
    about += _of_stages(records, some, cascade, about)
    rows = ledger(records, some)
    spent = total(rows, len(plan.images), manifest.get("probe_cost") or {})
    about.append((None, spent))
    if classes <= of.FEW_CLASSES:
        about.append((None, few_classes(classes, plan.left_out)))
    flags = diagnose(
        records,
        results,
        {task.slug: task.attack.kind for task in plan.tasks},
        classes,
        preflight,
        stochastic,
        cascade,
        some,
        about,
        draws_of([stage.estimator for stage in some]),
    )
    lines = of.lines_of(some)
    left = max((len(survivors(records, line)) for line in lines), default=len(plan.images))
    lacking = of.missing(some, kind_of(network) == "snn", stochastic)
    level = reliability(flags, lacking, left, "rand" if stochastic else "standard")
    probes = len(manifest.get("probe") or ())
    return Judgement(
        flags,
        {
            "flags": [flag.row() for flag in flags],
            "diagnostics": [_row(key, finding) for key, finding in about[probes:]],
            "ledger": rows,
            "verdict": level.row(),
        },
    )


def _of_stages(
    records: pd.DataFrame,
    some: Sequence[of.Stage],
    cascade: bool,
    probed: Sequence[tuple[Condition | None, Finding]],
) -> list[tuple[Condition | None, Finding]]:
    found: list[tuple[Condition | None, Finding]] = []
    for (norm, epsilon), stages in of.lines_of(some).items():
        own = next((s.key for s in stages if s.own), ("", norm, epsilon))
        for key, finding in (
            (own, of.surrogate_gap(records, stages, cascade)),
            (("", norm, epsilon), of.convergence(records, stages, cascade)),
            (("", norm, epsilon), of.black_box(records, stages)),
        ):
            if finding is not None:
                found.append((key, finding))
        for about, finding in probed:
            ids = finding.details.get("fooled by noise")
            if about == ("", norm, epsilon) and ids is not None:
                draws = int(finding.details["draws"])
                noise = of.noise_survives(records, (norm, epsilon), ids, draws)
                found.append((about, noise))
    return found


def _of_probe(row: Mapping[str, Any]) -> tuple[Condition | None, Finding]:
    """A finding as it was stored, and the threat it is about."""
    evidence = row["evidence"]
    finding = Finding(
        str(row["id"]),
        str(row["slug"]),
        bool(row["flagged"]),
        row["severity"],
        str(row["sentence"]),
        float("nan") if evidence is None else float(evidence),
        row["details"],
    )
    return ("", str(row["norm"]), str(row["epsilon"])), finding


def _row(key: Condition | None, finding: Finding) -> dict[str, Any]:
    about = {} if key is None else {"norm": key[1], "epsilon": key[2]}
    return {**finding.row(), **about}


def _stages(tasks: Iterable[Task], named: Callable[[Task], str]) -> list[Stage]:
    """The stages of a plan, those of size 0 left out.

    Args:
        tasks: Of the plan.
        named: How records name the estimator of a task.
    """
    found = []
    for task in tasks:
        if task.threat.radius == 0:
            continue
        attack = task.attack
        free = bool(getattr(attack, "gradient_free", False))
        found.append(
            Stage(
                attack=task.slug,
                norm=task.threat.norm,
                epsilon=task.threat.epsilon,
                kind=attack.kind,
                black=free or task.substitute or attack.kind == "transfer",
                probe=task.probe,
                estimator=named(task),
                steps=_whole(getattr(attack, "steps", None)),
                queries=_whole(getattr(attack, "queries", None)),
                warm=bool(getattr(attack, "warm", False)),
            )
        )
    return found


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def stages_of(plan: Plan) -> list[of.Stage]:
    """The attacks of a plan as stages, their estimators as records name them."""
    network = plan.subject.load()
    second = plan.substitute.load() if plan.substitute else None

    def named(task: Task) -> str:
        if task.estimator == BEST:
            return BEST
        return estimator_name(task, network, second if task.substitute else None)

    return _stages(plan.tasks, named)
