"""Records to numbers: which images are right, which survive, and the rows of `results.csv`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustsnn.common.epsilon import parse_epsilon
from robustsnn.common.statistics import wilson, worst_case
from robustsnn.records.schema import (
    CLEAN,
    CONDITION,
    OPERATIONS,
    RESULTS,
    WORST_CASE,
    Condition,
    Size,
)


def classified_right(rows: pd.DataFrame, cascade: bool = False) -> NDArray[np.bool_]:
    """Whether the proposal in each row of an attack is classified right, bool `[row]`.

    The predicted class decides, as in papers. In a cascade, where a row says whether an image
    survived an entry, a tie at the top is an error too: such an image was not attacked again.

    Args:
        rows: The records of one attack.
        cascade: Whether each attack saw only the survivors of those before it.

    Examples:
        >>> tied = pd.DataFrame({"label": [3], "prediction": [3], "margin": [0.0]})
        >>> classified_right(tied).tolist(), classified_right(tied, cascade=True).tolist()
        ([True], [False])
    """
    right = (rows["prediction"] == rows["label"]).to_numpy(dtype=bool)
    if not cascade:
        return right
    return right & (rows["margin"].to_numpy(dtype=float) < 0)


def right_draws(rows: pd.DataFrame) -> NDArray[np.float64]:
    """The fraction of draws on which each row is right, `[row]`; older runs have one draw."""
    if "draws_right" in rows:
        return rows["draws_right"].to_numpy(dtype=float)
    return (rows["prediction"] == rows["label"]).to_numpy(dtype=bool).astype(float)


def summarise(
    records: pd.DataFrame,
    data: str,
    settings: Mapping[str, tuple[object, object]],
    flags: Mapping[Condition, Sequence[str]] | None = None,
    cascade: bool = False,
) -> pd.DataFrame:
    """Records of one model as rows of `results.csv`: clean, each attack, then the worst cases.

    Args:
        records: The records, with one row for each image and condition, clean included.
        data: The name of the data set.
        settings: The steps and the restarts of each attack; each is None if it has none.
        flags: The slugs of flags by condition.
        cascade: Whether each attack saw only the survivors of those before it.
    """
    flags = flags or {}
    clean = records[records["attack"] == CLEAN].set_index("image_id").sort_index()
    clean_right = (clean["prediction"] == clean["label"]).to_numpy(dtype=bool)
    first = records.iloc[0]
    rows: list[dict[str, object]] = []

    def row(about: Condition, right: NDArray[np.bool_], **measured: object) -> None:
        correct, n = int(right.sum()), len(right)
        low, high = wilson(correct, n)
        attacked = about.attack != CLEAN and bool(clean_right.any())
        broken = float((clean_right & ~right).sum() / clean_right.sum()) if attacked else np.nan
        rows.append(
            {
                "model": first["model"],
                "data": data,
                "samples": n,
                "suite": first["suite"],
                **about._asdict(),
                "seed": first["seed"],
                "accuracy": correct / n,
                "ci_low": low,
                "ci_high": high,
                "attack_success_rate": broken,
                "flags": ";".join(flags.get(about, ())),
                **measured,
            }
        )

    by_size: dict[Size, list[pd.DataFrame]] = {}
    for key, some in records.groupby(CONDITION, sort=False):
        about = Condition(*map(str, key))
        some = some.set_index("image_id").sort_index()
        right = classified_right(some, cascade and about.attack != CLEAN)
        row(about, right, **_measured(some, *settings.get(about.attack, (None, None))))
        if about.attack != CLEAN:
            by_size.setdefault(Size(about.norm, about.epsilon), []).append(some)
    for size, several in by_size.items():
        margins = np.stack([clean["margin"], *(some["margin"] for some in several)])
        row(Condition(WORST_CASE, *size), worst_case(margins), **_together(clean, several))
    counted = [OPERATIONS] if OPERATIONS in records else []
    return pd.DataFrame(rows, columns=[*RESULTS, *counted])


def _measured(some: pd.DataFrame, steps: object, restarts: object) -> dict[str, object]:
    """The columns of `results.csv` about the cost and the perturbations of one attack."""
    return {
        "draws_accuracy": right_draws(some).mean(),
        "estimator": some["estimator"].iloc[0],
        "substitute": some["substitute"].iloc[0],
        "steps": "" if steps is None else steps,
        "restarts": "" if restarts is None else restarts,
        "mean_linf": some["linf"].mean(),
        "mean_l2": some["l2"].mean(),
        "forward_passes": some["forward_passes"].mean(),
        "backward_passes": some["backward_passes"].mean(),
        "seconds": some["seconds"].sum(),
        **_spent([some]),
    }


def _together(clean: pd.DataFrame, several: Sequence[pd.DataFrame]) -> dict[str, object]:
    """The same columns for all attacks of a size taken together."""
    return {
        "draws_accuracy": np.min([right_draws(one) for one in (clean, *several)], 0).mean(),
        "estimator": "",
        "substitute": "",
        "steps": "",
        "restarts": "",
        "mean_linf": np.nan,
        "mean_l2": np.nan,
        "forward_passes": sum(some["forward_passes"].mean() for some in several),
        "backward_passes": sum(some["backward_passes"].mean() for some in several),
        "seconds": sum(some["seconds"].sum() for some in several),
        **_spent([clean, *several]),
    }


def _spent(several: Sequence[pd.DataFrame]) -> dict[str, object]:
    """The largest synaptic operations of each image in some records, in the mean over images.

    Empty for runs that did not count them. Counts that are missing are left out.
    """
    if any(OPERATIONS not in some for some in several):
        return {}
    return {OPERATIONS: pd.concat([s[OPERATIONS] for s in several], axis=1).max(axis=1).mean()}


def broken_by(records: pd.DataFrame) -> dict[Condition, set[int]]:
    """The ids of the images that each attack broke, by condition.

    Only images that are right when clean count. A tie at the top is an error, as in the worst
    case.
    """
    right = records["clean_prediction"] == records["label"]
    wrong = (records["prediction"] != records["label"]) | ~(records["margin"] < 0)
    some = records[right & wrong & (records["attack"] != CLEAN)]
    found: dict[Condition, set[int]] = {}
    for key, rows in some.groupby(CONDITION, sort=False):
        attack, norm, epsilon = map(str, key)
        found[Condition(attack, norm, epsilon)] = set(rows["image_id"].tolist())
    return found


def right_when_clean(records: pd.DataFrame) -> set[int]:
    """The ids of the images that are right when clean, a tie being an error."""
    return survivors(records[records["attack"] == CLEAN])


def survivors(records: pd.DataFrame, size: Size | None = None) -> set[int]:
    """The ids of the images that are right when clean and under every attack.

    A tie at the top is an error, and so is a margin that is NaN because logits were not finite.

    Args:
        records: The clean rows of a run and the rows of the attacks in question.
        size: The norm and size of the attacks that count; None for all.
    """
    if size is not None:
        same = (records["norm"] == size.norm) & (records["epsilon"] == size.epsilon)
        records = records[(records["attack"] == CLEAN) | same]
    right = (records["prediction"] == records["label"]) & (records["margin"] < 0)
    every = right.groupby(records["image_id"]).all()
    return {int(image) for image in every.index[every]}


def own_rows(
    records: pd.DataFrame, cascade: bool, rounds: Collection[Condition] = ()
) -> NDArray[np.bool_]:
    """Whether an attack made each record itself, bool `[row]`; true for clean images.

    In a cascade every attack has a row for each image, and the rows after the attack that broke an
    image are copies. An attack made a row itself if the image had survived all attacks before it
    at that norm and size. At size 0, nothing is attacked.

    Args:
        records: Every record of a run, in the order in which they were made.
        cascade: Whether each attack saw only the survivors of those before it.
        rounds: The attacks that may leave survivors alone, as a round does that is not needed; they
            made the rows that took passes, or that broke an image.
    """
    own = np.ones(len(records), dtype=bool)
    if not cascade:
        return own
    images = records["image_id"].to_numpy()
    broken = ~(records["margin"].to_numpy(dtype=float) < 0)
    surviving: dict[Size, set[int]] = {}
    places = records.groupby(CONDITION, sort=False).indices
    order: list[tuple[Any, Any]] = sorted(places.items(), key=lambda item: int(item[1][0]))
    for key, rows in order:
        attack, *size_of = map(str, key)
        if attack == CLEAN:
            continue
        size = Size(*size_of)
        before = surviving.setdefault(size, right_when_clean(records))
        seen = np.isin(images[rows], list(before)) & (parse_epsilon(size.epsilon) > 0)
        if Condition(attack, *size) in rounds:
            took = records["forward_passes"].to_numpy()[rows] > 0
            seen &= took | broken[rows]
        own[rows] = seen
        before.difference_update(images[rows][seen & broken[rows]].tolist())
    return own
