"""What the diagnosis of a run needs: the stages of its plan, and the probe next to its attacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from robustsnn.adversary.contract import Attack
from robustsnn.common.kinds import BEST
from robustsnn.diagnosis.finding import BLIND, of_measure
from robustsnn.diagnosis.probe.measure import IMAGES, probe
from robustsnn.diagnosis.probe.pieces import Piece
from robustsnn.diagnosis.probe.specimen import Sizes
from robustsnn.diagnosis.stages import Stage
from robustsnn.estimators.make import draws_of
from robustsnn.evaluation.batch import batches_of, inputs_of
from robustsnn.evaluation.memory import MEMORY_BYTES, membranes
from robustsnn.evaluation.plan import Plan, Task, estimator_name
from robustsnn.evaluation.progress import Progress
from robustsnn.models.reading import Reading, reading_of
from robustsnn.records.folder import RunFolder
from robustsnn.records.manifest import Manifest
from robustsnn.records.schema import CLEAN, Size

#: The bytes that a watched backward pass of a layer holds for each neuron and step: its spikes,
#: its membrane, both gradients and what they are compared with, in float32.
WATCHED_BYTES = 20


@dataclass(frozen=True)
class Pieces:
    """The pieces of the probe under one threat model, in the folder of a run.

    Args:
        folder: The run folder.
        threat: The number of the threat model among those of the run.
        told: The function that is called whenever a piece was kept.
    """

    folder: RunFolder
    threat: int
    told: Callable[[], None]

    def read(self, name: str) -> Piece | None:
        """A piece that an earlier start of the run left behind, or None."""
        found = self.folder.read_piece(self._named(name))
        if found is None:
            return None
        about, tensors = found
        return Piece(about, {key: torch.from_numpy(array) for key, array in tensors.items()})

    def write(self, name: str, piece: Piece) -> None:
        """Keep a piece."""
        tensors = {key: tensor.detach().cpu().numpy() for key, tensor in piece.tensors.items()}
        self.folder.write_piece(self._named(name), piece.about, tensors)
        self.told()

    def _named(self, name: str) -> str:
        return f"probe-{self.threat:03d}-{name}"


def probed(
    plan: Plan,
    folder: RunFolder,
    manifest: Manifest,
    progress: Progress,
) -> Manifest:
    """The manifest of a run with the findings of the probe; findings that are there are kept.

    Each piece of it is kept as soon as it is measured, as a batch of an attack is. Only the run of
    a cascade is probed. For attacks that take seconds the probe is not worth its time, and their
    numbers count as upper bounds anyway.

    Args:
        plan: The plan that is carried out.
        folder: The run folder, with the clean images judged.
        manifest: The manifest of the run so far.
        progress: The function that is told when the probe begins, and of each piece of it.
    """
    if not plan.suite.cascade or manifest.probe is not None:
        return manifest
    batches = len(batches_of(plan))

    def told() -> None:
        progress("diagnosis", batches, batches * (1 + len(plan.tasks)))

    told()
    count = min(IMAGES, len(plan.images))
    images, labels, ids = inputs_of(plan, slice(0, count))
    clean = _clean(folder, count).to(labels.device)
    found: list[dict[str, Any]] = []
    cost: dict[str, float] = {}
    draws = draws_of([task.estimator for task in plan.tasks])
    # Layers under watch keep all their time steps, even if attacks run them in segments.
    held = WATCHED_BYTES * membranes(plan.subject.load(), images[:1], ids[:1])
    micro_batch = min(plan.batch_size, max(1, MEMORY_BYTES // max(1, held)))
    for number, threat in enumerate(dict.fromkeys(task.threat for task in plan.tasks)):
        measured = probe(
            plan.subject.load(),
            images,
            labels,
            ids,
            threat,
            micro_batch,
            plan.seed,
            clean,
            draws=draws,
            sizes=Sizes.of(len(plan.images)),
            store=Pieces(folder, number, told),
        )
        about = {"norm": threat.norm, "epsilon": threat.epsilon}
        found += [{**finding.as_measure(), **about} for finding in measured.findings]
        for name, value in measured.row().items():
            cost[name] = cost.get(name, 0) + value
    manifest = manifest.but(probe=found, probe_cost=cost)
    folder.write_manifest(manifest)
    return manifest


def inner_readings(plan: Plan, folder: RunFolder) -> dict[Size, Reading | None]:
    """Where to read the network at each norm and size at which its score is blind.

    None stands for a network that no layer inside says more of. What the probe stored decides, so
    that a run that was killed goes on like one that was not.

    Args:
        plan: The plan that is carried out.
        folder: The run folder, with the findings of the probe.
    """
    found: dict[Size, Reading | None] = {}
    if not any(task.when for task in plan.tasks):
        return found
    for finding in map(of_measure, folder.manifest().probe or ()):
        if finding.slug == BLIND and finding.flagged:
            size = Size(finding.rows[0].norm, finding.rows[0].epsilon)
            found[size] = _reading(plan, finding.details["layer"])
    return found


def _reading(plan: Plan, layer: str | None) -> Reading | None:
    if layer is None or not any(task.reads for task in plan.tasks):
        return None
    images, _, ids = inputs_of(plan, slice(0, min(IMAGES, len(plan.images))))
    return reading_of(plan.subject.load(), layer, images, ids, plan.batch_size, plan.seed)


def _clean(folder: RunFolder, count: int) -> torch.Tensor:
    """The predictions on the first clean images, int64 `[count]`."""
    predictions: list[int] = []
    batch = 0
    while len(predictions) < count:
        predictions += folder.read_part(CLEAN, batch)["prediction"].tolist()
        batch += 1
    return torch.tensor(predictions[:count], dtype=torch.int64)


def stages_of(plan: Plan) -> list[Stage]:
    """The attacks of a plan as stages, with estimators named as in records."""
    network = plan.subject.load()
    second = plan.substitute.load() if plan.substitute else None

    def named(task: Task) -> str:
        if task.estimator == BEST:
            return BEST
        return estimator_name(task, network, second if task.substitute else None)

    return [
        stage_of(
            task.attack,
            task.slug,
            task.threat.norm,
            task.threat.epsilon,
            estimator=named(task),
            probe=task.probe,
            substitute=task.substitute,
            rounds=task,
        )
        for task in plan.tasks
    ]


def stage_of(
    attack: Attack,
    name: str,
    norm: str,
    epsilon: str,
    *,
    estimator: str,
    probe: bool,
    substitute: bool,
    rounds: Task | None = None,
) -> Stage:
    """An attack at one size as a stage.

    Args:
        attack: The attack.
        name: The slug of the attack in records.
        norm: The norm.
        epsilon: The size, as the user wrote it.
        estimator: The estimator as records name it.
        probe: Whether the attack is there to rank that estimator.
        substitute: Whether the attack crafts on a second network.
        rounds: The task, which may be one of several rounds of its entry; None if that is unknown.
    """
    free = bool(getattr(attack, "gradient_free", False))
    return Stage(
        attack=name,
        norm=norm,
        epsilon=epsilon,
        kind=attack.kind,
        black=free or substitute or attack.kind == "transfer",
        probe=probe,
        estimator=estimator,
        draws=draws_of([estimator]),
        steps=_plain(getattr(attack, "steps", None)),
        restarts=_plain(getattr(attack, "restarts", None)),
        queries=_plain(getattr(attack, "queries", None)),
        warm=bool(getattr(attack, "warm", False)),
        **_round(rounds),
    )


def _round(task: Task | None) -> dict[str, Any]:
    """What a stage holds of a task that is one of several rounds, or that runs on a condition."""
    if task is None:
        return {}
    if task.until is None and task.sample is None:
        return {"when": task.when or ""}
    return {
        "when": task.when or "",
        "family": task.family,
        "gain": task.until.gain if task.until else None,
        "sample": task.sample if task.round == 0 else None,
    }


def _plain(value: object) -> object:
    """A setting in a form that JSON can hold."""
    return value if isinstance(value, int | float | str | None) else str(value)
