"""Reads images and labels from torchvision's folders, Hugging Face Parquet or class folders.

Nothing here runs code found in data: torchvision unpickles only its own CIFAR files, after
their md5 matched; Parquet holds encoded images; images go through a short list of decoders.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from robustsnn.errors import InputError

if TYPE_CHECKING:
    from robustsnn.datasets import DataSet

# Pillow would also open formats that start other programs (EPS) or hold no still image.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(".png .jpg .jpeg .bmp .gif .ppm .pgm .pbm .pnm .tif .tiff .webp".split())
IMAGE_COLUMNS = ("image", "img")
# A whole folder of images often calls what we test on its validation images.
FOLDERS = {"train": ("train",), "test": ("test", "val", "validation")}
OTHER_SPLIT = {"train": "test", "test": "train"}


@dataclass(frozen=True, eq=False)
class Source:
    """What was read, in the order of the files.

    `images` are uint8 `[n, height, width, channel]`, `labels` int64 `[n]`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]


def read(name: str, known: DataSet | None, root: Path, split: str, download: bool) -> Source:
    """All images of a split below `root`, in whichever layout is found first.

    Looks for torchvision's files, then Parquet, then class folders; in `root` and in a
    sub-folder of it named after the data set.

    Args:
        name: Name of the data set, for messages.
        known: Its description, or None for any image folder.
        root: The data root.
        split: "test" or "train".
        download: Let torchvision download into `root` if nothing is found.

    Raises:
        InputError: If nothing readable is found, or what is found does not fit.
    """
    if root.exists() and not root.is_dir():
        raise InputError(f"the data root {root} is a file: name the folder that holds the images.")
    if not root.exists() and not download:
        raise InputError(f"there is no data root {root}: check the path, or ask for a download.")
    if root.exists():
        for place in _places(name, root):
            source = _find(name, known, place, split)
            if source is not None:
                return source
    if known is not None and download:
        return _checked(known, *_from_torchvision(known, root, split, download=True), str(root))
    layouts = (
        "Parquet files or class folders"
        if known is None
        else ("torchvision's files, Parquet files or class folders")
    )
    remedy = "name another data root" if known is None else "name another, or ask for a download"
    raise InputError(f"no {split} images of {name!r} in {root} ({layouts} are read): {remedy}.")


def _places(name: str, root: Path) -> list[Path]:
    """Sub-folders named after the data set, then the root itself."""
    wanted = _plain(name)
    if name == "folder":
        return [root]
    try:
        below = sorted(path for path in root.iterdir() if path.is_dir())
    except OSError as error:
        raise InputError(f"cannot read the data root {root}: {error.strerror}.") from error
    return [*(path for path in below if _plain(path.name) == wanted), root]


def _find(name: str, known: DataSet | None, place: Path, split: str) -> Source | None:
    if known is not None and _torchvision_file(known, place, split).exists():
        return _checked(known, *_from_torchvision(known, place, split), str(place))
    files = _parquet_files(place, split)
    if files:
        return _from_parquet(name, known, files)
    return _from_folders(name, known, place, split)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


# --- torchvision ---------------------------------------------------------------------------


def _torchvision_file(known: DataSet, root: Path, split: str) -> Path:
    """The file whose presence says that torchvision stored this split here."""
    if known.torchvision == "SVHN":
        return root / f"{split}_32x32.mat"
    if known.torchvision in ("MNIST", "FashionMNIST"):
        return _idx_file(known, root, split, "images-idx3")
    return (
        root / {"CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python"}[known.torchvision]
    )


def _idx_file(known: DataSet, root: Path, split: str, kind: str) -> Path:
    prefix = {"train": "train", "test": "t10k"}[split]
    return root / known.torchvision / "raw" / f"{prefix}-{kind}-ubyte"


