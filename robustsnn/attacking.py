"""Attacks on one batch: an attack only proposes, and each proposal is judged afresh.

What counts is the class that a separate copy of the network gives the proposed image in a plain
forward pass, once the image is known to lie in the ball and the range.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.formats import CLEAN
from robustsnn.gradients import make_estimator
from robustsnn.planning import Plan, Task
from robustsnn.preflight import finite_logits
from robustsnn.randomness import Rng
from robustsnn.records import RunFolder
from robustsnn.scoring import judge, score
from robustsnn.threat import ThreatModel
from robustsnn.victim import Victim

#: Images that are attacked together: the survivors of an early exit fill fewer micro-batches.
TOGETHER = 256
#: Images whose pixels are kept for the gallery.
EXAMPLES = 24


def batches_of(plan: Plan) -> list[slice]:
    """The images that are attacked together, whole micro-batches each."""
    size = max(1, TOGETHER // plan.batch_size) * plan.batch_size
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
    logits = finite_logits(judging, images, ids, plan.batch_size, plan.seed)
    predictions, margins = judge(logits, labels)
    zeros = np.zeros(len(ids), dtype=np.int64)
    rows = pd.DataFrame(
        {
            **_same(plan, "none", "", "", CLEAN, ""),
            "image_id": ids,
            "label": labels.cpu().numpy(),
            "clean_prediction": predictions.cpu().numpy(),
            "prediction": predictions.cpu().numpy(),
            "margin": margins.cpu().numpy(),
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


def attacked_batch(
    plan: Plan,
    folder: RunFolder,
    task: Task,
    estimator: str,
    batch: int,
    where: slice,
    network: nn.Module,
    second: nn.Module | None,
    judging: nn.Module,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Records of a batch under an attack, and the images to keep."""
    began = time.perf_counter()
    images, labels, ids = inputs_of(plan, where)
    clean = folder.read_part(CLEAN, batch)
    clean_predictions = torch.from_numpy(clean["prediction"].to_numpy(copy=True)).to(plan.device)
    right = clean_predictions == labels
    attacked = torch.ones_like(right) if plan.suite.attack_misclassified else right
    proposals = images.clone()
    counts = {
        name: np.zeros(len(ids), dtype=np.int64)
        for name in ("forward_passes", "backward_passes", "zero_grad", "nonfinite_grad")
    }
    where_attacked = attacked.nonzero().flatten()
    # A ball of radius 0 holds the image alone; there is nothing to look for.
    if len(where_attacked) and task.threat.radius > 0:
        some = [ids[i] for i in where_attacked.tolist()]
        found, spent = _propose(
            plan, task, network, second, images[where_attacked], labels[where_attacked], some
        )
        proposals[where_attacked] = found
        for name, values in spent.items():
            counts[name][where_attacked.cpu().numpy()] = values
    proposals, projected = _admitted(task.threat, proposals, images)
    logits = score(judging, proposals, ids, plan.batch_size, plan.seed)
    predictions, margins = judge(logits, labels)
    delta = (proposals.double() - images.double()).flatten(1)
    substitute = plan.substitute.name if task.substitute and plan.substitute else ""
    rows = pd.DataFrame(
        {
            **_same(plan, estimator, task.threat.norm, task.threat.epsilon, task.slug, substitute),
            "image_id": ids,
            "label": labels.cpu().numpy(),
            "clean_prediction": clean_predictions.cpu().numpy(),
            "prediction": predictions.cpu().numpy(),
            "margin": margins.cpu().numpy(),
            "success": (right & (predictions != labels)).cpu().numpy(),
            "linf": delta.abs().amax(1).cpu().numpy(),
            "l2": delta.square().sum(1).sqrt().cpu().numpy(),
            **counts,
            "projected": projected.to(torch.int64).cpu().numpy(),
            "seconds": (time.perf_counter() - began) / len(ids),
        }
    )
    kept = _kept(plan, where)
    saved = {
        f"adversarial/{task.key}": proposals[:kept].cpu().numpy(),
        f"prediction/{task.key}": predictions[:kept].cpu().numpy(),
    }
    return rows, saved if kept else {}


def _propose(
    plan: Plan,
    task: Task,
    network: nn.Module,
    second: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    ids: list[int],
) -> tuple[Tensor, dict[str, Any]]:
    """What an attack proposes, float32, and what it spent on each image."""
    size = plan.batch_size
    substitute = None
    if second is not None:
        substitute = Victim(
            second, make_estimator(task.estimator, second), ids, micro_batch=size, seed=plan.seed
        )
    estimator = make_estimator("bptt" if second is not None else task.estimator, network)
    victim = Victim(
        network, estimator, ids, micro_batch=size, seed=plan.seed, substitute=substitute
    )
    rng = Rng(plan.seed, ids, stream=task.slug)
    with _users_mistakes(task):
        proposal = task.attack(victim, images.clone(), labels.clone(), task.threat, rng)
    if not isinstance(proposal, Tensor) or proposal.shape != images.shape:
        got = list(proposal.shape) if isinstance(proposal, Tensor) else type(proposal).__name__
        raise InputError(
            f"the attack {task.label} proposes {got} for images {list(images.shape)}: it must "
            "return one image for each."
        )
    ledgers = [victim] if substitute is None else [victim, substitute]
    spent = {
        name: sum(getattr(ledger, name).numpy() for ledger in ledgers)
        for name in ("forward_passes", "backward_passes", "zero_grad", "nonfinite_grad")
    }
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


def _same(
    plan: Plan, estimator: str, norm: str, epsilon: str, attack: str, substitute: str
) -> dict[str, Any]:
    return {
        "model": plan.subject.name,
        "suite": plan.suite.name,
        "attack": attack,
        "estimator": estimator,
        "substitute": substitute,
        "norm": norm,
        "epsilon": epsilon,
        "seed": plan.seed,
    }
