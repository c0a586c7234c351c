"""Readers of images and labels in torchvision's folders, Hugging Face Parquet or class folders.

Nothing here runs code that is found in data: torchvision unpickles only its own CIFAR files, after
their md5 matched; Parquet holds encoded images; images go through a short list of decoders.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
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
    from robustsnn.data.catalogue import DataSet

# Pillow would also open formats that start other programs (EPS) or do not hold a still image.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(".png .jpg .jpeg .bmp .gif .ppm .pgm .pbm .pnm .tif .tiff .webp".split())
IMAGE_COLUMNS = ("image", "img")
# Where nothing says how many classes there are, a larger label is taken for a mistake.
MOST_CLASSES = 100_000
# Class folders often hold the images that serve as our test split as validation images.
FOLDERS = {"train": ("train",), "test": ("test", "val", "validation")}
OTHER_SPLIT = {"train": "test", "test": "train"}


@dataclass(frozen=True, eq=False)
class Source:
    """What was read, in the order of the files.

    `images` are uint8 `[n, height, width, channel]` and `labels` are int64 `[n]`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]


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
    raise InputError(f"no {split} images of {name!r} in {root} ({layouts} are read): {remedy}.")


def _places(name: str, root: Path) -> list[Path]:
    """The sub-folders named after the data set, then the root itself."""
    wanted = _plain(name)
    if name == "folder":
        return [root]
    below = sorted(path for path in root.iterdir() if path.is_dir())
    return [*(path for path in below if _plain(path.name) == wanted), root]


def _find(name: str, known: DataSet | None, place: Path, split: str) -> Source | None:
    """The images of a split in one folder, or None if it has none in any layout."""
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
    # The repository of SVHN also holds whole photographs; only cropped digits are classified.
    cropped = [path for path in found if "cropped_digits" in path.parts]
    return list({path.resolve(): path for path in cropped or found}.values())


def _check_complete(files: Sequence[Path]) -> None:
    """Refuse files in several folders, and a gap in files numbered as `-00000-of-00002`."""
    folders = sorted({path.parent for path in files})
    if len(folders) > 1:
        raise InputError(
            f"Parquet files of one split are in {len(folders)} folders, such as {folders[0]} and "
            f"{folders[1]}: name the one that is meant as the data root."
        )
    present: dict[tuple[str, int], set[int]] = {}
    for path in files:
        match = re.fullmatch(r"(.+)-(\d+)-of-(\d+)(-[0-9a-f]+)?\.parquet", path.name)
        if match:
            present.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (split, total), shards in present.items():
        missing = next((shard for shard in range(total) if shard not in shards), None)
        if missing is not None:
            raise InputError(
                f"{folders[0]} has {len(shards)} of {total} {split} files: "
                f"{split}-{missing:05d}-of-{total:05d}.parquet is missing; fetch it."
            )


def _from_parquet(name: str, known: DataSet | None, files: Sequence[Path]) -> Source:
    _check_complete(files)
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    places: list[str] = []
    names = known.class_names if known else ()
    for path in files:
        try:
            with pq.ParquetFile(path) as table:
                image, label = _columns(path, name, table.schema_arrow)
                stored = _stored_names(table.schema_arrow, label)
                if names and stored and [*map(_plain, stored)] != [*map(_plain, names)]:
                    raise InputError(
                        f"{path} names the classes {', '.join(stored[:3])}, ..., but those of "
                        f"{known.title if known else files[0]} are {', '.join(names[:3])}, ...: "
                        "name another data set or data root."
                    )
                names = names or stored
                for row, (encoded, value) in enumerate(_rows(table, image, label)):
                    where = f"row {row} of {path}"
                    if encoded is None:
                        raise InputError(f"{where} has no image bytes: embed the images.")
                    if value is None:
                        raise InputError(f"{where} has no label: fill column {label!r}.")
                    _check_label(value, len(names) or MOST_CLASSES, where)
                    images.append(_decode(io.BytesIO(encoded), where))
                    labels.append(value)
                    places.append(where)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{path} is not a readable Parquet file (truncated?): fetch it again."
            ) from error
    if not images:
        raise InputError(f"{files[0]} holds no rows: name a data root with images.")
    names = names or tuple(str(label) for label in range(max(labels) + 1))
    return Source(_stack(images, places, known), np.asarray(labels, dtype=np.int64), names)


