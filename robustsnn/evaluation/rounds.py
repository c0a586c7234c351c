"""Entries of a cascade that run in rounds: longer and longer ones, or a sample before the rest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from robustsnn.common.randomness import derive

#: The number of steps in the specification of an attack.
_STEPS = re.compile(r"(?<=[:,])\s*steps\s*=\s*(\d+)\s*(?=,|$)")


class Until(BaseModel):
    """When an entry that is repeated with doubled length has converged.

    Attributes:
        gain: The gain of a round, in points of accuracy over all images, below which no longer
            round follows.
        least: The least number of rounds.
        most: The greatest number of rounds. A round after which none may follow, and which still
            broke more, is flagged.

    Examples:
        >>> Until(most=3).gain
        0.5
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gain: Annotated[float, Field(gt=0, le=100)] = 0.5
    least: Annotated[int, Field(ge=2, le=20)] = 2
    most: Annotated[int, Field(ge=2, le=20)] = 4

    @model_validator(mode="after")
    def _consistent(self) -> Until:
        if self.most < self.least:
            raise ValueError(f"most: {self.most} rounds are fewer than least, {self.least}")
        return self

    def reached(self, broken: int, images: int) -> bool:
        """Whether a round that broke so many of all images is the last one that is needed.

        Args:
            broken: The number of images that the round broke.
            images: The number of all images of the run.

        Examples:
            >>> Until(gain=0.5).reached(broken=4, images=1000)
            True
        """
        return 100 * broken < self.gain * images


def steps_in(attack: str) -> int | None:
    """The number of steps that the specification of an attack names; None if it names none.

    Examples:
        >>> steps_in("sa-pgd:steps=400,loss=margin")
        400
    """
    found = _STEPS.search(attack)
    return None if found is None else int(found[1])


def rounds_of(label: str, attack: str, most: int) -> list[tuple[str, str]]:
    """The labels and the specifications of rounds of an attack, each twice as long as the last.

    Args:
        label: The label of the entry.
        attack: The specification of the first round, which names its steps.
        most: The number of rounds.

    Examples:
        >>> rounds_of("SA-PGD", "sa-pgd:steps=400", 2)
        [('SA-PGD 400', 'sa-pgd:steps=400'), ('SA-PGD 800', 'sa-pgd:steps=800')]
    """
    steps = steps_in(attack)
    if steps is None:
        raise ValueError(f"{attack} names no steps")
    found = []
    for times in range(most):
        taken = steps * 2**times
        found.append((f"{label} {taken}", _STEPS.sub(f"steps={taken}", attack, count=1)))
    return found


@dataclass(frozen=True)
class Round:
    """A finished round of an entry.

    Args:
        where: The positions of the images that it attacked, ascending.
        broken: The number of them that it broke.
    """

    where: NDArray[np.int64]
    broken: int


def sampled(ids: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The positions of a sample of images, ascending; it depends on their ids and nothing else.

    Args:
        ids: The ids of the images.
        size: The number of images of the sample; all of them if there are fewer.

    Examples:
        >>> sampled(np.array([7, 3, 9]), 5)
        array([0, 1, 2])
    """
    keys = [derive("sample", int(one)) for one in ids]
    return np.sort(np.argsort(keys, kind="stable")[:size]).astype(np.int64)


def rest_after(before: Sequence[Round], survivors: NDArray[np.int64]) -> NDArray[np.int64]:
    """The survivors that were not in the sample, if one of those broke; else none.

    Args:
        before: The round of the sample.
        survivors: The positions of all survivors.
    """
    (first,) = before
    return np.setdiff1d(survivors, first.where) if first.broken else survivors[:0]
