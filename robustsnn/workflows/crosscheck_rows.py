"""The records of two runs as rows: our suite, each peer, and all peers together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustsnn.common.statistics import wilson, worst_case
from robustsnn.errors import InputError
from robustsnn.records.schema import CLEAN, Size

#: The run folders below the output.
OURS, PEERS = "ours", "peers"


#: The row of all peers together, each image under the one that breaks it.
TOGETHER = "all peers"


@dataclass(frozen=True)
class Row:
    """One attack, or our whole suite, at one norm and epsilon.

    Args:
        attack: As it is shown; `suite` is where it comes from.
        accuracy: Fraction of all images that are right when clean and under it, with its 95 %
            Wilson interval `low`, `high`. A tie at the top is an error.
        beyond: Ids of the images that it breaks and our suite does not.
        missed: How many images our suite breaks and it does not.
        passes: Forward and backward passes, mean per image.
        seconds: For all images.
    """

    attack: str
    suite: str
    norm: str
    epsilon: str
    samples: int
    accuracy: float
    low: float
    high: float
    beyond: tuple[int, ...]
    missed: int
    passes: float
    seconds: float
    ours: bool = False


@dataclass(frozen=True)
class Crosscheck:
    """What came out: `rows` with ours first at each size, and what was left out and why."""

    folder: Path
    model: str
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]

    @property
    def lowest(self) -> bool:
        """Whether no peer leaves a lower accuracy than our suite does, at any size."""
        return all(
            row.accuracy >= ours.accuracy for ours, peers in _sizes(self.rows) for row in peers
        )

    @property
    def against(self) -> tuple[int, ...]:
        """Ids of the images that a peer breaks and our suite does not."""
        return tuple(sorted({image for row in self.rows for image in row.beyond}))


def join(
    ours: pd.DataFrame, peers: pd.DataFrame, labels: Mapping[str, str] | None = None
) -> tuple[Row, ...]:
    """Rows of our suite, each peer and all peers together, from the records of two runs.

    Args:
        ours: Records of our suite, clean rows included; an image without a row under an attack
            was not attacked by it.
        peers: Records of the peers on the same images.
        labels: How an attack of the peers is shown, by its name in the records.

    Raises:
        InputError: The runs are of other images, or have no norm and epsilon in common.
    """
    clean = _clean(ours)
    if not clean.index.equals(_clean(peers).index):
        raise InputError("the two runs are not of the same images: run both on the same --samples.")
    mine, theirs = _groups(ours, clean), _groups(peers, clean)
    shared = list(dict.fromkeys(key[1:] for key in theirs if key[1:] in {k[1:] for k in mine}))
    if not shared:
        raise InputError(
            "the two suites have no norm and epsilon in common: give --norm and --epsilon."
        )
    labels = labels or {}
    suite = _suite(peers)
    rows: list[Row] = []
    for threat in (Size(*key) for key in shared):
        first = [group for key, group in mine.items() if key[1:] == threat]
        some = {key[0]: group for key, group in theirs.items() if key[1:] == threat}
        standing = _right(clean, first)
        rows.append(_row("ours", _suite(ours), threat, clean, first, standing, ours=True))
        rows += [
            _row(labels.get(attack, attack), suite, threat, clean, [group], standing)
            for attack, group in some.items()
        ]
        if len(some) > 1:
            rows.append(_row(TOGETHER, suite, threat, clean, list(some.values()), standing))
    return tuple(rows)


@dataclass(frozen=True)
class _Group:
    """The records of one attack at one size: margins `[image]`, passes per image, seconds."""

    margins: NDArray[np.float64]
    passes: float
    seconds: float


def _right(clean: pd.Series[float], groups: Sequence[_Group]) -> NDArray[np.bool_]:
    """Which images stay right, clean and under all of these."""
    return worst_case(np.stack([clean, *(group.margins for group in groups)]))


def _row(
    attack: str,
    suite: str,
    threat: Size,
    clean: pd.Series[float],
    groups: Sequence[_Group],
    standing: NDArray[np.bool_],
    ours: bool = False,
) -> Row:
    """The row of attacks taken together; `standing` are the images that our suite leaves."""
    right = _right(clean, groups)
    low, high = wilson(int(right.sum()), len(right))
    return Row(
        attack=attack,
        suite=suite,
        norm=threat[0],
        epsilon=threat[1],
        samples=len(right),
        accuracy=float(right.mean()),
        low=low,
        high=high,
        beyond=tuple(clean.index[standing & ~right].tolist()),
        missed=int((right & ~standing).sum()),
        passes=sum(group.passes for group in groups),
        seconds=sum(group.seconds for group in groups),
        ours=ours,
    )


def _clean(records: pd.DataFrame) -> pd.Series[float]:
    """The margin of each clean image, by id."""
    rows = records[records["attack"] == CLEAN].set_index("image_id")
    return rows["margin"].astype(float).sort_index()


def _groups(records: pd.DataFrame, clean: pd.Series[float]) -> dict[tuple[str, str, str], _Group]:
    found = {}
    attacked = records[records["attack"] != CLEAN]
    for key, rows in attacked.groupby(["attack", "norm", "epsilon"], sort=False):
        attack, norm, epsilon = map(str, key)
        margins = rows.set_index("image_id")["margin"].astype(float)
        spent = rows["forward_passes"].sum() + rows["backward_passes"].sum()
        found[attack, norm, epsilon] = _Group(
            # A NaN margin is an error of the network; a missing row is no attack.
            np.where(clean.index.isin(margins.index), margins.reindex(clean.index), clean),
            float(spent) / len(clean),
            float(rows["seconds"].sum()),
        )
    return found


def _suite(records: pd.DataFrame) -> str:
    return str(records["suite"].iloc[0])


def _sizes(rows: Sequence[Row]) -> list[tuple[Row, list[Row]]]:
    """Our row and those of the single peers, at each norm and epsilon."""
    found = []
    for ours in (row for row in rows if row.ours):
        same = [r for r in rows if (r.norm, r.epsilon) == (ours.norm, ours.epsilon)]
        found.append((ours, [r for r in same if not r.ours and r.attack != TOGETHER]))
    return found
