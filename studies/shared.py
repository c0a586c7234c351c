"""What several studies share: the networks, the images, who survives, and how results are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from robustsnn.common.files import write_atomically
from robustsnn.data.images import Images, TensorSet
from robustsnn.errors import InputError
from robustsnn.evaluation.inputs import images_of
from robustsnn.models.subject import Subject
from robustsnn.records.folder import RunFolder

#: Usual number of images, and the number for networks that are studied more closely.
SAMPLES, MORE = 200, 1000
#: The networks that ship, each with its number of images.
NETWORKS: Mapping[str, int] = {
    "fashion-mnist/vgg5-ann": SAMPLES,
    "fashion-mnist/vgg5-snn": MORE,
    "fashion-mnist/vgg5-snn-hire": SAMPLES,
    "fashion-mnist/vgg5-ann-at": MORE,
    "fashion-mnist/vgg5-snn-at": MORE,
    "fashion-mnist/resnet12-ann": SAMPLES,
    "fashion-mnist/resnet12-snn": SAMPLES,
    "cifar10/vgg5-ann": SAMPLES,
    "cifar10/vgg5-snn": SAMPLES,
}


# --- images ---------------------------------------------------------------------------------------


def root_of(data_root: Path, meta: Mapping[str, object]) -> Path:
    """The folder of a model's data set, whose name may have dashes or underscores."""
    data = str(meta.get("data") or "")
    for name in (data, data.replace("-", "_")):
        if (data_root / name).is_dir():
            return data_root / name
    return data_root


def first_images(
    subject: Subject,
    samples: int,
    data_root: Path | None,
    say: Callable[[str], None],
    finished_only: bool,
) -> Images | None:
    """The first test images of a network's data set.

    Args:
        subject: The network.
        samples: The number of images.
        data_root: The folder of the data sets' folders; None for the data that ship.
        say: A function that prints progress.
        finished_only: Whether nothing is to be run.

    Returns:
        The images; None where nothing is to be run and the data are not on this machine.

    Raises:
        InputError: The images are needed and cannot be had.
    """
    root = None if data_root is None else root_of(data_root, subject.meta)
    try:
        return images_of(None, subject, root=root, samples=samples)
    except InputError as error:
        if not finished_only:
            raise
        say(f"{subject.name}: only its earlier rows are kept, because {error}")
        return None


def subset(images: Images, ids: Sequence[int]) -> TensorSet:
    """The images with the given ids, in the order of `images`."""
    chosen = np.isin(images.ids, ids)
    return TensorSet(
        images.name,
        images.tensor()[chosen],
        images.labels[chosen],
        images.ids[chosen],
        images.class_names,
        f"{images.fingerprint}-{len(ids)}-{sum(ids)}",
    )


# --- survivors ------------------------------------------------------------------------------------


def written_ids(ids: Iterable[int]) -> str:
    """Ids as the column `standing` of a table holds them, rising, separated by spaces."""
    return " ".join(map(str, sorted(ids)))


def survivors_in(row: Mapping[str, object] | pd.Series) -> set[int]:
    """Ids of the survivors that a row of a table lists in its column `standing`."""
    return {int(image) for image in str(row["standing"]).split()}


# --- files ----------------------------------------------------------------------------------------


def is_finished(output: Path) -> bool:
    """Whether a folder holds a run that came to its end."""
    try:
        return RunFolder(output).manifest().done
    except InputError:
        return False


def write_results(folder: Path, name: str, table: pd.DataFrame, page: str) -> None:
    """Write a table as `name.csv`, with six digits a number, and its page as `name.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = table.to_csv(index=False, float_format="%.6g")
    write_atomically(folder / f"{name}.csv", text.encode())
    write_atomically(folder / f"{name}.md", page.encode())
