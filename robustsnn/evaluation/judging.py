"""Attacks on one batch: an attack only proposes, and each proposal is judged afresh.

The verdict on a proposal is the class that a separate copy of the network gives it in a plain
forward pass, after it was moved into the ball and the range if it lay outside.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.common.users_code import (
    UsersCodeError,
    is_users,
    is_users_file,
    out_of_memory,
    reason_of,
    through_users_file,
    where_of,
)
from robustsnn.errors import InputError
from robustsnn.estimators.make import make_estimator
from robustsnn.evaluation.batch import Batch, Networks, labelled
from robustsnn.evaluation.memory import calls
from robustsnn.evaluation.plan import Plan, Task, estimator_name
from robustsnn.models.scoring import Verdict, finite_logits, verdict, verdict_and_operations
from robustsnn.records.schema import OPERATIONS

#: The columns of what is counted for each image.
COUNTS = ("forward_passes", "backward_passes", "zero_grad", "nonfinite_grad")


def clean(
    plan: Plan, networks: Networks, images: Tensor, labels: Tensor, ids: list[int], kept: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The records of a batch of clean images, and what is kept of the first of them, by name.

    Args:
        plan: The plan that is carried out.
        networks: The networks, of which only the judging one is used.
        images: The images, `[batch, channel, height, width]`.
        labels: The true classes, int64 `[batch]`.
        ids: The id of each image.
        kept: The number of images at the start of the batch that are kept.

    Raises:
        InputError: The network does not take the images, or its logits are not finite.
    """
    began = time.perf_counter()
    judging = networks.judging
    finite_logits(judging, images, ids, plan.batch_size, plan.seed)
    said, counted = _said(plan, judging, images, labels, ids, plan.batch_size)
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
            **counted,
        }
    )
    saved = {
        "clean": images[:kept].cpu().numpy(),
        "label": labels[:kept].cpu().numpy(),
        "image_id": np.asarray(ids[:kept], dtype=np.int64),
        "prediction/clean": predictions[:kept].cpu().numpy(),
    }
    return rows, saved if kept else {}


def attacked(
    plan: Plan,
    networks: Networks,
    task: Task,
    batch: Batch,
    chosen: Tensor,
    micro_batch: int,
    start: Tensor | None = None,
) -> tuple[pd.DataFrame, Tensor]:
    """The records of a batch under an attack, and the proposals that were judged, `[batch, ...]`.

    Args:
        plan: The plan that is carried out.
        networks: The networks of the task.
        task: The task.
        batch: The images of the batch.
        chosen: Whether to attack each image, bool `[batch]`; the others stay as they are.
        micro_batch: The number of images in a forward pass of the attack and of the judge.
        start: The proposal of largest margin that earlier attacks of a cascade made for each
            image, `[batch, ...]`.

    Raises:
        InputError: The attack proposes no images, or a user's own attack fails.
    """
    began = time.perf_counter()
    images, labels, ids = batch.images, batch.labels, batch.ids
    proposals = images.clone()
    counts = {name: np.zeros(len(ids), dtype=np.int64) for name in COUNTS}
    where = chosen.nonzero().flatten()
    # A ball of radius 0 holds only the image itself; there is nothing to look for.
    if len(where) and task.threat.radius > 0:
        for some in calls(task, networks, batch, where, micro_batch):
            begin = None if start is None else start[some]
            found, spent = _propose(plan, task, networks, batch.at(some), micro_batch, begin)
            proposals[some] = found
            for name, values in spent.items():
                counts[name][some.cpu().numpy()] = values
    proposals, projected = _admitted(task.threat, proposals, images)
    said, counted = _said(plan, networks.judging, proposals, labels, ids, micro_batch)
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
            **counted,
        }
    )
    return rows, proposals


def _said(
    plan: Plan,
    judging: nn.Module,
    images: Tensor,
    labels: Tensor,
    ids: list[int],
    micro_batch: int,
) -> tuple[Verdict, dict[str, Any]]:
    """The verdict on each image, and the columns of what it costs, if the suite asks for them."""
    asked = (judging, images, labels, ids, micro_batch, plan.seed, plan.suite.draws)
    if not plan.suite.energy:
        return verdict(*asked), {}
    said, operations = verdict_and_operations(*asked)
    return said, {OPERATIONS: operations.cpu().numpy()}


def _propose(
    plan: Plan,
    task: Task,
    networks: Networks,
    batch: Batch,
    micro_batch: int,
    start: Tensor | None,
) -> tuple[Tensor, dict[str, Any]]:
    """What an attack proposes, `[batch, ...]`, and what it spent on each image, by column."""
    images, ids, second = batch.images, batch.ids, networks.substitute
    # A cascade may pad less (`shrink`), so that few images cost little: an image that it misses
    # because of rounding is attacked again by the next entry.
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
    """Report in one line where a user's own attack, estimator, surrogate or network failed.

    A failure of ours keeps its traceback, since it is a bug.
    """
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        module = type(task.attack).__module__
        file = getattr(sys.modules.get(module), "__file__", "") if is_users_file(module) else ""
        if out_of_memory(error) or not (file or through_users_file(error) or is_users(error)):
            raise
        where = where_of(error) or str(file)
        raise UsersCodeError(f"the attack {task.label}", where, reason_of(error)) from error


def _admitted(threat: ThreatModel, proposals: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Proposals that the threat model admits, and whether each was outside, bool `[batch]`.

    A proposal that cannot be projected, such as one with NaN, is replaced by the clean image.
    """
    outside = ~threat.admits(proposals, images)
    if not bool(outside.any()):
        return proposals, outside
    mended = threat.project(proposals, images)
    usable = proposals.isfinite().flatten(1).all(1) & threat.admits(mended, images)
    shape = (-1, *[1] * (images.dim() - 1))
    mended = torch.where(usable.view(shape), mended, images)
    return torch.where(outside.view(shape), mended, proposals), outside