def _columns(path: Path, name: str, schema: pa.Schema) -> tuple[str, str]:
    """The names of the image column and the label column; an error if either is missing."""
    # CIFAR-100 has 100 fine and 20 coarse classes; the fine ones are used.
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
    """The class names in the metadata that Hugging Face writes; empty if there are none."""
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
    if not folders:
        return None
    if known is None:
        # The training classes give the numbers, so a test class without images shifts none.
        numbering = _class_folders(other) if split == "test" and other else folders
        names = tuple(folder.name for folder in numbering)
    else:
        names = known.class_names
    paths: list[Path] = []
    labels: list[int] = []
    for folder in folders:
        files = sorted(_image_files(folder))
        paths += files
        labels += [_label_of(folder, names, name)] * len(files)
    images = [_decode(path, str(path)) for path in paths]
    stacked = _stack(images, [str(path) for path in paths], known)
    return Source(stacked, np.asarray(labels, dtype=np.int64), names)


def _split_folder(root: Path, split: str) -> Path | None:
    """The folder `root/train` or `root/test`, if it has class folders of its own."""
    for name in FOLDERS[split]:
        folder = root / name
        # A folder "train" could also be a class of vehicles.
        if folder.is_dir() and _class_folders(folder):
            return folder
    return None


def _class_folders(folder: Path) -> list[Path]:
    """Sub-folders with images anywhere below them, by name."""
    below = (path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    found = [path for path in below if next(_image_files(path), None) is not None]
    return sorted(found, key=lambda path: path.name)


def _image_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file():
            yield path


def _label_of(folder: Path, names: Sequence[str], name: str) -> int:
    """The class number of a folder, by class name or by number."""
    plain = [_plain(text) for text in names]
    if folder.name in names:
        return list(names).index(folder.name)
    if name != "folder":
        if _plain(folder.name) in plain:
            return plain.index(_plain(folder.name))
        if folder.name.isdecimal() and int(folder.name) < len(names):
            return int(folder.name)
    raise InputError(
        f"the folder {folder} is not a class of {name!r}: its classes are "
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
    except Exception as error:  # decoders raise nearly any error on a damaged file
        raise InputError(
            f"{where} is not a readable image (damaged or foreign): replace or remove it."
        ) from error
    return pixels[..., None] if grey else pixels


def _stack(
    images: Sequence[NDArray[np.uint8]], places: Sequence[str], known: DataSet | None
) -> NDArray[np.uint8]:
    """Images of one size as uint8 `[n, height, width, channel]`."""
    title = known.title if known else places[0]
    channels = known.shape[0] if known else max(image.shape[2] for image in images)
    height, width = known.shape[1:] if known else images[0].shape[:2]
    stacked = np.empty((len(images), height, width, channels), dtype=np.uint8)
    for index, (image, place) in enumerate(zip(images, places, strict=True)):
        if image.shape[:2] != (height, width):
            remedy = "name another data set or data root" if known else "resize them to one size"
            raise InputError(
                f"images differ in size: {title} is {width}x{height}, {place} is "
                f"{image.shape[1]}x{image.shape[0]}; {remedy}."
            )
        if image.shape[2] > channels and bool((image != image[..., :1]).any()):
            raise InputError(
                f"{place} is in colour, {title} is grey: name another data set or data root."
            )
        # One grey channel fills three; of three equal channels, the first is the grey one.
        stacked[index] = image[..., :channels]
    return stacked


def _check_label(label: int, classes: int, where: str) -> None:
    if not 0 <= label < classes:
        raise InputError(
            f"the label {label} of {where} is outside 0..{classes - 1}: name the data set these "
            "labels belong to, or correct them."
        )


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
        _check_label(label, known.classes, where)
    return Source(np.ascontiguousarray(images), values, known.class_names)


def encode_png(images: Iterable[NDArray[np.uint8]]) -> Iterator[bytes]:
    """Each image `[height, width, 1 or 3]` as the bytes of a PNG."""
    for image in images:
        buffer = io.BytesIO()
        pixels = image[..., 0] if image.shape[2] == 1 else image
        Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
        yield buffer.getvalue()
