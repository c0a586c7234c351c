"""Entries of a suite that are repeated with doubled length until they have converged."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
