"""Readers of images and labels in torchvision's folders, Hugging Face Parquet or class folders.

Nothing here runs code that is found in data: torchvision unpickles only its own CIFAR files, after
their md5 matched; Parquet holds encoded images; images go through a short list of decoders.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robustsnn.data.folders import from_folders
from robustsnn.data.parquet import from_parquet
from robustsnn.data.pixels import SUFFIXES, Source, check_label
from robustsnn.data.splits import plain
from robustsnn.errors import InputError

if TYPE_CHECKING:
    from robustsnn.data.catalogue import DataSet


def read(name: str, known: DataSet | None, root: Path, split: str, download: bool) -> Source:
    """All images of a split below `root`, in the layout that is found first.

    The search is for torchvision's files, then Parquet, then class folders, in sub-folders of
    `root` named after the data set and in `root` itself.

    Args:
        name: The name of the data set.
        known: Its description, or None for any image folder.
        root: The data root.
        split: The split, "test" or "train".
        download: Whether torchvision may download into `root` if nothing is found.

    Raises:
        InputError: Nothing readable is found, or it does not fit the data set.
    """
    if root.exists() and not root.is_dir():
        raise InputError(f"the data root {root} is a file: name the folder that holds the images.")
    if not root.exists() and not download:
        raise InputError(f"there is no data root {root}: check the path, or ask for a download.")
    if root.exists():
        try:
            for place in _places(name, root):
                source = _find(name, known, place, split)
                if source is not None:
                    return source
        except OSError as error:
            raise InputError(f"cannot read the data root {root}: {error}.") from error
    if known is not None and download:
        return _checked(known, *_from_torchvision(known, root, split, download=True), str(root))
    layouts, remedy = "Parquet files or class folders", "name another data root"
    if known is not None:
        layouts, remedy = f"torchvision's files, {layouts}", f"{remedy}, or ask for a download"
    direct = root.exists() and any(path.suffix.lower() in SUFFIXES for path in root.iterdir())
    if direct:
        remedy = "sort the images that lie directly in it into one folder for each class"
    raise InputError(f"no {split} images of {name!r} in {root} ({layouts} are read): {remedy}.")


def _places(name: str, root: Path) -> list[Path]:
    """The sub-folders named after the data set, then the root itself."""
    wanted = plain(name)
    if name == "folder":
        return [root]
    below = sorted(path for path in root.iterdir() if path.is_dir())
    return [*(path for path in below if plain(path.name) == wanted), root]


def _find(name: str, known: DataSet | None, place: Path, split: str) -> Source | None:
    """The images of a split in one folder, or None if it has none in any layout."""
    stored = None if known is None else _torchvision_file(known, place, split)
    # A pipe in the place of a file would be waited for without end.
    if known is not None and stored is not None and (stored.is_file() or stored.is_dir()):
        return _checked(known, *_from_torchvision(known, place, split), str(place))
    found = from_parquet(name, known, place, split)
    return from_folders(name, known, place, split) if found is None else found


# --- torchvision ---------------------------------------------------------------------------


def _torchvision_file(known: DataSet, root: Path, split: str) -> Path:
    """The file whose presence says that torchvision stored this split here."""
    if known.torchvision == "SVHN":
        return root / f"{split}_32x32.mat"
    if known.torchvision in ("MNIST", "FashionMNIST"):
        return _idx_file(known, root, split, "images-idx3")
    folders = {"CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python"}
    return root / folders[known.torchvision]


def _idx_file(known: DataSet, root: Path, split: str, kind: str) -> Path:
    prefix = {"train": "train", "test": "t10k"}[split]
    return root / known.torchvision / "raw" / f"{prefix}-{kind}-ubyte"


def _from_torchvision(
    known: DataSet, root: Path, split: str, download: bool = False
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Images `[n, h, w, c]` and labels `[n]`, read through torchvision."""
    from torchvision import datasets

    kind = getattr(datasets, known.torchvision)
    try:
        # NumPy warns about the spelling of a dtype in pickles of 2009, and some releases of
        # torchvision report a download on stdout, which is for results.
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            if known.torchvision in ("MNIST", "FashionMNIST"):
                if download:
                    _refuse_processed(known, root)
                    kind(str(root), train=split == "train", download=True)
                return _read_idx(known, root, split)
            if known.torchvision == "SVHN":
                stored = kind(str(root), split=split, download=download)
                return np.transpose(stored.data, (0, 2, 3, 1)), stored.labels
            stored = kind(str(root), train=split == "train", download=download)
            return stored.data, np.asarray(stored.targets)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        raise InputError(f"{known.title} needs {package}: pip install {package}.") from error
    except InputError:
        raise
    except Exception as error:
        if download:
            raise InputError(
                f"could not download {known.title} to {root} ({error}): check the network and "
                "the folder, or fetch it elsewhere and name its folder as the data root."
            ) from error
        raise InputError(
            f"{known.title} as torchvision stores it in {root} is incomplete or damaged: delete "
            "it and download it again."
        ) from error


def _refuse_processed(known: DataSet, root: Path) -> None:
    # torchvision reads these old files instead of the originals, some releases by unpickling.
    processed = root / known.torchvision / "processed"
    if processed.exists():
        raise InputError(f"{processed} holds files of an old torchvision: delete the folder.")


def _read_idx(known: DataSet, root: Path, split: str) -> tuple[NDArray[Any], NDArray[Any]]:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    places = [_idx_file(known, root, split, kind) for kind in ("images-idx3", "labels-idx1")]
    if not all(place.is_file() for place in places):
        raise ValueError("images and labels are needed")
    images, labels = read_image_file(str(places[0])), read_label_file(str(places[1]))
    if len(images) != len(labels):
        raise ValueError("as many labels as images are needed")
    return images.numpy()[..., None], labels.numpy()


def _checked(known: DataSet, images: NDArray[Any], labels: NDArray[Any], where: str) -> Source:
    """The images, if they have the shape and the labels of the data set."""
    channels, height, width = known.shape
    if images.ndim != 4 or images.shape[1:] != (height, width, channels):
        raise InputError(
            f"the images in {where} are {list(images.shape[1:])} (height, width, channel), those "
            f"of {known.title} are {[height, width, channels]}: name another data set."
        )
    values = np.asarray(labels, dtype=np.int64)
    for label in (int(values.min()), int(values.max())):
        check_label(label, known.classes, where)
    return Source(np.ascontiguousarray(images), values, known.class_names)
