"""Some images of a run, attacked again by its whole suite."""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from robustsnn.data.images import Images, TensorSet
from robustsnn.evaluation.plan import Plan, tasks_of
from robustsnn.evaluation.progress import Progress
from robustsnn.evaluation.run import records_of
from robustsnn.evaluation.suites import suite_of
from robustsnn.records.folder import RunFolder
from robustsnn.records.schema import CONDITION, Size
from robustsnn.records.summary import survivors
from robustsnn.workflows.verify.asked import Expected

#: The share of images that may end otherwise at a size: an attack walks elsewhere on another
#: machine, and an image that is broken late may then be missed, or found.
MISSED = 0.05
#: The number of saved images that a single step is tried on, and the share of those that the run
#: calls robust, and the least number of them, whose fall contradicts the run.
LOOKED_AT, FALLEN, FEWEST_FALLEN = 64, 0.1, 3
#: The fewest images attacked again on which what an attack costs is compared, how many times as
#: many passes it may be said to take, and by how much the share of its gradients that are all zero
#: may differ.
ENOUGH, TIMES, ZEROS = 4, 1.5, 0.1


def some_of(images: Images, count: int) -> TensorSet:
    """Some images, drawn by the system's own randomness so that nobody can tell which beforehand.

    They keep their ids, which decide the draws of an attack.

    Args:
        images: The images to draw from.
        count: How many are drawn; all if there are fewer.
    """
    chosen = sorted(random.SystemRandom().sample(range(len(images)), min(count, len(images))))
    pixels = torch.cat([images.tensor(slice(i, i + 1)) for i in chosen])
    return TensorSet(
        images.name,
        pixels,
        images.labels[chosen],
        images.ids[chosen],
        tuple(images.class_names),
        images.fingerprint,
    )


def attacked_again(
    plan: Plan, records: pd.DataFrame, progress: Progress | None = None
) -> tuple[int, tuple[str, ...], tuple[tuple[int, str], ...]]:
    """Attack the images of a plan, and compare which of them survive with what a run says.

    Args:
        plan: The plan of the run, on some of its images.
        records: The records of the run.
        progress: The function that is told of every finished batch.

    Returns:
        The number of images, a sentence for each size at which too many of them end otherwise, and
        the id and the size of each of those.
    """
    with tempfile.TemporaryDirectory(prefix="robustsnn-") as scratch:
        again = records_of(plan, RunFolder(Path(scratch)), progress)
    ids = plan.images.ids.tolist()
    stated = records[records["image_id"].isin(ids)]
    said: list[str] = []
    differing: list[tuple[int, str]] = []
    for size in dict.fromkeys(task.size for task in plan.tasks):
        fell, stood = _compared(stated, again, size)
        if len(fell) + len(stood) > int(MISSED * len(ids)):
            said.append(
                f"of {len(ids)} images attacked again at {size.norm} {size.epsilon}, {len(fell)} "
                f"fell that the run calls robust and {len(stood)} stood that it calls broken"
            )
        where = f"{size.norm} {size.epsilon}, attacked again"
        differing += [(image, where) for image in sorted([*fell, *stood])]
    return len(ids), (*said, *_spent(stated, again)), tuple(differing)


def _spent(stated: pd.DataFrame, again: pd.DataFrame) -> list[str]:
    """The attacks that took other passes, or met other gradients, than a run says."""
    said = []
    then = dict(iter(stated.groupby(CONDITION, sort=False)))
    for key, rows in again.groupby(CONDITION, sort=False):
        if (was := then.get(key)) is None:
            continue
        now, was = (one.drop_duplicates("image_id").set_index("image_id") for one in (rows, was))
        # An image that ends otherwise is left at another moment.
        was = was.reindex(now.index)
        alike = (now["margin"] < 0) == (was["margin"] < 0)
        both = alike & (now["forward_passes"] > 0) & (was["forward_passes"] > 0)
        now, was = now[both], was[both]
        if len(now) < ENOUGH:
            continue
        for name in ("forward_passes", "backward_passes"):
            one, other = float(now[name].mean()), float(was[name].mean())
            if not one <= TIMES * other or not other <= TIMES * one:
                said.append(
                    f"{key[0]} takes {one:.4g} {name.replace('_', ' ')} per image, and the run "
                    f"says {other:.4g}"
                )
        one, other = (
            float(r["zero_grad"].sum() / max(r["backward_passes"].sum(), 1)) for r in (now, was)
        )
        if not abs(one - other) <= ZEROS:
            said.append(
                f"{one:.0%} of the gradients of {key[0]} are all zero, and the run says {other:.0%}"
            )
    return said


def _compared(
    stated: pd.DataFrame, again: pd.DataFrame, size: Size
) -> tuple[Sequence[int], Sequence[int]]:
    """The images that fell now and not then, and those that fell then and not now."""
    then, now = survivors(stated, size), survivors(again, size)
    return sorted(then - now), sorted(now - then)


def one_step(plan: Plan, records: pd.DataFrame, strong: Sequence[Expected]) -> tuple[str, ...]:
    """Ask whether a single step breaks images that the run calls robust under many.

    An attack that was never made leaves images that fall at the first step.

    Args:
        plan: The plan of the run, on its saved images.
        records: The records of the run.
        strong: The attacks of the run that follow the network's own gradient as far as they can.

    Returns:
        A sentence for each size at which too many images fall.
    """
    said = []
    some = on(plan, _first(plan.images, LOOKED_AT))
    ids = some.images.ids.tolist()
    stated = records[records["image_id"].isin(ids)]
    for size in dict.fromkeys(Size(*one.condition[1:]) for one in strong):
        suite = suite_of(["fgsm"], size.epsilon, size.norm)
        step = dataclasses.replace(
            some, suite=suite, tasks=tasks_of(suite, some.images, suite.entries), substitute=None
        )
        with tempfile.TemporaryDirectory(prefix="robustsnn-") as scratch:
            again = records_of(step, RunFolder(Path(scratch)))
        then = survivors(stated, size)
        fell = then - survivors(again, size)
        if len(fell) >= FEWEST_FALLEN and len(fell) > FALLEN * len(then):
            said.append(
                f"one step of FGSM breaks {len(fell)} of {len(then)} images that the run calls "
                f"robust at {size.norm} {size.epsilon}"
            )
    return tuple(said)


def _first(images: Images, count: int) -> Images:
    if len(images) <= count:
        return images
    return TensorSet(
        images.name,
        images.tensor(slice(0, count)),
        images.labels[:count],
        images.ids[:count],
        tuple(images.class_names),
        images.fingerprint,
    )


def on(plan: Plan, images: Images) -> Plan:
    """The same plan on other images."""
    return dataclasses.replace(plan, images=images)
