"""What a sweep may cost, before anything is attacked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from robustsnn.adversary.victim import Victim
from robustsnn.estimators.make import make_estimator
from robustsnn.evaluation.batch import batches_of, inputs_of
from robustsnn.evaluation.expected import BACKWARD, passes_of
from robustsnn.evaluation.plan import Plan, prepare
from robustsnn.workflows.sweep.spec import Sweep


@dataclass(frozen=True)
class Cost:
    """What a run may cost at most.

    Args:
        name: The name of its run folder.
        cells: The number of its cells.
        passes: The passes of single images, a backward pass counted as two; images that break
            early take fewer.
        seconds_per_pass: The seconds of a pass on this machine with one thread.
    """

    name: str
    cells: int
    passes: float
    seconds_per_pass: float

    @property
    def hours(self) -> float:
        """The hours of one worker."""
        return self.passes * self.seconds_per_pass / 3600


def costs(
    asked: Sweep, data_root: Path | None = None, *, allow_code: bool = False
) -> Iterator[Cost]:
    """What each run of a sweep may cost at most; each network makes two gradients of one batch.

    Args:
        asked: The sweep.
        data_root: The folder of the data sets.
        allow_code: Whether Python files that suites name may be run.

    Raises:
        InputError: A run cannot be carried out.
    """
    torch.set_num_threads(1)
    for name, request in asked.requests(data_root, allow_code):
        plan = prepare(request)
        images, slices = len(plan.images), len(batches_of(plan))
        passes = images * (1.0 + sum(passes_of(task.attack) for task in plan.tasks))
        yield Cost(name, slices * (1 + len(plan.tasks)), passes, seconds_per_pass(plan))


def seconds_per_pass(plan: Plan) -> float:
    """The seconds of a forward pass of one image in a batch; a backward pass counts as two."""
    count = min(plan.batch_size, len(plan.images))
    images, labels, ids = inputs_of(plan, slice(0, count))
    network = plan.subject.load()
    victim = Victim(network, make_estimator("bptt", network), ids, plan.batch_size, plan.seed)
    victim.gradient(images, labels)
    began = time.perf_counter()
    victim.gradient(images, labels)
    return (time.perf_counter() - began) / (count * (1.0 + BACKWARD))
