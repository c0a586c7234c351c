"""The records of two runs joined into rows: our suite, each peer, and all peers together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustsnn.common.statistics import wilson, worst_case
from robustsnn.errors import InputError
from robustsnn.records.manifest import Manifest
from robustsnn.records.schema import CLEAN, CONDITION, Size

#: Names of the two run folders in the output folder.
OURS, PEERS = "ours", "peers"


#: Name of the row of all peers together, in which an image is broken if any peer breaks it.
TOGETHER = "all peers"


@dataclass(frozen=True)
class Row:
    """One attack, or our whole suite, at one norm and epsilon.

    Args:
        attack: The name shown to readers.
        suite: The name of the suite the attack comes from.
        norm: The norm that bounds the perturbation.
        epsilon: The size of the perturbation, as it is written.
        samples: The number of images.
        accuracy: The fraction of all images that are right both when clean and under the attack.
            A tie at the top counts as an error.
        low: The lower end of the 95 % Wilson interval of the accuracy.
        high: The upper end of that interval.
        beyond: The ids of the images that the attack breaks and our suite does not.
        missed: The number of images that our suite breaks and the attack does not.
        passes: The mean number of forward and backward passes per image.
        seconds: The time for all images.
        ours: Whether the row is that of our suite.
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
    """The outcome of a crosscheck.

    Args:
        folder: The output folder.
        model: The name of the model.
        rows: The rows; at each size the one of our suite comes first.
        left_out: A sentence for each peer that was not run, which says why.
        reprinted: The manifests of the runs that were there already.
    """

    folder: Path
    model: str
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    reprinted: tuple[Manifest, ...] = ()

    @property
    def lowest(self) -> bool:
        """Whether no peer leaves a lower accuracy than our suite does, at any size."""
        return all(
            row.accuracy >= ours.accuracy for ours, peers in by_size(self.rows) for row in peers
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
        ours: The records of our suite, clean rows included. An image without a row under an
            attack was not attacked by it.
        peers: The records of the peers on the same images.
        labels: The names shown to readers for the attacks of the peers, by their names in the
            records.

    Raises:
        InputError: If the two runs are not on the same images, or have no norm and epsilon in
            common.
    """
    clean = _clean(ours)
    if not clean.index.equals(_clean(peers).index):
        raise InputError(
            "the two runs are not on the same images: run both with the same --samples."
        )
    mine, theirs = _groups(ours, clean), _groups(peers, clean)
    shared = list(dict.fromkeys(key[1:] for key in theirs if key[1:] in {k[1:] for k in mine}))
    if not shared:
        raise InputError(
            "the two suites have no norm and epsilon in common: give --norm and --epsilon."
        )
    labels = labels or {}
    suite = _suite(peers)
    rows: list[Row] = []
    for size in (Size(*key) for key in shared):
        first = [group for key, group in mine.items() if key[1:] == size]
        some = {key[0]: group for key, group in theirs.items() if key[1:] == size}
        survivors = _right(clean, first)
        rows.append(_row("ours", _suite(ours), size, clean, first, survivors, ours=True))
        rows += [
            _row(labels.get(attack, attack), suite, size, clean, [group], survivors)
            for attack, group in some.items()
        ]
        if len(some) > 1:
            rows.append(_row(TOGETHER, suite, size, clean, list(some.values()), survivors))
    return tuple(rows)


@dataclass(frozen=True)
class _Group:
    """The records of one attack at one size: margins [image], passes per image, seconds."""

    margins: NDArray[np.float64]
    passes: float
    seconds: float


def _right(clean: pd.Series[float], groups: Sequence[_Group]) -> NDArray[np.bool_]:
    """Which images are right when clean and stay right under all of these attacks, [image]."""
    return worst_case(np.stack([clean, *(group.margins for group in groups)]))


def _row(
    attack: str,
    suite: str,
    size: Size,
    clean: pd.Series[float],
    groups: Sequence[_Group],
    survivors: NDArray[np.bool_],
    ours: bool = False,
) -> Row:
    """The row of some attacks taken together; `survivors` are those of our suite, [image]."""
    right = _right(clean, groups)
    low, high = wilson(int(right.sum()), len(right))
    return Row(
        attack=attack,
        suite=suite,
        norm=size.norm,
        epsilon=size.epsilon,
        samples=len(right),
        accuracy=float(right.mean()),
        low=low,
        high=high,
        beyond=tuple(clean.index[survivors & ~right].tolist()),
        missed=int((right & ~survivors).sum()),
        passes=sum(group.passes for group in groups),
        seconds=sum(group.seconds for group in groups),
        ours=ours,
    )


def _clean(records: pd.DataFrame) -> pd.Series[float]:
    """The margin of each clean image, by image id."""
    rows = records[records["attack"] == CLEAN].set_index("image_id")
    return rows["margin"].astype(float).sort_index()


def _groups(records: pd.DataFrame, clean: pd.Series[float]) -> dict[tuple[str, str, str], _Group]:
    found = {}
    attacked = records[records["attack"] != CLEAN]
    for key, rows in attacked.groupby(CONDITION, sort=False):
        attack, norm, epsilon = map(str, key)
        margins = rows.set_index("image_id")["margin"].astype(float)
        spent = rows["forward_passes"].sum() + rows["backward_passes"].sum()
        found[attack, norm, epsilon] = _Group(
            # A NaN margin counts as an error; an image without a row was not attacked.
            np.where(clean.index.isin(margins.index), margins.reindex(clean.index), clean),
            float(spent) / len(clean),
            float(rows["seconds"].sum()),
        )
    return found


def _suite(records: pd.DataFrame) -> str:
    return str(records["suite"].iloc[0])


def by_size(rows: Sequence[Row]) -> list[tuple[Row, list[Row]]]:
    """The row of our suite and the rows of the single peers, for each norm and epsilon."""
    found = []
    for ours in (row for row in rows if row.ours):
        same = [r for r in rows if (r.norm, r.epsilon) == (ours.norm, ours.epsilon)]
        found.append((ours, [r for r in same if not r.ours and r.attack != TOGETHER]))
    return found
