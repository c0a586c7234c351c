"""What a run measured beyond its records: spikes, energy and the checks before its attacks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from robustsnn.data.images import Images
from robustsnn.diagnosis.preflight import IMAGES as CHECKED
from robustsnn.evaluation.activity import activity_of
from robustsnn.evaluation.memory import preflight_of
from robustsnn.evaluation.plan import Plan
from robustsnn.records.manifest import Manifest
from robustsnn.records.schema import ACTIVITY

#: The share by which spikes and energy may differ, since spikes flip with the machine.
RECOUNTED = 0.01
#: The spikes per neuron and step below which a difference is no matter.
FEW = 1e-4


def odd_activity(
    manifest: Manifest, activity: pd.DataFrame, plan: Plan, data: Images | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the run says of spikes and energy and is not so, and what could not be counted again.

    Args:
        manifest: The manifest of the run.
        activity: The rows of its `activity.parquet`.
        plan: The same evaluation, planned anew, on the saved images.
        data: The images of the data set, if they are at hand.
    """
    count = manifest.activity_images
    if count is None:
        # Runs that have a digest of their manifest state it.
        return ("the run does not say how many spikes there are",) if manifest.digest else (), ()
    images = plan.images if data is None else data
    if len(images) < count:
        why = f"{len(images)} of the {count} images that were counted are saved"
        return (), (f"spikes and energy were not counted again ({why})",)
    whole = dataclasses.replace(plan, images=images)
    if len(images) > count > 0 and len(images) != manifest.samples:
        return (), ("spikes and energy were not counted again (more images are saved)",)
    again, measured = activity_of(whole)
    said = []
    if measured["activity_images"] != count:
        said.append(
            f"spikes are said to be counted on {count} images, not on {measured['activity_images']}"
        )
    if not _same_rows(activity, again):
        said.append("activity.parquet does not hold the spikes of the model")
    for name in ("energy", "counts"):
        if not alike(getattr(manifest, name), measured.get(name, {})):
            said.append(f"the {name} in the manifest is not that of the model")
    if not alike(list(manifest.operations), measured.get("operations", [])):
        said.append("the operations in the manifest are not those of the model")
    if manifest.uncounted != measured.get("uncounted", ""):
        said.append("what could not be counted is not what the manifest says")
    return tuple(said), ()


def _same_rows(stated: pd.DataFrame, due: pd.DataFrame) -> bool:
    """Whether two tables of spikes say the same."""
    if list(stated.columns) != list(ACTIVITY) or len(stated) != len(due):
        return False
    if not len(due):
        return True
    for name in ("layer", "neurons", "step"):
        if stated[name].astype(str).tolist() != due[name].astype(str).tolist():
            return False
    spikes = pd.to_numeric(stated["spikes_per_neuron"], errors="coerce").to_numpy(dtype=float)
    return bool(np.allclose(spikes, due["spikes_per_neuron"], rtol=RECOUNTED, atol=FEW))


def alike(stated: Any, due: Any) -> bool:
    """Whether two values of JSON are the same, numbers within the share that machines differ by.

    Examples:
        >>> alike({"ann_uj": 1.0}, {"ann_uj": 1.001}), alike([1.0], [2.0])
        (True, False)
    """
    if isinstance(due, Mapping) and isinstance(stated, Mapping):
        return stated.keys() == due.keys() and all(alike(stated[k], due[k]) for k in due)
    if isinstance(due, list | tuple) and isinstance(stated, list | tuple):
        return len(stated) == len(due) and all(map(alike, stated, due))
    numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in (stated, due)]
    if all(numbers):
        if math.isnan(stated) or math.isnan(due):
            return math.isnan(stated) and math.isnan(due)
        return math.isclose(stated, due, rel_tol=RECOUNTED, abs_tol=FEW)
    return bool(stated == due)


def odd_preflight(
    manifest: Manifest, plan: Plan, data: Images | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The checks before the attacks that end otherwise, and what could not be checked again.

    Args:
        manifest: The manifest of the run.
        plan: The same evaluation, planned anew, on the saved images.
        data: The images of the data set, if they are at hand.
    """
    images = plan.images if data is None else data
    if len(images) < min(CHECKED, manifest.samples):
        why = f"{len(images)} of its images are saved"
        return (), (f"the checks before the attacks were not made again ({why})",)
    found = {one.slug: one for one in preflight_of(dataclasses.replace(plan, images=images))}
    stated = {str(row.get("check")): row for row in manifest.preflight}
    said = []
    for slug, one in found.items():
        row = stated.get(slug)
        # A check that is newer than the run is missing there; one that fails may not be.
        if one.flagged and (row is None or row.get("passed") is not False):
            said.append(f"the check {slug} fails, and the run does not say so")
        elif not one.flagged and row is not None and row.get("passed") is not True:
            said.append(f"the check {slug} is passed, and the run says that it failed")
    return tuple(said), ()
