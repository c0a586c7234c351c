"""Images and labels in Parquet files, as Hugging Face and pandas write them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from robustsnn.data.folders import label_of
from robustsnn.data.pixels import MOST_CLASSES, Source, check_label, decode, stack
from robustsnn.data.splits import SERVES, left_behind, plain, split_of, split_within
from robustsnn.errors import InputError

if TYPE_CHECKING:
    from robustsnn.data.catalogue import DataSet

IMAGE_COLUMNS = ("image", "img", "images", "jpg", "jpeg", "png")
LABEL_COLUMNS = (
    *("label", "fine_label", "labels", "target", "targets", "class", "classes"),
    *("class_label", "category", "y"),
)
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(-[0-9a-f]+)?\.parquet", re.IGNORECASE)


def from_parquet(name: str, known: DataSet | None, root: Path, split: str) -> Source | None:
    """The images of a split in Parquet files anywhere below a folder; None if there are none.

    Args:
        name: The name of the data set.
        known: Its description, or None for any images.
        root: The folder.
        split: The split, "test" or "train".

    Raises:
        InputError: Files are missing or damaged, or have other columns or labels.
    """
    files = _files(root, split)
    if not files:
        return None
    _check_complete(files)
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    places: list[str] = []
    names = known.class_names if known else ()
    texts: tuple[str, ...] | None = None
    for path in files:
        try:
            with pq.ParquetFile(path) as table:
                image, label = _columns(path, name, table.schema_arrow)
                stored = _stored_names(table.schema_arrow, label)
                if names and stored and [*map(plain, stored)] != [*map(plain, names)]:
                    raise InputError(
                        f"{path} names the classes {', '.join(stored[:3])}, ..., but those of "
                        f"{known.title if known else files[0]} are {', '.join(names[:3])}, ...: "
                        "name another data set or data root."
                    )
                if _is_text(table.schema_arrow.field(label).type) and not names:
                    texts = texts or _texts(root, files, label)
                names = names or stored or texts or ()
                for row, (encoded, value) in enumerate(_rows(table, image, label)):
                    where = f"row {row} of {path}"
                    if encoded is None:
                        raise InputError(f"{where} has no image bytes: embed the images.")
                    labels.append(_label(value, label, names, where, loosely=known is not None))
                    images.append(decode(io.BytesIO(encoded), where))
                    places.append(where)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{path} is not a readable Parquet file (truncated?): fetch it again."
            ) from error
    if not images:
        raise InputError(f"{files[0]} holds no rows: name a data root with images.")
    names = names or tuple(str(label) for label in range(max(labels) + 1))
    return Source(stack(images, places, known), np.asarray(labels, dtype=np.int64), names)


def _files(root: Path, split: str) -> list[Path]:
    """The files of a split anywhere below the root, each once; of what serves as it, the first."""
    below = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() == ".parquet"
        and path.is_file()
        and not any(left_behind(Path(part)) for part in path.relative_to(root).parts)
    )
    for kind in SERVES[split]:
        found = [path for path in below if _kind(path, root) == kind]
        if found:
            # The repository of SVHN also holds whole photographs; only cropped digits are used.
            cropped = [path for path in found if "cropped_digits" in path.parts]
            return list({path.resolve(): path for path in cropped or found}.values())
    return []


def _kind(path: Path, root: Path) -> str | None:
    """The split of a file, by its own name or by that of the nearest folder that spells one."""
    shard = _SHARD.fullmatch(path.name)
    stem = shard[1] if shard else path.stem
    first = re.split(r"[-_. ]", stem)[0]
    own = split_of(stem) or split_of(first) or split_within(stem)
    folders = (split_of(parent.name) for parent in path.relative_to(root).parents if parent.name)
    return own or next((kind for kind in folders if kind), None)


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
        match = _SHARD.fullmatch(path.name)
        if match:
            present.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (split, total), shards in present.items():
        missing = next((shard for shard in range(total) if shard not in shards), None)
        if missing is not None:
            raise InputError(
                f"{folders[0]} has {len(shards)} of {total} {split} files: "
                f"{split}-{missing:05d}-of-{total:05d}.parquet is missing; fetch it."
            )


def _columns(path: Path, name: str, schema: pa.Schema) -> tuple[str, str]:
    """The names of the image column and the label column; an error if either is missing."""
    # CIFAR-100 has 100 fine and 20 coarse classes; the fine ones are used.
    wanted = ("fine_label", *LABEL_COLUMNS) if name == "cifar100" else LABEL_COLUMNS
    by_name = {column.lower(): column for column in reversed(schema.names)}
    image = next((by_name[column] for column in IMAGE_COLUMNS if column in by_name), None)
    label = next((by_name[column] for column in wanted if column in by_name), None)
    present = ", ".join(schema.names) or "none"
    if image is None or label is None:
        raise InputError(
            f"{path} has the columns {present}: an image column (image or img) and a label column "
            "(label, labels, target or fine_label) are needed; rename them."
        )
    for column in (image, label):
        if schema.names.count(column) > 1:
            raise InputError(
                f"{path} has the column {column!r} {schema.names.count(column)} times: keep one."
            )
    kind = schema.field(image).type
    children = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    data = children.get("bytes") if pa.types.is_struct(kind) else kind
    if data is None or not (pa.types.is_binary(data) or pa.types.is_large_binary(data)):
        raise InputError(
            f"column {image!r} of {path} is {kind}: encoded images, struct<bytes: binary, "
            "path: string>, are needed."
        )
    kind = _plain_type(schema.field(label).type)
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if not (numbers or _is_text(kind)):
        raise InputError(
            f"column {label!r} of {path} is {kind}: whole numbers or names of classes are needed."
        )
    return image, label


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    kind = _plain_type(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _stored_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """The class names in the metadata that Hugging Face writes; empty if there are none."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
        return tuple(str(text) for text in names)
    except (TypeError, KeyError, ValueError):
        return ()


