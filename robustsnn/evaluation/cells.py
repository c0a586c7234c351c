"""Cells: what an evaluation computes at once, in this process or in another.

A cell is gathered and kept by the process that holds the run folder. What lies between is a
function of the plan and of what was gathered, so that it can be computed anywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from robustsnn.evaluation.activity import activity
from robustsnn.evaluation.batch import Networks
from robustsnn.evaluation.diagnose import measured
from robustsnn.evaluation.judging import attacked, clean
from robustsnn.evaluation.plan import Plan
from robustsnn.models.reading import Reading

#: What can be computed, by name. Each takes the plan, the networks and what was gathered.
WORK: Mapping[str, Callable[..., Any]] = {
    "clean": clean,
    "attack": attacked,
    "probe": measured,
    "activity": activity,
}


@dataclass(frozen=True, eq=False)
class Cell:
    """Something to compute for some images of an evaluation.

    Args:
        what: What is computed, in words, for whoever waits.
        work: The name of the function that computes it, one of `WORK`.
        gather: The function that reads what the work takes, by name.
        keep: The function that stores what was computed.
        passes: The number of passes that it may take, as far as that can be said beforehand; a
            backward pass counts as two.
        index: The number of the task in the plan; None for work on the network alone.
        estimator: The estimator that the task runs with, which replaces `best`.
        reading: Where the network under attack is read; None for its logits.
    """

    what: str
    work: str
    gather: Callable[[], dict[str, Any]] = field(repr=False)
    keep: Callable[[Any], None] = field(repr=False)
    passes: float = 1.0
    index: int | None = None
    estimator: str = ""
    reading: Reading | None = field(default=None, repr=False)

    @property
    def asked(self) -> tuple[str, int | None, str, Reading | None]:
        """What a bench is asked to compute: work, task, estimator and reading."""
        return self.work, self.index, self.estimator, self.reading


class Bench:
    """Where cells of one plan are computed; it holds the networks of the last task.

    Args:
        plan: The plan, which may come without its images.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._judging = plan.subject.load()
        self._last: tuple[int | None, str, Networks] | None = None

    @property
    def device(self) -> str:
        """The device that computes."""
        return self._plan.device

    def compute(
        self,
        work: str,
        index: int | None,
        estimator: str,
        reading: Reading | None,
        given: Mapping[str, Any],
    ) -> Any:
        """Compute a cell.

        Args:
            work: The name of what to compute.
            index: The number of the task whose networks it works on.
            estimator: The estimator that the task runs with.
            reading: Where the network under attack is read.
            given: What the work takes besides its task.

        Raises:
            InputError: The network or an attack of the user's own cannot be used.
        """
        task = None
        if index is not None:
            task = dataclasses.replace(self._plan.tasks[index], estimator=estimator)
        if self._last is None or self._last[:2] != (index, estimator):
            # New copies for a task, so that no attack meets what another did to a network.
            networks = Networks.of(self._plan, task, self._judging, reading)
            self._last = (index, estimator, networks)
        more = {} if task is None else {"task": task}
        return WORK[work](self._plan, self._last[2], **more, **given)
