"""Attacks on one batch: an attack only proposes, and each proposal is judged afresh.

What counts is the class that a separate copy of the network gives the proposed image in a plain
forward pass, once the image is known to lie in the ball and the range.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.common.wording import CLEAN
from robustsnn.diagnosis.preflight import finite_logits
from robustsnn.errors import InputError
from robustsnn.estimators.make import make_estimator, spiking_layers
from robustsnn.evaluation.plan import Plan, Task, estimator_name
from robustsnn.models.batching import padding
from robustsnn.models.scoring import score, verdict
from robustsnn.records.folder import RunFolder

#: Images that are attacked together: the survivors of an early exit fill fewer micro-batches.
TOGETHER = 256
#: What estimators that remember every neuron of an image may hold in one call of an attack.
MEMORY_BYTES = 2**30
#: The kinds of estimators that do: two float32 a neuron and time step.
REMEMBERING = ("assg",)
#: What is counted of each image.
COUNTS = ("forward_passes", "backward_passes", "zero_grad", "nonfinite_grad")
#: Images whose pixels are kept for the gallery.
EXAMPLES = 24


def together(plan: Plan) -> int:
    """How many images an attack is given at once: whole micro-batches."""
    return max(1, TOGETHER // plan.batch_size) * plan.batch_size


def batches_of(plan: Plan) -> list[slice]:
    """The images of each batch."""
    size = together(plan)
    return [slice(i, min(i + size, len(plan.images))) for i in range(0, len(plan.images), size)]


def part_name(index: int) -> str:
    """What the parts of a task are called."""
    return f"attack-{index:03d}"


def _kept(plan: Plan, where: slice) -> int:
    """How many images of a batch, from its start, are stored with their pixels."""
    if plan.save_images:
        return int(where.stop - where.start)
    return max(0, min(EXAMPLES, int(where.stop)) - int(where.start))


def inputs_of(plan: Plan, where: slice) -> tuple[Tensor, Tensor, list[int]]:
    """Images, labels and ids of a batch."""
    images = plan.images.tensor(where).to(plan.device)
    labels = torch.from_numpy(np.ascontiguousarray(plan.images.labels[where])).to(plan.device)
    return images, labels, plan.images.ids[where].tolist()


def clean_batch(
    plan: Plan, folder: RunFolder, batch: int, where: slice, judging: nn.Module
) -> None:
    """Judge a batch of clean images and store it.

    Raises:
        InputError: The network does not take the images, or its logits are not finite.
    """
    began = time.perf_counter()
    images, labels, ids = inputs_of(plan, where)
    finite_logits(judging, images, ids, plan.batch_size, plan.seed)
    said = verdict(judging, images, labels, ids, plan.batch_size, plan.seed, plan.suite.draws)
    predictions, margins = said.predictions, said.margins
    zeros = np.zeros(len(ids), dtype=np.int64)
    rows = pd.DataFrame(
        {
            **labelled(plan, None, "none"),
            "image_id": ids,
            "label": labels.cpu().numpy(),
            "clean_prediction": predictions.cpu().numpy(),
            "prediction": predictions.cpu().numpy(),
            "margin": margins.cpu().numpy(),
            "draws_right": said.right.cpu().numpy(),
            "success": False,
            "linf": 0.0,
            "l2": 0.0,
            "forward_passes": zeros + 1,
            **dict.fromkeys(("backward_passes", "zero_grad", "nonfinite_grad", "projected"), zeros),
            "seconds": (time.perf_counter() - began) / len(ids),
        }
    )
    kept = _kept(plan, where)
    saved = {
        "clean": images[:kept].cpu().numpy(),
        "label": labels[:kept].cpu().numpy(),
        "image_id": np.asarray(ids[:kept], dtype=np.int64),
        "prediction/clean": predictions[:kept].cpu().numpy(),
    }
    folder.write_part(CLEAN, batch, rows, saved if kept else None)


@dataclass(frozen=True)
class Networks:
    """Copies that one task works on: what is attacked, what is crafted on instead, the judge."""

    attacked: nn.Module
    substitute: nn.Module | None
    judging: nn.Module

    @classmethod
    def of(cls, plan: Plan, task: Task, judging: nn.Module) -> Networks:
        """New copies for a task: whatever one attack does to them, the next does not meet."""
        second = plan.substitute.load() if task.substitute and plan.substitute else None
        return cls(plan.subject.load(), second, judging)


@dataclass(frozen=True, eq=False)
class Batch:
    """Images `[batch, ...]`, labels and clean predictions `[batch]`, and what they are called."""

    images: Tensor
    labels: Tensor
    ids: list[int]
    clean: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, chosen: Tensor) -> Batch:
        """Those at some positions."""
        ids = [self.ids[i] for i in chosen.tolist()]
        return Batch(self.images[chosen], self.labels[chosen], ids, self.clean[chosen])


def attacked_batch(
    plan: Plan, folder: RunFolder, task: Task, batch: int, where: slice, networks: Networks
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Records of a batch under an attack, and the images to keep."""
    images, labels, ids = inputs_of(plan, where)
    clean = torch.from_numpy(folder.read_part(CLEAN, batch)["prediction"].to_numpy(copy=True))
    some = Batch(images, labels, ids, clean.to(plan.device))
    attacked = some.clean == labels
    if plan.suite.attack_misclassified:
        attacked = torch.ones_like(attacked)
    rows, proposals = judged(plan, task, networks, some, attacked, plan.batch_size)
    kept = _kept(plan, where)
    saved = {
        f"adversarial/{task.key}": proposals[:kept].cpu().numpy(),
        f"prediction/{task.key}": rows["prediction"].to_numpy()[:kept],
    }
    return rows, saved if kept else {}


