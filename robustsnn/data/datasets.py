"""Real image sets in one fixed order, in whatever layout they are stored.

The order goes round the classes: 0, 1, ..., k - 1, 0, 1, ... as long as each has images left;
within a class, images are ordered by the sha256 of their decoded pixels. The order is a function
of the images alone, so the first N are the same from torchvision's folders, from Parquet and from
class folders, and on every machine. (Decoders of JPEG may differ in the last bit; decoders of
lossless files cannot.)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from robustsnn.common.files import expanded
from robustsnn.data import readers as image_sources
from robustsnn.data.catalogue import DATASETS, NAMES
from robustsnn.errors import InputError, unknown

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE = Path(__file__).parent / "bundled"
"""The bundled data root: the first 2,000 Fashion-MNIST test images in the fixed order."""

SPLITS = ("test", "train")
#: How far beyond [0, 1] the rounding of a resized or normalised image may leave a pixel, which is a
#: four-hundredth of the step between two 8-bit pixels.
ROUNDING = 1e-5
#: How many classes are listed with their numbers.
MOST_SHOWN = 20


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with labels, in the fixed order.

    Attributes:
        name: The name of the data set, a key of `DATASETS` or "folder".
        images: The pixels, uint8 `[n, height, width, channel]`.
        labels: The true classes, int64 `[n]` in `0 .. len(class_names) - 1`.
        class_names: The name of each class.
        split: The split, "test" or "train".
        fingerprint: The first 16 hex digits of a sha256 over these pixels and labels.
        ids: The index of each image in the fixed order of its whole source, int64 `[n]`.
        notes: What was found next to the images and was not counted, a sentence each.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    split: str
    fingerprint: str
    ids: NDArray[np.int64]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        told = "".join(f"; {note}" for note in self.notes)
        return f"<{self.name}, {self.split}: {len(self)} images {shape}; {self.classes}{told}>"

    @property
    def classes(self) -> str:
        """The numbers and names of the classes, in their order, as a text.

        Examples:
            >>> load_dataset("fashion-mnist", None, samples=1).classes[:30]
            'classes: 0 = T-shirt/top, 1 = '
        """
        shown = [f"{number} = {name}" for number, name in enumerate(self.class_names)]
        if len(shown) > MOST_SHOWN:
            shown = [*shown[: MOST_SHOWN - 1], "...", shown[-1]]
        return f"classes: {', '.join(shown)}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (channels, height, width) of one image."""
        _, height, width, channels = self.images.shape
        return channels, height, width

    def tensor(self, index: slice | NDArray[np.int64] = slice(None)) -> Tensor:
        """The images as float32 `[n, channel, height, width]` in [0, 1]."""
        import torch

        chosen = np.ascontiguousarray(self.images[index].transpose(0, 3, 1, 2))
        return torch.from_numpy(chosen).to(torch.float32).div_(255)

    def targets(self, index: slice | NDArray[np.int64] = slice(None)) -> Tensor:
        """The labels as int64 `[n]`."""
        import torch

        return torch.from_numpy(self.labels[index].copy())

    def first(self, samples: int) -> ImageSet:
        """The first `samples` images, with a fingerprint of their own.

        Raises:
            InputError: `samples` is below 1 or above the number of images.
        """
        if samples < 1:
            raise InputError(f"cannot take {samples} samples: ask for 1 to {len(self)}.")
        if samples > len(self):
            raise InputError(
                f"cannot take {samples} samples: {self.name} ({self.split}) has "
                f"{len(self)} here; ask for at most {len(self)}."
            )
        images, labels = self.images[:samples], self.labels[:samples]
        return ImageSet(
            self.name,
            images,
            labels,
            self.class_names,
            self.split,
            fingerprint(images, labels),
            self.ids[:samples],
            self.notes,
        )


def fixed_order(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices that put images in the fixed order.

    Args:
        images: The pixels, uint8 `[n, height, width, channel]`.
        labels: The true classes, int64 `[n]`, at least 0.

    Returns:
        The indices, int64 `[n]`. The order goes round the classes; within a class it follows the
        sha256 of the bytes of an image in (height, width, channel) order, and equal images keep
        their order.
    """
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
    ranks = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label).tolist()
        for rank, member in enumerate(sorted(members, key=digests.__getitem__)):
            ranks[member] = rank
    return np.lexsort((labels, ranks)).astype(np.int64)


def fingerprint(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    """The first 16 hex digits of the sha256 over shape, pixels and labels in the order given."""
    digest = hashlib.sha256(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images, dtype=np.uint8).data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()[:16]


def channel_statistics(
    images: NDArray[np.uint8],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation of all pixels, per channel, in units of [0, 1].

    They are exact: they come from the histogram of the 256 levels, without a float copy of the
    images.

    Args:
        images: The pixels, uint8 `[n, height, width, channel]`.
    """
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[-1]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        mean = float(counts @ levels / counts.sum())
        means.append(mean)
        deviations.append(float(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum())))
    return tuple(means), tuple(deviations)