def _from_torchvision(
    known: DataSet, root: Path, split: str, download: bool = False
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Images `[n, h, w, c]` and labels `[n]` through torchvision."""
    from torchvision import datasets

    kind = getattr(datasets, known.torchvision)
    folders = f"{known.title} as torchvision stores it in {root}"
    try:
        # Pickles of 2009 make NumPy warn about how they spell a dtype.
        with warnings.catch_warnings():
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
        raise InputError(f"{known.title} needs {error.name}: pip install {error.name}.") from error
    except InputError:
        raise
    except Exception as error:
        if download:
            raise InputError(
                f"could not download {known.title} to {root} ({error}): check the network and "
                "the folder, or fetch it elsewhere and name its folder as the data root."
            ) from error
        raise InputError(
            f"{folders} is incomplete or damaged: delete it and download it again."
        ) from error


def _refuse_processed(known: DataSet, root: Path) -> None:
    # torchvision reads these old files in place of the originals, some releases by unpickling.
    processed = root / known.torchvision / "processed"
    if processed.exists():
        raise InputError(f"{processed} holds files of an old torchvision: delete the folder.")


def _read_idx(known: DataSet, root: Path, split: str) -> tuple[NDArray[Any], NDArray[Any]]:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    images = read_image_file(str(_idx_file(known, root, split, "images-idx3")))
    labels = read_label_file(str(_idx_file(known, root, split, "labels-idx1")))
    if len(images) != len(labels):
        raise ValueError("as many labels as images are needed")
    return images.numpy()[..., None], labels.numpy()


# --- Parquet -------------------------------------------------------------------------------


def _parquet_files(root: Path, split: str) -> list[Path]:
    """`<split>-*.parquet` or `<split>/*.parquet` anywhere below the root, each file once."""
    found = [
        path
        for path in sorted(root.rglob("*.parquet"))
        if path.name.startswith(f"{split}-") or path.parent.name == split
    ]
    # SVHN's repository also holds whole photographs; cropped digits are what is classified.
    cropped = [path for path in found if "cropped_digits" in path.parts]
    return list({path.resolve(): path for path in cropped or found}.values())


def _check_shards(files: Sequence[Path]) -> None:
    shards: dict[tuple[Path, str, int], set[int]] = {}
    for path in files:
        match = re.fullmatch(r"(.+)-(\d+)-of-(\d+)(-[0-9a-f]+)?\.parquet", path.name)
        if match:
            key = (path.parent, match[1], int(match[3]))
            shards.setdefault(key, set()).add(int(match[2]))
    for (folder, split, total), present in shards.items():
        missing = set(range(total)) - present
        if missing:
            raise InputError(
                f"{folder} has {len(present)} of {total} {split} files: "
                f"{split}-{min(missing):05d}-of-{total:05d}.parquet is missing; fetch it."
            )


def _from_parquet(name: str, known: DataSet | None, files: Sequence[Path]) -> Source:
    _check_shards(files)
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    names: tuple[str, ...] | None = None
    for path in files:
        try:
            with pq.ParquetFile(path) as table:
                image, label = _columns(path, name, table.schema_arrow)
                stored = _stored_names(table.schema_arrow, label)
                if names is not None and stored != names:
                    raise InputError(
                        f"{path} names other classes than {files[0]}: name the folder of one "
                        "data set as the data root."
                    )
                names = stored
                for row, (encoded, value) in enumerate(_rows(table, image, label)):
                    where = f"row {row} of {path}"
                    if encoded is None:
                        raise InputError(f"{where} has no image bytes: embed the images.")
                    if value is None:
                        raise InputError(f"{where} has no label: fill column {label!r}.")
                    images.append(_decode(io.BytesIO(encoded), where))
                    labels.append(value)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{path} is not a readable Parquet file (truncated?): fetch it again."
            ) from error
    where = f"{files[0]}" if len(files) == 1 else f"{files[0].parent}"
    if not images:
        raise InputError(f"{where} holds no rows: name a data root with images.")
    values = np.asarray(labels, dtype=np.int64)
    if known is None:
        if not names:
            names = tuple(str(label) for label in range(max(int(values.max()), 0) + 1))
        _check_labels(values, names, where)
        return Source(_stack(images, lambda index: f"image {index} of {where}"), values, names)
    if names and [_plain(text) for text in names] != [_plain(text) for text in known.class_names]:
        raise InputError(
            f"{where} names the classes {', '.join(names[:3])}, ..., which are not those of "
            f"{known.title}: name another data set or data root."
        )
    stacked = _stack(images, lambda index: f"image {index} of {where}", known)
    return _checked(known, stacked, values, where)


def _columns(path: Path, name: str, schema: pa.Schema) -> tuple[str, str]:
    """Names of the image and the label column, or one line on what is there instead."""
    # CIFAR-100 has 100 fine and 20 coarse classes; the fine ones are meant.
    wanted = ("fine_label", "label") if name == "cifar100" else ("label", "fine_label")
    image = next((column for column in IMAGE_COLUMNS if column in schema.names), None)
    label = next((column for column in wanted if column in schema.names), None)
    present = ", ".join(schema.names) or "none"
    if image is None or label is None:
        raise InputError(
            f"{path} has the columns {present}: an image column (image or img) and an integer "
            "label column (label or fine_label) are needed."
        )
    kind = schema.field(image).type
    children = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    data = children.get("bytes") if pa.types.is_struct(kind) else None
    if data is None or not (pa.types.is_binary(data) or pa.types.is_large_binary(data)):
        raise InputError(
            f"column {image!r} of {path} is {kind}: encoded images, struct<bytes: binary, "
            "path: string>, are needed."
        )
    if not pa.types.is_integer(schema.field(label).type):
        raise InputError(
            f"column {label!r} of {path} is {schema.field(label).type}: integers are needed."
        )
    return image, label


def _stored_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Class names in the metadata that Hugging Face writes; () where there are none."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
        return tuple(str(text) for text in names)
    except (TypeError, KeyError, ValueError):
        return ()


def _rows(
    table: pq.ParquetFile, image: str, label: str
) -> Iterator[tuple[bytes | None, int | None]]:
    for batch in table.iter_batches(batch_size=1024, columns=[f"{image}.bytes", label]):
        encoded = batch.column(image).field("bytes").to_pylist()
        yield from zip(encoded, batch.column(label).to_pylist(), strict=True)


# --- class folders -------------------------------------------------------------------------


def _from_folders(name: str, known: DataSet | None, root: Path, split: str) -> Source | None:
    own = _split_folder(root, split)
    other = _split_folder(root, OTHER_SPLIT[split])
    if own is None and other is not None:
        return None
    place = own or root
    folders = _class_folders(place)
    if known is None:
        # The training classes give the numbering, so a test class without images shifts nothing.
        numbering = _class_folders(other) if split == "test" and other else folders
        names = tuple(folder.name for folder in numbering)
    else:
        names = known.class_names
    paths: list[Path] = []
    labels: list[int] = []
    for folder in folders:
        files = _image_files(folder)
        # A named data set may sit beside folders that hold no images at all.
        if files or known is None:
            label = _label_of(folder, names, name)
            paths += files
            labels += [label] * len(files)
    if not paths:
        return None
    images = [_decode(path, str(path)) for path in paths]
    values = np.asarray(labels, dtype=np.int64)
    stacked = _stack(images, lambda index: str(paths[index]), known)
    return Source(stacked, values, names)


def _split_folder(root: Path, split: str) -> Path | None:
    """`root/train` or `root/test`, if it has class folders of its own."""
    for name in FOLDERS[split]:
        folder = root / name
        # "train" may as well be a class of vehicles.
        if folder.is_dir() and _class_folders(folder):
            return folder
    return None


def _class_folders(folder: Path) -> list[Path]:
    return sorted(
        (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")),
        key=lambda path: path.name,
    )


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def _label_of(folder: Path, names: Sequence[str], name: str) -> int:
    """Class number of a folder, by class name or by number."""
    plain = [_plain(text) for text in names]
    if folder.name in names:
        return list(names).index(folder.name)
    if name != "folder":
        if _plain(folder.name) in plain:
            return plain.index(_plain(folder.name))
        if folder.name.isdecimal() and int(folder.name) < len(names):
            return int(folder.name)
    raise InputError(
        f"the folder {folder} is no class of {name!r}: its classes are "
        f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}; rename or move it."
    )


# --- images and checks ---------------------------------------------------------------------


def _decode(file: Path | io.BytesIO, where: str) -> NDArray[np.uint8]:
    """One image as uint8 `[height, width, 1 or 3]`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                if image.mode in ("I", "F") or image.mode.startswith("I;"):
                    raise InputError(f"{where} has more than 8 bits a channel: save it as 8-bit.")
                grey = image.mode in ("1", "L", "LA", "La")
                pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except InputError:
        raise
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise InputError(
            f"{where} is not a readable image (damaged or foreign): replace or remove it."
        ) from error
    return pixels[..., None] if grey else pixels


def _stack(
    images: Sequence[NDArray[np.uint8]],
    where: Callable[[int], str],
    known: DataSet | None = None,
) -> NDArray[np.uint8]:
    """Images of one size as uint8 `[n, height, width, channel]`."""
    channels = known.shape[0] if known else max(image.shape[2] for image in images)
    size = known.shape[1:] if known else images[0].shape[:2]
    for index, image in enumerate(images):
        if image.shape[:2] == tuple(size):
            continue
        found = f"{image.shape[1]}x{image.shape[0]}"
        wanted = f"{size[1]}x{size[0]}"
        if known:
            raise InputError(
                f"{where(index)} is {found} pixels, those of {known.title} are {wanted}: "
                "name another data set or data root."
            )
        raise InputError(
            f"images differ in size: {where(0)} is {wanted}, {where(index)} is {found}; "
            "resize them to one size."
        )
    stacked = np.empty((len(images), *size, channels), dtype=np.uint8)
    for index, image in enumerate(images):
        if image.shape[2] > channels and bool((image != image[..., :1]).any()):
            raise InputError(f"{where(index)} is in colour, {known and known.title} is grey.")
        # One grey channel fills three; of three equal ones the first is the grey one.
        stacked[index] = image[..., :channels]
    return stacked


def _check_labels(labels: NDArray[np.int64], names: Sequence[str], where: str) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(wrong):
        first = int(wrong[0])
        raise InputError(
            f"label {int(labels[first])} of image {first} in {where} is outside "
            f"0..{len(names) - 1}: name the data set these labels belong to, or correct them."
        )


def _checked(known: DataSet, images: NDArray[Any], labels: NDArray[Any], where: str) -> Source:
    channels, height, width = known.shape
    if images.ndim != 4 or images.shape[1:] != (height, width, channels):
        raise InputError(
            f"the images in {where} are {list(images.shape[1:])} (height, width, channel), those "
            f"of {known.title} are {[height, width, channels]}: name another data set."
        )
    if images.dtype != np.uint8 or len(images) != len(labels) or len(images) == 0:
        raise InputError(f"{where} is damaged: fetch it again.")
    values = np.asarray(labels, dtype=np.int64)
    _check_labels(values, known.class_names, where)
    return Source(np.ascontiguousarray(images), values, known.class_names)


def encode_png(images: Iterable[NDArray[np.uint8]]) -> Iterator[bytes]:
    """Each `[height, width, 1 or 3]` image as the bytes of a PNG."""
    for image in images:
        buffer = io.BytesIO()
        pixels = image[..., 0] if image.shape[2] == 1 else image
        Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
        yield buffer.getvalue()