def _texts(root: Path, files: Sequence[Path], label: str) -> tuple[str, ...]:
    """The classes of labels that are texts, in the order of the texts; numbers are themselves.

    Where the training images lie next to them, these count: a class that has no test image must
    not change the numbers of the others.
    """
    found: set[str] = set()
    for path in _files(root, "train") or files:
        with pq.ParquetFile(path) as table:
            if label in table.schema_arrow.names:
                column = table.read(columns=[label]).column(label)
                found |= {str(text) for text in column.to_pylist() if text is not None}
    if found and all(text.isdecimal() for text in found):
        highest = min(max(map(int, found)), MOST_CLASSES)
        return tuple(map(str, range(highest + 1)))
    return tuple(sorted(found))


def _label(value: Any, column: str, names: Sequence[str], where: str, *, loosely: bool) -> int:
    """The number of the class that a cell names."""
    if value is None or value != value:
        raise InputError(f"{where} has no label: fill column {column!r}.")
    if isinstance(value, str):
        found = label_of(value, names, loosely=loosely)
        if found is None:
            raise InputError(
                f"the label {value!r} of {where} is not a class: the classes are "
                f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}."
            )
        return found
    if value != int(value):
        raise InputError(f"the label {value} of {where} is not a whole number: correct it.")
    check_label(int(value), len(names) or MOST_CLASSES, where)
    return int(value)


def _rows(table: pq.ParquetFile, image: str, label: str) -> Iterator[tuple[bytes | None, Any]]:
    nested = pa.types.is_struct(table.schema_arrow.field(image).type)
    wanted = [f"{image}.bytes" if nested else image, label]
    for batch in table.iter_batches(batch_size=1024, columns=wanted):
        column = batch.column(image)
        encoded = (column.field("bytes") if nested else column).to_pylist()
        yield from zip(encoded, batch.column(label).to_pylist(), strict=True)