def judged(
    plan: Plan,
    task: Task,
    networks: Networks,
    batch: Batch,
    attacked: Tensor,
    micro_batch: int,
    start: Tensor | None = None,
) -> tuple[pd.DataFrame, Tensor]:
    """Records of a batch, and what was proposed for it, as admitted, `[batch, ...]`.

    Args:
        plan: What is run.
        task: Of it.
        networks: Of the task.
        batch: Its images.
        attacked: Which of them to attack, bool `[batch]`; the others stay as they are.
        micro_batch: Images per forward pass, of the attack and of the judge.
        start: See `Victim`.

    Raises:
        InputError: The attack proposes no images, or a user's own one fails.
    """
    began = time.perf_counter()
    images, labels, ids = batch.images, batch.labels, batch.ids
    proposals = images.clone()
    counts = {name: np.zeros(len(ids), dtype=np.int64) for name in COUNTS}
    where = attacked.nonzero().flatten()
    # A ball of radius 0 holds the image alone; there is nothing to look for.
    if len(where) and task.threat.radius > 0:
        for some in _calls(plan, task, networks, where, micro_batch):
            begin = None if start is None else start[some]
            found, spent = _propose(plan, task, networks, batch.at(some), micro_batch, begin)
            proposals[some] = found
            for name, values in spent.items():
                counts[name][some.cpu().numpy()] = values
    proposals, projected = _admitted(task.threat, proposals, images)
    said = verdict(
        networks.judging, proposals, labels, ids, micro_batch, plan.seed, plan.suite.draws
    )
    predictions = said.predictions
    delta = (proposals.double() - images.double()).flatten(1)
    right = batch.clean == labels
    rows = pd.DataFrame(
        {
            **labelled(plan, task, estimator_name(task, networks.attacked, networks.substitute)),
            "image_id": ids,
            "label": labels.cpu().numpy(),
            "clean_prediction": batch.clean.cpu().numpy(),
            "prediction": predictions.cpu().numpy(),
            "margin": said.margins.cpu().numpy(),
            "draws_right": said.right.cpu().numpy(),
            "success": (right & (predictions != labels)).cpu().numpy(),
            "linf": delta.abs().amax(1).cpu().numpy(),
            "l2": delta.square().sum(1).sqrt().cpu().numpy(),
            **counts,
            "projected": projected.to(torch.int64).cpu().numpy(),
            "seconds": (time.perf_counter() - began) / len(ids),
        }
    )
    return rows, proposals


