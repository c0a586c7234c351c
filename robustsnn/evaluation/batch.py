"""The batches of an evaluation: their images, their networks and the labels of their rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustsnn.evaluation.plan import Plan, Task
from robustsnn.models.reading import Reading, read_at
from robustsnn.records.schema import CLEAN

#: The number of images that are attacked together. Attacks that drop images early then fill fewer
#: micro-batches with the others.
TOGETHER = 256


#: The name of the proposals in a part. They are not examples yet.
PROPOSAL = "proposal"
#: The number of images whose pixels are kept for the gallery.
EXAMPLES = 24


def together(plan: Plan) -> int:
    """The number of images that an attack is given at once: whole micro-batches."""
    return max(1, TOGETHER // plan.batch_size) * plan.batch_size


def batches_of(plan: Plan) -> list[slice]:
    """The positions of the images of each batch."""
    size = together(plan)
    return [slice(i, min(i + size, len(plan.images))) for i in range(0, len(plan.images), size)]


def part_name(index: int) -> str:
    """The name of the parts of a task.

    Examples:
        >>> part_name(3)
        'attack-003'
    """
    return f"attack-{index:03d}"


def kept_of(plan: Plan, where: slice) -> int:
    """The number of images at the start of a batch that are stored with their pixels."""
    if plan.save_images:
        return int(where.stop - where.start)
    return max(0, min(EXAMPLES, int(where.stop)) - int(where.start))


def inputs_of(plan: Plan, where: slice) -> tuple[Tensor, Tensor, list[int]]:
    """The images, the labels and the ids of a batch, the first two on the device of the plan."""
    images = plan.images.tensor(where).to(plan.device)
    labels = torch.from_numpy(np.ascontiguousarray(plan.images.labels[where])).to(plan.device)
    return images, labels, plan.images.ids[where].tolist()


@dataclass(frozen=True)
class Networks:
    """The copies of networks that one task works on.

    Args:
        attacked: The network under attack.
        substitute: The network that the attack crafts on instead, if it is a black box.
        judging: The network that judges proposals.
    """

    attacked: nn.Module
    substitute: nn.Module | None
    judging: nn.Module

    @classmethod
    def of(
        cls, plan: Plan, task: Task | None, judging: nn.Module, reading: Reading | None = None
    ) -> Networks:
        """New copies for a task, so that no attack meets what another did to a network.

        Without a task there is nothing to attack, and the network that judges stands for both.

        Args:
            plan: The plan that is carried out.
            task: The task.
            judging: The network that judges.
            reading: Where the network under attack is read, if the task asks for a layer inside.
        """
        if task is None:
            return cls(judging, None, judging)
        second = plan.substitute.load() if task.substitute and plan.substitute else None
        attacked = plan.subject.load()
        if task.reads is not None and reading is not None:
            attacked = read_at(attacked, reading)
        return cls(attacked, second, judging)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images of an evaluation.

    Args:
        images: The clean images, `[batch, channel, height, width]`.
        labels: The true classes, int64 `[batch]`.
        ids: The id of each image.
        clean: The predictions on the clean images, int64 `[batch]`.
    """

    images: Tensor
    labels: Tensor
    ids: list[int]
    clean: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, chosen: Tensor) -> Batch:
        """The batch of the images at those positions."""
        ids = [self.ids[i] for i in chosen.tolist()]
        return Batch(self.images[chosen], self.labels[chosen], ids, self.clean[chosen])


def labelled(plan: Plan, task: Task | None, estimator: str) -> dict[str, Any]:
    """The columns that all rows of a task have in common.

    Args:
        plan: The plan that is carried out.
        task: The task; None for the clean images.
        estimator: The estimator as records name it.
    """
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
