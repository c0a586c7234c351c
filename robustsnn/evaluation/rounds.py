"""Rounds of an entry of a cascade: a sample of the survivors before the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robustsnn.common.randomness import derive


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