def load_dataset(
    name: str,
    root: Path | str | None,
    split: str = "test",
    samples: int | None = None,
    download: bool = False,
) -> ImageSet:
    """The images of one split in the fixed order.

    >>> data = load_dataset("fashion-mnist", None, samples=20)
    >>> len(data), data.shape, data.labels[:4].tolist()
    (20, (1, 28, 28), [0, 1, 2, 3])

    Args:
        name: A key of `DATASETS`, or "folder" for any images in class sub-folders.
        root: The folder with torchvision's files, Hugging Face Parquet files or class
            sub-folders; None for the bundled Fashion-MNIST test sample. Class folders may lie
            below split folders as people spell them (`train`, `Test`, `validation_set`), or these
            below them; if there are none, the classes serve as either split.
        split: The split, "test" or "train".
        samples: The number of first images to keep; None for all.
        download: Whether torchvision may download into `root` if nothing readable is there.

    Raises:
        InputError: The data set or split is unknown, the data are missing or unreadable, labels or
            sizes do not fit the data set, or it has fewer images than `samples`.
    """
    if name not in NAMES:
        raise unknown("data set", name, NAMES)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if samples is not None and samples < 1:
        raise InputError(f"cannot take {samples} samples: the number must be at least 1.")
    bundled = root is None
    if root is None:
        if (name, split) != ("fashion-mnist", "test"):
            raise InputError(
                f"the {split} images of {name!r} are not bundled: "
                "name the folder that holds them as the data root."
            )
        root = SAMPLE
    known = DATASETS.get(name)
    source = image_sources.read(name, known, expanded(root), split, download and not bundled)
    order = fixed_order(source.images, source.labels)
    images, labels = source.images[order], source.labels[order]
    if bundled and samples is not None and samples > len(labels):
        raise InputError(
            f"cannot take {samples} samples: the bundled sample has {len(labels)}; "
            "name a data root with the whole test set for more."
        )
    whole = ImageSet(
        name,
        images,
        labels,
        source.class_names,
        split,
        "" if samples is not None else fingerprint(images, labels),
        np.arange(len(labels), dtype=np.int64),
        source.notes,
    )
    return whole if samples is None else whole.first(samples)


def load_data(
    name: str = "folder",
    root: Path | str | None = None,
    split: str = "test",
    samples: int | None = None,
    *,
    download: bool = False,
) -> ImageSet:
    """The images of one split in the fixed order, to look at or to give to `robustsnn.evaluate`.

    Args:
        name: A data set such as `fashion-mnist`, or `folder` for any images in class folders.
        root: The folder that holds the images; by default the sample that ships.
        split: The split, `test` or `train`.
        samples: The number of first images to keep; None for all.
        download: Whether missing data are fetched to `root`.

    Raises:
        InputError: As for `load_dataset`.

    Examples:
        >>> import robustsnn
        >>> robustsnn.load_data("fashion-mnist", samples=3).labels.tolist()
        [0, 1, 2]
    """
    return load_dataset(name, root, split, samples, download)


def load_training(name: str, root: Path | str | None, download: bool = False) -> ImageSet:
    """The whole train split in the fixed order; see `load_dataset`."""
    return load_dataset(name, root, split="train", download=download)


def check_images(images: Tensor) -> Tensor:
    """The same tensor, if it can be attacked in pixel units, clamped where rounding left [0, 1].

    Args:
        images: Floating-point images `[n, channel, height, width]` in [0, 1].

    Raises:
        InputError: The type or the number of dimensions differs, there is no image, or a value is
            NaN or outside [0, 1].
    """
    import torch

    if images.ndim != 4 or images.numel() == 0:
        shape = list(images.shape)
        raise InputError(f"images must be [n, channel, height, width] with n >= 1, not {shape}.")
    if not images.is_floating_point():
        dtype = str(images.dtype).removeprefix("torch.")
        raise InputError(f"images are {dtype}: give floats in [0, 1] (8-bit pixels / 255).")
    if bool(torch.isnan(images).any()):
        raise InputError("images hold NaN: give finite floats in [0, 1].")
    low, high = (float(bound) for bound in torch.aminmax(images.detach()))
    if -ROUNDING <= low and high <= 1 + ROUNDING:
        return images.clamp(0, 1) if low < 0 or high > 1 else images
    remedy = "divide 8-bit pixels by 255" if low >= 0 and high <= 255 else "rescale them"
    raise InputError(
        f"images lie in [{low:g}, {high:g}], not in [0, 1]: {remedy}; "
        "normalisation belongs inside the network."
    )
