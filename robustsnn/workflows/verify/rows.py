"""Records and results of a run: whether they are what was asked for and follow from each other."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustsnn.adversary.catalogue import load_attack
from robustsnn.common.epsilon import parse_epsilon
from robustsnn.common.kinds import BEST, ENERGY, GRADIENT_FREE
from robustsnn.records.manifest import Manifest
from robustsnn.records.schema import (
    CLEAN,
    CLEAN_IMAGES,
    CONDITION,
    OPERATIONS,
    RESULTS,
    RESULTS_TEXT,
    Condition,
)
from robustsnn.records.summary import own_rows
from robustsnn.workflows.verify.asked import Expected

#: By how much a distance may exceed epsilon, or differ from the one that was recorded.
SLACK = 1e-6
#: The attacks that walk as far as they are let where they set their steps themselves, the share of
#: epsilon that the farthest of their proposals then reaches, and the fewest proposals that tell.
WALKERS, FARTHEST, ENOUGH = ("fgsm", "pgd", "apgd", "sa-pgd"), 0.75, 5
#: The attacks that move every image, whether that helps or not.
MOVERS = ("fgsm", "gaussian-noise", "uniform-noise")


#: What a row that only copies another one has in common with it.
_FOUND = ["prediction", "margin", "linf", "l2"]


def missing_columns(records: pd.DataFrame, results: pd.DataFrame) -> list[str]:
    """The columns without which nothing can be verified, as texts for a message."""
    needed = {
        "records.parquet": (
            records,
            "model image_id label suite attack estimator substitute norm epsilon seed "
            "clean_prediction prediction margin success linf l2 forward_passes backward_passes "
            "zero_grad nonfinite_grad projected seconds",
        ),
        "results.csv": (results, "attack norm epsilon accuracy"),
    }
    return [
        f"{file} lacks {name}"
        for file, (frame, names) in needed.items()
        for name in names.split()
        if name not in frame
    ]


def odd_rows(
    manifest: Manifest, records: pd.DataFrame, expected: Sequence[Expected]
) -> tuple[str, ...]:
    """What the records hold and the suite does not ask for, or the reverse, one sentence each.

    Args:
        manifest: The manifest of the run.
        records: Its records.
        expected: The attacks that the suite runs on the network.
    """
    said = _conditions(records, expected)
    said += _constants(manifest, records, expected)
    said += _by_image(manifest, records)
    said += _distances(records)
    if not said:
        said += _inherited(manifest, records, expected)
        said += _costs(manifest, records, expected)
    return tuple(said)


def _conditions(records: pd.DataFrame, expected: Sequence[Expected]) -> list[str]:
    held = [Condition(*map(str, key)) for key, _ in records.groupby(CONDITION, sort=False)]
    due = [CLEAN_IMAGES, *(one.condition for one in expected)]
    lacking = [" ".join(one).strip() for one in due if one not in held]
    extra = [" ".join(one).strip() for one in held if one not in due]
    said = [f"the records lack {', '.join(lacking)}, which the suite runs"] if lacking else []
    if extra:
        said.append(f"the records hold {', '.join(extra)}, which the suite does not run")
    if not said and held != due:
        said.append("the attacks in the records are not in the order of the suite")
    return said


def _constants(
    manifest: Manifest, records: pd.DataFrame, expected: Sequence[Expected]
) -> list[str]:
    """Columns that are the same in all rows of a run, or of an attack."""
    same = {"model": manifest.model, "suite": manifest.suite, "seed": manifest.seed}
    said = [
        f"the column {name} of the records is not {value!r} throughout"
        for name, value in same.items()
        if not bool((records[name] == value).all())
    ]
    groups = dict(iter(records.groupby(CONDITION, sort=False)))
    for one in expected:
        rows = groups.get(tuple(one.condition))
        if rows is None:
            continue
        substitute = (manifest.substitute or "") if one.black_box else ""
        if not bool((rows["substitute"].fillna("") == substitute).all()):
            said.append(f"the substitute of {one.condition.attack} is not {substitute or 'none'!r}")
        if one.stage is None:
            continue
        size = one.condition[1:]
        allowed = {one.stage["estimator"]}
        if one.stage["estimator"] == BEST:
            allowed = {
                other.stage["estimator"]
                for other in expected
                if other.stage and other.stage["probe"] and other.condition[1:] == size
            }
        if not set(rows["estimator"]) <= allowed or rows["estimator"].nunique() != 1:
            said.append(f"the estimator of {one.condition.attack} is not that of the suite")
    clean = records[records["attack"] == CLEAN]
    if not bool(((clean["estimator"] == "none") & (clean["substitute"].fillna("") == "")).all()):
        said.append("the clean rows name an estimator or a substitute")
    return said


def _by_image(manifest: Manifest, records: pd.DataFrame) -> list[str]:
    """Columns that follow from others of the same image."""
    clean = records[records["attack"] == CLEAN].drop_duplicates("image_id").set_index("image_id")
    ids = records["image_id"]
    said = []
    for name, source in (("label", "label"), ("clean_prediction", "prediction")):
        if not bool((records[name] == ids.map(clean[source])).all()):
            said.append(f"the column {name} of the records differs from the clean rows")
    label = records["label"]
    if bool((label < 0).any() or ((manifest.classes or 0) and (label >= manifest.classes).any())):
        said.append("the records hold labels that are no classes of the network")
    right = records["prediction"] == label
    broken = (records["attack"] != CLEAN) & (records["clean_prediction"] == label) & ~right
    if not bool((records["success"].astype(bool) == broken).all()):
        said.append("the column success of the records does not follow from the predictions")
    if "draws_right" in records:
        draws = records["draws_right"]
        judged = manifest.draws if manifest.stochastic else 1
        steps = draws * judged
        whole = np.isclose(steps, steps.round(), atol=1e-6) & (draws >= 0) & (draws <= 1)
        if not bool(whole.all()) or (judged == 1 and not bool((draws == right).all())):
            said.append("the column draws_right of the records does not follow from the verdicts")
    counts = records[["forward_passes", "backward_passes", "zero_grad", "nonfinite_grad"]]
    seconds = records["seconds"].to_numpy(dtype=float)
    time = bool((np.isfinite(seconds) & (seconds >= 0)).all())
    times = records["projected"].isin([0, 1])
    if bool((counts < 0).any(axis=None)) or not bool(times.all()) or not time:
        said.append("the records hold counts that cannot be")
    return said


def _distances(records: pd.DataFrame) -> list[str]:
    """Perturbations that are larger than their attack's size."""
    attacked = records[records["attack"] != CLEAN]
    own = np.where(attacked["norm"] == "Linf", attacked["linf"], attacked["l2"])
    radius = attacked["epsilon"].map({text: _radius(text) for text in set(attacked["epsilon"])})
    outside = ~(own.astype(float) <= radius.to_numpy(dtype=float) + SLACK)
    said = []
    if outside.any():
        names = sorted(set(attacked["attack"][outside]))
        said.append(f"the records hold perturbations beyond their size ({', '.join(names)})")
    clean = records[records["attack"] == CLEAN]
    if bool((clean[["linf", "l2"]] != 0).any(axis=None)):
        said.append("the clean rows hold perturbations")
    return said


