"""The images of a run: those of its data set where that is at hand, and the saved ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robustsnn.adversary.threat import ThreatModel
from robustsnn.data.catalogue import DATASETS, NAMES
from robustsnn.data.datasets import SPLITS, fingerprint, load_dataset
from robustsnn.data.images import Images, TensorSet
from robustsnn.errors import InputError
from robustsnn.evaluation.batch import EXAMPLES
from robustsnn.evaluation.given import fingerprint_of
from robustsnn.evaluation.inputs import images_of
from robustsnn.evaluation.options import Data
from robustsnn.models.scoring import verdict_and_operations
from robustsnn.models.subject import Subject
from robustsnn.records.manifest import Manifest
from robustsnn.records.schema import CLEAN, CONDITION, OPERATIONS, Condition

#: The share by which the synaptic operations of an image may differ, since a spike more on another
#: machine can cause others.
RECOUNTED = 0.01
#: The share of a margin, and the part of it, by which it may differ, and the share of the images of
#: an attack whose margins may differ by more: a spike more on another machine moves all logits.
REMEASURED, LEAST_MARGIN, MOVED = 0.1, 0.1, 0.25
#: By how much a distance may differ from the recorded one.
APART = 1e-5

Saved = Mapping[str, Tensor]


@dataclass(frozen=True)
class Rescored:
    """What the saved images say when they are scored again.

    The fields are those of `Verification`; `claims` are sentences on what the folder says and is
    not so.
    """

    verdicts: int
    differing: tuple[tuple[int, str], ...]
    outside: int
    miscounted: int
    claims: tuple[str, ...]


def check_saved(saved: Saved, records: pd.DataFrame, folder: Path) -> None:
    """Refuse saved images of another form than those of a run.

    Raises:
        InputError: A tensor is missing, or has another type or length.
    """
    lacking = [name for name in ("image_id", "label", "clean") if name not in saved]
    if lacking:
        raise InputError(f"{folder} holds no {lacking[0]} of images: run the evaluation again.")
    clean = saved["clean"]
    floats = clean.dim() == 4 and clean.dtype == torch.float32 and clean.numel() > 0
    numbers = all(
        saved[name].dtype == torch.int64 and saved[name].shape == (len(clean),)
        for name in ("image_id", "label")
        if floats
    )
    alike = all(
        tensor.shape == clean.shape and tensor.dtype == clean.dtype
        for name, tensor in saved.items()
        if name.startswith("adversarial/")
    )
    if not (floats and numbers and alike):
        raise InputError(f"{folder} holds images of another form: run the evaluation again.")
    if len(clean) > len(records):
        raise InputError(f"{folder} holds more images than records: run the evaluation again.")


def held_by(manifest: Manifest, saved: Saved, network: nn.Module) -> TensorSet:
    """The saved images as images of an evaluation, under the name that the manifest gives them.

    Raises:
        InputError: They have another shape than the network takes.
    """
    clean = saved["clean"]
    takes = getattr(network, "input_shape", None)
    if takes is not None and tuple(takes) != tuple(clean.shape[1:]):
        raise InputError(
            f"the saved images are {list(clean.shape[1:])}, and the model takes {list(takes)}: run "
            "the evaluation again."
        )
    return TensorSet(
        manifest.data,
        clean,
        saved["label"].numpy(),
        saved["image_id"].numpy(),
        manifest.class_names,
        manifest.data_fingerprint,
    )


def at_hand(
    manifest: Manifest, subject: Subject, data: Data, root: Path | None
) -> tuple[Images | None, str]:
    """The images of a run from their data set, or None and the reason why they are not at hand.

    Args:
        manifest: The manifest of the run.
        subject: The model.
        data: The images, if the caller holds them.
        root: The folder of the data set; None for the sample that ships.

    Raises:
        InputError: The images that the caller gave cannot be read.
    """
    if data is not None:
        return images_of(data, subject, root=root, samples=manifest.samples), ""
    if manifest.data not in NAMES:
        return None, f"the images are not of a data set ({manifest.data})"
    if manifest.data not in DATASETS and root is None:
        return None, "the folder of the images is not named: add --data-root"
    found: list[Images] = []
    reasons: list[str] = []
    for split in SPLITS if root is not None else SPLITS[:1]:
        try:
            one = load_dataset(manifest.data, root, split, manifest.samples)
        except InputError as error:
            reasons.append(str(error).rstrip("."))
            continue
        if one.fingerprint == manifest.data_fingerprint:
            return one, ""
        found.append(one)
    return (found[0], "") if found else (None, f"the data set is not at hand: {reasons[0]}")


def odd_images(
    manifest: Manifest, records: pd.DataFrame, saved: Saved, data: Images | None
) -> tuple[str, ...]:
    """What the saved images and the ids are and should not be, one sentence each.

    Args:
        manifest: The manifest of the run.
        records: Its records.
        saved: Its saved images.
        data: The images of the data set, if they are at hand.
    """
    clean = records[records["attack"] == CLEAN]
    ids, labels = clean["image_id"].to_numpy(), clean["label"].to_numpy()
    count = len(saved["clean"])
    due = len(ids) if manifest.save_images else min(EXAMPLES, len(ids))
    said = []
    if count < due:
        said.append(f"{count} images are saved, and the run says {due}")
    first = ids[:count]
    if saved["image_id"].tolist() != first.tolist():
        said.append("the saved images are not the first of the run")
    elif saved["label"].tolist() != labels[:count].tolist():
        said.append("the labels of the saved images are not those of the records")
    if data is not None:
        return (*said, *_against(manifest, ids, labels, saved, data))
    known = DATASETS.get(manifest.data)
    if known is not None and known.class_names != manifest.class_names:
        said.append("the names of the classes are not those of the data set")
    if known is not None and known.shape != tuple(saved["clean"].shape[1:]):
        said.append("the saved images have another shape than those of the data set")
    if manifest.data in (*NAMES, "memory"):
        if ids.tolist() != list(range(len(ids))):
            said.append("the ids are not those of the first images of the data")
        if count == len(ids) and _fingerprint(manifest, saved) != manifest.data_fingerprint:
            said.append("the saved images are not those of the fingerprint")
    return tuple(said)


def _against(
    manifest: Manifest, ids: Any, labels: Any, saved: Saved, data: Images
) -> tuple[str, ...]:
    """The differences between a run and its data set."""
    said = []
    if len(data) != manifest.samples:
        said.append(f"the run has {manifest.samples} images, and the data {len(data)}")
    if data.fingerprint != manifest.data_fingerprint:
        said.append(f"the images are not the first {manifest.samples:,} of {manifest.data}")
    if tuple(data.class_names) != manifest.class_names:
        said.append("the names of the classes are not those of the data set")
    if data.ids.tolist() != ids.tolist():
        said.append("the ids are not those of the data set")
    if data.labels.tolist() != labels.tolist():
        said.append("the labels are not those of the data set")
    count = min(len(saved["clean"]), len(data))
    if not torch.equal(saved["clean"][:count], data.tensor(slice(0, count))):
        said.append("the saved clean images are not those of the data set")
    return tuple(said)


def _fingerprint(manifest: Manifest, saved: Saved) -> str:
    """The fingerprint of the saved clean images, all of which are there."""
    labels = saved["label"].numpy()
    if manifest.data == "memory":
        return fingerprint_of(saved["clean"], labels)
    levels = (saved["clean"] * 255).round()
    if not torch.equal(levels.div(255), saved["clean"]):
        return ""
    pixels = levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return fingerprint(np.ascontiguousarray(pixels), labels)


def rescored(
    network: nn.Module,
    saved: Saved,
    records: pd.DataFrame,
    manifest: Manifest,
    device: str,
) -> Rescored:
    """Score the saved images again, in batches of the same shape as in the run.

    Args:
        network: The network, read anew.
        saved: The saved images.
        records: The records of the run.
        manifest: Its manifest.
        device: The device that computes.

    Raises:
        InputError: The images of an attack are missing.
    """
    ids = saved["image_id"].tolist()
    labels, clean = saved["label"].to(device), saved["clean"].to(device)
    differing: list[tuple[int, str]] = []
    claims: list[str] = []
    outside = verdicts = miscounted = 0
    outside += int((~ThreatModel("Linf", "0").admits(clean, clean)).sum())
    for key, rows in records.groupby(CONDITION, sort=False):
        about = Condition(*map(str, key))
        name = CLEAN if about.attack == CLEAN else f"adversarial/{about.attack}@{about.epsilon}"
        if name not in saved:
            raise InputError(f"the run holds no images {name!r}: run the evaluation again.")
        images = saved[name].to(device)
        rows = rows.drop_duplicates("image_id").set_index("image_id").reindex(ids)
        if about.attack != CLEAN:
            threat = ThreatModel(about.norm, about.epsilon)
            outside += int((~threat.admits(images, clean)).sum())
            claims += _measured(images, clean, rows, about)
        wrong, other, moved = _differing(network, images, labels, ids, rows, manifest)
        miscounted += other
        verdicts += len(ids)
        condition = about.attack if about.attack == CLEAN else " ".join(about)
        if moved > MOVED * len(ids):
            claims.append(f"the margins of {condition} are not those of its saved images")
        differing += [(ids[i], condition) for i in wrong]
        said = saved.get(f"prediction/{name.partition('/')[2] or CLEAN}")
        if said is not None and said.tolist() != rows["prediction"].tolist():
            claims.append(f"the saved predictions of {condition} are not those of the records")
    return Rescored(verdicts, tuple(differing), outside, miscounted, tuple(claims))


def _measured(images: Tensor, clean: Tensor, rows: pd.DataFrame, about: Condition) -> list[str]:
    """Whether the saved images are as far from the clean ones as the records say."""
    delta = (images.double() - clean.double()).flatten(1).cpu()
    found = {"linf": delta.abs().amax(1), "l2": delta.square().sum(1).sqrt()}
    differs = [
        name
        for name, values in found.items()
        if not np.allclose(values.numpy(), rows[name].to_numpy(dtype=float), rtol=APART, atol=1e-7)
    ]
    return [f"the {name} of {about.attack} is not that of its saved images" for name in differs]


def _differing(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    ids: Sequence[int],
    recorded: pd.DataFrame,
    manifest: Manifest,
) -> tuple[list[int], int, int]:
    """The positions of the images whose verdict is another, and the number of other counts.

    These are of images that take other operations than recorded, and that have another margin.
    """
    size, seed, draws = manifest.batch_size, manifest.seed, manifest.draws
    said, found = verdict_and_operations(network, images, labels, list(ids), size, seed, draws)
    # Both are compared, because a tie at the top may be right by its class and is an error in
    # the worst case.
    wrong = (said.predictions.cpu().numpy() != recorded["prediction"].to_numpy()) | (
        (said.margins < 0).cpu().numpy() != (recorded["margin"] < 0).to_numpy()
    )
    miscounted = 0
    if OPERATIONS in recorded:
        counts = recorded[OPERATIONS].to_numpy(dtype=float)
        alike = np.isclose(counts, found.cpu().numpy(), rtol=RECOUNTED, atol=0, equal_nan=True)
        miscounted = int((~alike).sum())
    was, now = recorded["margin"].to_numpy(dtype=float), said.margins.cpu().numpy()
    near = np.isclose(was, now, rtol=REMEASURED, atol=LEAST_MARGIN, equal_nan=True)
    return [int(i) for i in wrong.nonzero()[0]], miscounted, int((~near).sum())
