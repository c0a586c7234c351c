"""Curves over the size: each size keeps what smaller ones found, so that a curve cannot rise.

A proposal for a size lies inside the ball of every larger one. An image that fell at a smaller size
has therefore fallen at a larger one too and is not attacked again. Of any other image, the proposal
that comes closest to an error is kept. An attack is never weaker by it than on its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustsnn.common.kinds import ENERGY, GRADIENT_FREE
from robustsnn.evaluation.batch import PROPOSAL, part_name
from robustsnn.evaluation.plan import Plan
from robustsnn.records.folder import RunFolder
from robustsnn.records.schema import OPERATIONS

#: The columns of a row that say what became of its proposal.
_OF_PROPOSAL = ("prediction", "margin", "draws_right", "success", "linf", "l2", OPERATIONS)


@dataclass(frozen=True, eq=False)
class Smaller:
    """What an attack found for a batch at the next smaller size.

    Args:
        rows: The records of the batch.
        proposals: Its proposals, `[batch, ...]`.
    """

    rows: pd.DataFrame
    proposals: Tensor

    @property
    def fell(self) -> NDArray[np.bool_]:
        """Whether each image is classified wrong, bool `[batch]`."""
        return (self.rows["prediction"] != self.rows["label"]).to_numpy(dtype=bool)

    def kept(self, rows: pd.DataFrame, proposals: Tensor) -> tuple[pd.DataFrame, Tensor]:
        """The records and the proposals of the larger size, each the better of both sizes.

        Args:
            rows: The records of the larger size.
            proposals: Its proposals, `[batch, ...]`.
        """
        fell = (rows["prediction"] != rows["label"]).to_numpy(dtype=bool)
        closer = self.rows["margin"].to_numpy() > rows["margin"].to_numpy()
        keep = self.fell | (~fell & closer)
        better = {
            name: np.where(keep, self.rows[name].to_numpy(), rows[name].to_numpy())
            for name in _OF_PROPOSAL
            if name in rows
        }
        rows = rows.assign(**better)
        where = torch.from_numpy(keep).to(proposals.device).view(-1, *[1] * (proposals.dim() - 1))
        return rows, torch.where(where, self.proposals.to(proposals), proposals)


def before(plan: Plan, index: int) -> int | None:
    """The task of the same attack at the next smaller size; None if there is none.

    Noise, which is measured at each size for itself, is left as it is, and so are attacks on
    energy.
    """
    if not plan.suite.curve or index == 0:
        return None
    task, last = plan.tasks[index], plan.tasks[index - 1]
    apart = (*GRADIENT_FREE, ENERGY)
    same = (last.slug, last.threat.norm) == (task.slug, task.threat.norm)
    smaller = 0 < last.threat.radius < task.threat.radius
    return index - 1 if same and smaller and task.attack.kind not in apart else None


def found_before(plan: Plan, folder: RunFolder, index: int, batch: int) -> Smaller | None:
    """What the attack of a task found for a batch at the next smaller size, if there is one."""
    last = before(plan, index)
    if last is None:
        return None
    name = found_name(last)
    rows = folder.read_part(name, batch)
    images = folder.read_images(name, batch, PROPOSAL, range(len(rows)))
    return Smaller(rows, torch.from_numpy(images))


def keep_found(
    plan: Plan, folder: RunFolder, index: int, batch: int, rows: pd.DataFrame, proposals: Tensor
) -> None:
    """Store what a task found for a batch, if a larger size starts from it."""
    if index + 1 < len(plan.tasks) and before(plan, index + 1) == index:
        images = {PROPOSAL: proposals.cpu().numpy()}
        folder.write_part(found_name(index), batch, rows, images)


def found_name(index: int) -> str:
    """The name of the parts in which a task keeps what it found."""
    return f"found-{part_name(index)}"