def _inherited(
    manifest: Manifest, records: pd.DataFrame, expected: Sequence[Expected]
) -> list[str]:
    """Rows that do not keep what was found before them, as those of a cascade and a curve do."""
    groups = {key: rows for key, rows in records.groupby(CONDITION, sort=False)}
    said = []
    if manifest.cascade:
        own = pd.Series(own_rows(records, cascade=True), index=records.index)
        kept: dict[tuple[str, ...], pd.DataFrame] = {}
        for one in expected:
            size, rows = one.condition[1:], groups.get(tuple(one.condition))
            if rows is None or not _radius(one.condition.epsilon):
                continue
            last = kept.get(size, groups[tuple(CLEAN_IMAGES)].set_index("image_id"))
            mine = own[rows.index].to_numpy()
            copies, now = rows[~mine], rows.set_index("image_id")
            was, found = last.loc[copies["image_id"], _FOUND], copies[_FOUND]
            same = np.array_equal(was.to_numpy(float), found.to_numpy(float), equal_nan=True)
            spent = copies[["forward_passes", "backward_passes"]]
            if not same or bool((spent != 0).any(axis=None)):
                said.append(
                    f"{one.condition.attack} has rows of its own for images that fell before it"
                )
            broken = mine & ~(rows["margin"].to_numpy(dtype=float) < 0)
            ids = rows["image_id"].to_numpy()
            taken = np.isin(last.index, ids[broken])
            kept[size] = pd.concat([last[~taken], now.loc[last.index[taken]]])
    for small, large in itertools.pairwise(expected) if manifest.curve else ():
        lower, upper = groups.get(tuple(small.condition)), groups.get(tuple(large.condition))
        same_attack = small.condition[:2] == large.condition[:2]
        if lower is None or upper is None or small.stage is None or not same_attack:
            continue
        if small.stage["kind"] in (*GRADIENT_FREE, ENERGY):
            continue
        if not 0 < _radius(small.condition.epsilon) < _radius(large.condition.epsilon):
            continue
        lower = lower.set_index("image_id").sort_index()
        upper = upper.set_index("image_id").sort_index()
        fell = lower["prediction"] != lower["label"]
        rose = fell & (upper["prediction"] == upper["label"])
        rose |= ~fell & (upper["margin"] < lower["margin"])
        if rose.any():
            said.append(
                f"{large.condition.attack} at {large.condition.epsilon} does not keep what it "
                f"found at {small.condition.epsilon}"
            )
    return said


def _radius(text: str) -> float:
    return parse_epsilon(text)