def _calls(
    plan: Plan, task: Task, networks: Networks, where: Tensor, micro_batch: int
) -> Sequence[Tensor]:
    """The positions to attack, in as many calls of the attack as memory asks for."""
    crafting = networks.attacked if networks.substitute is None else networks.substitute
    estimator = estimator_name(task, networks.attacked, networks.substitute)
    if estimator.partition(":")[0] not in REMEMBERING:
        return [where]
    image, _, ids = inputs_of(plan, slice(0, 1))
    fitting = max(1, MEMORY_BYTES // max(1, 8 * membranes(crafting, image, ids)))
    # Whole micro-batches, so that no more of them are padded than need be.
    size = max(fitting // micro_batch * micro_batch, min(fitting, micro_batch))
    return [where[i : i + size] for i in range(0, len(where), size)]


@torch.no_grad()
def membranes(network: nn.Module, image: Tensor, ids: Sequence[int] = (0,)) -> int:
    """Neurons times time steps of a network's spiking layers; 0 if it has none.

    Args:
        network: In evaluation mode.
        image: `[1, channel, height, width]`.
        ids: The id of that image.
    """
    found = 0

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal found
        spikes, *membrane = output if isinstance(output, tuple) else (output,)
        # Spikes may have been pooled already, the membrane never is.
        found += len(spikes) * membrane[0].numel() if membrane else spikes.numel()

    layers = spiking_layers(network).values()
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        score(network, image, ids, 1)
    finally:
        for handle in handles:
            handle.remove()
    # What pads the pass is no image.
    return found // (1 + padding(1, 1))


def _propose(
    plan: Plan,
    task: Task,
    networks: Networks,
    batch: Batch,
    micro_batch: int,
    start: Tensor | None,
) -> tuple[Tensor, dict[str, Any]]:
    """What an attack proposes, float32, and what it spent on each image."""
    images, ids, second = batch.images, batch.ids, networks.substitute
    # In a cascade what rounding lets slip is attacked again, so that few images may cost little.
    settings: dict[str, Any] = {
        "micro_batch": micro_batch,
        "seed": plan.seed,
        "shrink": start is not None,
    }
    substitute = None
    if second is not None:
        estimator = make_estimator(task.estimator, second)
        substitute = Victim(second, estimator, ids, start=start, **settings)
    estimator = make_estimator("bptt" if second is not None else task.estimator, networks.attacked)
    victim = Victim(
        networks.attacked, estimator, ids, substitute=substitute, start=start, **settings
    )
    rng = Rng(plan.seed, ids, stream=task.stream)
    with _users_mistakes(task):
        proposal = task.attack(victim, images.clone(), batch.labels.clone(), task.threat, rng)
    if not isinstance(proposal, Tensor) or proposal.shape != images.shape:
        got = list(proposal.shape) if isinstance(proposal, Tensor) else type(proposal).__name__
        raise InputError(
            f"the attack {task.label} proposes {got} for images {list(images.shape)}: it must "
            "return one image for each."
        )
    ledgers = [victim] if substitute is None else [victim, substitute]
    spent = {name: sum(getattr(ledger, name).numpy() for ledger in ledgers) for name in COUNTS}
    return proposal.detach().to(images.device, images.dtype), spent


@contextlib.contextmanager
def _users_mistakes(task: Task) -> Iterator[None]:
    """Say in one line where a user's own attack failed; a failure of ours stays a traceback."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        module = type(task.attack).__module__
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is None or module.partition(".")[0] == "robustsnn":
            raise
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        where = f"{file}, line {frames[-1].lineno}" if frames else file
        raise InputError(
            f"the attack {task.label} failed ({where}): {type(error).__name__}: {error}; mend it "
            "and run the same command again."
        ) from error


def _admitted(threat: ThreatModel, proposals: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Proposals that the threat model admits, and which of them had to be changed for it."""
    outside = ~threat.admits(proposals, images)
    if not bool(outside.any()):
        return proposals, outside
    mended = threat.project(proposals, images)
    usable = proposals.isfinite().flatten(1).all(1) & threat.admits(mended, images)
    shape = (-1, *[1] * (images.dim() - 1))
    mended = torch.where(usable.view(shape), mended, images)
    return torch.where(outside.view(shape), mended, proposals), outside


def labelled(plan: Plan, task: Task | None, estimator: str) -> dict[str, Any]:
    """The columns that say what all rows of a task are about; None is the clean images."""
    substitute = plan.substitute.name if task and task.substitute and plan.substitute else ""
    return {
        "model": plan.subject.name,
        "suite": plan.suite.name,
        "attack": task.slug if task else CLEAN,
        "estimator": estimator,
        "substitute": substitute,
        "norm": task.threat.norm if task else "",
        "epsilon": task.threat.epsilon if task else "",
        "seed": plan.seed,
    }
