"""The batches of an evaluation: which images, which networks, which labels their rows bear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustsnn.evaluation.plan import Plan, Task
from robustsnn.records.schema import CLEAN

#: Images that are attacked together: the survivors of an early exit fill fewer micro-batches.
TOGETHER = 256


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
