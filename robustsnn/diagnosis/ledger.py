"""What each stage of a run broke and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from robustsnn.common import wording
from robustsnn.common.wording import percent
from robustsnn.diagnosis.finding import Finding
from robustsnn.diagnosis.stages import FEW_CLASSES, Stage, images_of, rows_of
from robustsnn.records.schema import Size
from robustsnn.records.summary import broken_by, right_when_clean


def ledger(records: pd.DataFrame, stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """D14: what each stage broke and cost, one row for each stage.

    Passes are given per image that the stage attacked.

    Args:
        records: The records of the run; in a cascade, only those that a stage made itself.
        stages: The stages of the run, in their order.
    """
    images = images_of(records)
    broken = broken_by(records)
    surviving: dict[Size, set[int]] = {}
    clean = right_when_clean(records)
    rows = []
    for stage in stages:
        own = rows_of(records, stage)
        attacked = own[(own["forward_passes"] + own["backward_passes"]) > 0]
        before = surviving.get(stage.size, clean)
        surviving[stage.size] = before - broken.get(stage.condition, set())
        seconds = float(own["seconds"].sum())
        backward = int(own["backward_passes"].sum())
        survive = len(surviving[stage.size])
        rows.append(
            {
                "attack": stage.attack,
                "norm": stage.norm,
                "epsilon": stage.epsilon,
                "estimator": str(own["estimator"].iloc[0]) if len(own) else stage.estimator,
                "attacked": len(attacked),
                "broken": len(before) - survive,
                "left": survive / images,
                "forward_passes": _per(int(own["forward_passes"].sum()), len(attacked)),
                "backward_passes": _per(backward, len(attacked)),
                "zero_gradients": _per(int(own["zero_grad"].sum()), backward),
                "seconds": round(seconds, 3),
                "seconds_per_image": _per(seconds, len(attacked)),
                "seconds_per_survivor": _per(seconds, survive),
            }
        )
    return rows


def total(rows: Sequence[Mapping[str, Any]], images: int, probes: Mapping[str, Any]) -> Finding:
    """D14: the cost of the whole run in one sentence.

    Args:
        rows: The ledger.
        images: The number of images of the run.
        probes: The cost of the probe, under the names of the ledger; empty if there was none.
    """
    forward = sum(row["forward_passes"] * row["attacked"] for row in rows) / images
    backward = sum(row["backward_passes"] * row["attacked"] for row in rows) / images
    seconds = sum(row["seconds"] for row in rows) / images
    own = float(probes.get("forward_passes", 0)) + float(probes.get("backward_passes", 0))
    share = _per(own, own + (forward + backward) * images)
    said = f", and this diagnosis {percent(share)} of all passes" if own else ""
    return Finding(
        "D14",
        "ledger",
        False,
        "note",
        f"The attacks took {forward:,.0f} forward and {backward:,.0f} backward passes and "
        f"{seconds:.2g} seconds an image{said}.",
        seconds,
        {"forward passes": forward, "backward passes": backward, "share of the probe": share},
    )


def few_classes(classes: int, left_out: Sequence[str]) -> Finding:
    """AutoAttack's flag for losses that need more classes than there are.

    Args:
        classes: The number of classes.
        left_out: The labels of the attacks that were left out, for this and for other reasons.

    Examples:
        >>> few_classes(2, []).sentence
        'With 2 classes the loss dlr, targeted or not, is not defined; margins are.'
    """
    which = "dlr, targeted or not," if classes < FEW_CLASSES else "targeted dlr"
    said = f" Left out: {wording.listing(list(left_out))}." if left_out else ""
    return Finding(
        "AA",
        "few-classes",
        True,
        "note",
        f"With {classes} classes the loss {which} is not defined; margins are.{said}",
        float(classes),
    )


def _per(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