def _costs(manifest: Manifest, records: pd.DataFrame, expected: Sequence[Expected]) -> list[str]:
    """Attacks that took fewer steps, or went less far, than their settings say."""
    own = records[own_rows(records, manifest.cascade)]
    groups = dict(iter(own.groupby(CONDITION, sort=False)))
    said = []
    for one in expected:
        rows = groups.get(tuple(one.condition))
        name = one.spec.partition(":")[0].strip()
        radius = _radius(one.condition.epsilon)
        known = name in (*WALKERS, *MOVERS) and one.stage is not None and not one.black_box
        if rows is None or one.stage is None or not known or not radius:
            continue
        if not manifest.attack_misclassified:
            rows = rows[rows["clean_prediction"] == rows["label"]]
        stayed = (rows["linf"] == 0) & (rows["zero_grad"] == 0) & (rows["projected"] == 0)
        if name in MOVERS and stayed.any():
            said.append(f"{one.condition.attack} left {int(stayed.sum())} images as they were")
        # An image that was broken may have been left early, and one that did not move stayed put
        # because nothing around it was better.
        survivors = rows[rows["margin"] < 0]
        moved = survivors[(survivors["linf"] > 0) & (survivors["zero_grad"] == 0)]["linf"]
        if (
            name in WALKERS
            and goes_far(one)
            and len(moved) >= ENOUGH
            and moved.max() < FARTHEST * radius
        ):
            said.append(
                f"no proposal of {one.condition.attack} goes further than {moved.max():.4g}, and "
                f"its size is {one.condition.epsilon}"
            )
        passes = survivors[["forward_passes", "backward_passes"]].max(axis=1)
        least = _least_passes(name, one.stage)
        if least and len(survivors) and passes.min() < least:
            said.append(
                f"{one.condition.attack} took {int(passes.min())} passes on an image that "
                f"survived, and its steps take {least}"
            )
    return said


def goes_far(one: Expected) -> bool:
    """Whether an attack of ours sets its steps so that it can reach the whole of its size.

    Args:
        one: The attack at its size.
    """
    name = one.spec.partition(":")[0].strip()
    free = "step" not in one.spec.replace("steps", "")
    return name in WALKERS and free and one.condition.norm == "Linf"


def as_far_as_a_step(one: Expected) -> bool:
    """Whether an attack of ours gets at least as far as one step of the length of its size.

    Args:
        one: The attack at its size.
    """
    if one.spec.partition(":")[0].strip() not in WALKERS:
        return False
    attack: Any = load_attack(one.spec)
    size = getattr(attack, "step_size", None)
    if size is None:
        return True
    # Longer steps may jump over what a shorter one meets.
    length, radius = parse_epsilon(str(size)), _radius(one.condition.epsilon)
    return length <= radius <= length * int(attack.steps)


def _least_passes(name: str, stage: Mapping[str, Any]) -> int:
    """The passes that an image costs at least if it survives; 0 if nobody can say."""
    steps, restarts = stage.get("steps"), stage.get("restarts")
    if name == "fgsm":
        return 1
    if name != "pgd" or not isinstance(steps, int):
        return 0
    return steps * (restarts if isinstance(restarts, int) else 1)


def wrong_rows(results: pd.DataFrame, due: pd.DataFrame, without: Sequence[str] = ()) -> int:
    """The number of rows of `results.csv` that are not those that follow, or are missing.

    Args:
        results: The rows as they are written.
        due: The rows as they follow from manifest and records.
        without: The columns that nobody can tell.
    """
    again, written = due.set_index(CONDITION), results.set_index(CONDITION)
    if written.index.has_duplicates:
        return len(written)
    # Older runs do not have a column of draws.
    columns = [c for c in RESULTS if c in written or c != "draws_accuracy"]
    columns += [OPERATIONS] if OPERATIONS in again or OPERATIONS in written else []
    columns = [c for c in columns if c not in (*CONDITION, *without)]
    wrong = len(again.index.symmetric_difference(written.index))
    strange = set(written.columns) - {*RESULTS, OPERATIONS}
    for key in again.index.intersection(written.index):
        want, said = again.loc[key].reindex(columns), written.loc[key].reindex(columns)
        text = [c for c in columns if c in RESULTS_TEXT]
        numbers = [c for c in columns if c not in text]
        one, other = (_floats(row[numbers]) for row in (want, said))
        alike = np.allclose(one, other, rtol=1e-6, atol=1e-9, equal_nan=True)
        wrong += bool(
            strange or not alike or want[text].map(_as_text).tolist() != said[text].tolist()
        )
    return wrong


def _floats(row: pd.Series) -> NDArray[np.float64]:
    return pd.to_numeric(row, errors="coerce").to_numpy(dtype=float)


def _as_text(value: object) -> str:
    return "" if value is None else str(value)


def contradictory(records: pd.DataFrame) -> int:
    """The number of records that are right by prediction and wrong by margin, or the reverse."""
    right = records["prediction"] == records["label"]
    margins = records["margin"]
    return int(((right & (margins.isna() | (margins > 0))) | (~right & (margins < 0))).sum())


def incomplete(records: pd.DataFrame, samples: int) -> int:
    """The number of attacks, clean included, without one record for each image of the run."""
    clean = records[records["attack"] == CLEAN]["image_id"].tolist()
    groups = records.groupby(CONDITION, sort=False)["image_id"]
    broken = sum(
        len(ids) != samples or len(set(ids)) != samples or ids.tolist() != clean
        for _, ids in groups
    )
    return broken or int(samples < 1)
