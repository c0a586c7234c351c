"""What the diagnosis of a run needs: the stages of its plan, and the probe next to its attacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustsnn.adversary.contract import Attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.common.kinds import BEST
from robustsnn.diagnosis.finding import BLIND, of_measure
from robustsnn.diagnosis.probe.measure import IMAGES, probe
from robustsnn.diagnosis.probe.pieces import Piece, Store
from robustsnn.diagnosis.probe.specimen import Sizes
from robustsnn.diagnosis.stages import Stage
from robustsnn.estimators.make import draws_of
from robustsnn.evaluation.batch import Networks, inputs_of
from robustsnn.evaluation.memory import MEMORY_BYTES, membranes
from robustsnn.evaluation.plan import Plan, Task, estimator_name
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
    told: Callable[[], None] | None = None

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
        if self.told is not None:
            self.told()

    def _named(self, name: str) -> str:
        return f"probe-{self.threat:03d}-{name}"


def wanted(plan: Plan, folder: RunFolder, manifest: Manifest) -> list[dict[str, Any]]:
    """What the probe of a run takes, once for each threat model; nothing if findings are there.

    Each piece of it is kept as soon as it is measured, as a batch of an attack is. Only the run of
    a cascade is probed. For attacks that take seconds the probe is not worth its time, and their
    numbers count as upper bounds anyway.

    Args:
        plan: The plan that is carried out.
        folder: The run folder, with the clean images judged.
        manifest: The manifest of the run so far.
    """
    if not plan.suite.cascade or manifest.probe is not None:
        return []
    count = min(IMAGES, len(plan.images))
    images, labels, ids = inputs_of(plan, slice(0, count))
    given = {
        "images": images,
        "labels": labels,
        "ids": ids,
        "clean": _clean(folder, count).to(labels.device),
        "draws": draws_of([task.estimator for task in plan.tasks]),
        "samples": len(plan.images),
    }
    threats = dict.fromkeys(task.threat for task in plan.tasks)
    return [
        {**given, "threat": threat, "store": Pieces(folder, number)}
        for number, threat in enumerate(threats)
    ]


def measured(
    plan: Plan,
    networks: Networks,
    images: Tensor,
    labels: Tensor,
    ids: list[int],
    clean: Tensor,
    threat: ThreatModel,
    draws: int,
    samples: int,
    store: Store | None = None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The findings of the probe at one threat model as rows of a manifest, and what they cost.

    Args:
        plan: The plan that is carried out.
        networks: The networks of the cell; the probe works on a new copy.
        images: The images, `[batch, channel, height, width]`.
        labels: The true classes, int64 `[batch]`.
        ids: The id of each image.
        clean: The predictions on the images, int64 `[batch]`.
        threat: The threat model.
        draws: The draws that the attacks average a stochastic network over.
        samples: The number of images of the run.
        store: The place where pieces are kept, if this machine has the run folder.
    """
    del networks
    # Layers under watch keep all their time steps, even if attacks run them in segments.
    held = WATCHED_BYTES * membranes(plan.subject.load(), images[:1], ids[:1])
    micro_batch = min(plan.batch_size, max(1, MEMORY_BYTES // max(1, held)))
    found = probe(
        plan.subject.load(),
        images,
        labels,
        ids,
        threat,
        micro_batch,
        plan.seed,
        clean,
        draws=draws,
        sizes=Sizes.of(samples),
        store=store,
    )
    about = {"norm": threat.norm, "epsilon": threat.epsilon}
    return [{**finding.as_measure(), **about} for finding in found.findings], found.row()


def with_probe(
    manifest: Manifest, found: Sequence[tuple[list[dict[str, Any]], dict[str, float]]]
) -> Manifest:
    """The manifest with the findings of the probe, and what they cost together.

    Args:
        manifest: The manifest of the run so far.
        found: The findings and the cost at each threat model.
    """
    cost: dict[str, float] = {}
    for _, spent in found:
        for name, value in spent.items():
            cost[name] = cost.get(name, 0) + value
    return manifest.but(probe=[row for rows, _ in found for row in rows], probe_cost=cost)


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
