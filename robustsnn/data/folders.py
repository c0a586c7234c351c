"""Images in class folders, below split folders or not, as people keep them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robustsnn.data.pixels import SUFFIXES, Source, decode, stack
from robustsnn.data.splits import (
    SYSTEM_FILES,
    chosen_split,
    files_below,
    folders_in,
    left_behind,
    plain,
    split_folders,
)
from robustsnn.errors import InputError

if TYPE_CHECKING:
    from robustsnn.data.catalogue import DataSet

#: How many folders may lie around the data, as archives leave them (`photos/photos/train`).
_DEPTH = 3


def from_folders(name: str, known: DataSet | None, root: Path, split: str) -> Source | None:
    """The images of a split in class folders; None if there are none.

    Class folders lie below split folders (`Train/cat`), or the other way round (`cat/train`), or
    there are no splits, and they serve as either one.

    Args:
        name: The name of the data set.
        known: Its description, or None for any image folder.
        root: The folder that holds the splits or the classes.
        split: The split, "test" or "train".

    Raises:
        InputError: Names are ambiguous, a folder is not a class, or an image cannot be read.
    """
    found = _split_places(root)
    if not found:
        return _read(name, known, _class_folders(root), None, root, split)
    own = chosen_split(found, split)
    if own is None:
        return None
    numbering = None
    if split == "test":
        train = chosen_split(found, "train")
        # The training classes give the numbers, so a test class without images shifts none.
        numbering = _class_folders(_inner(train)) if train else None
    return _read(name, known, _class_folders(_inner(own)), numbering, root, split)


def _split_places(root: Path, depth: int = _DEPTH) -> dict[Path, str]:
    """The split folders that have class folders of their own, with their splits."""
    below = folders_in(root)
    splits = split_folders(below)
    # A folder "train" could also be a class of vehicles.
    found = {path: which for path, which in splits.items() if _class_folders(_inner(path))}
    if found:
        return found
    with_images = [path for path in below if _has_images(path)]
    flat = [path for path in with_images if path in splits]
    if len({splits[path] for path in flat}) > 1 or (flat and flat == with_images):
        raise InputError(
            f"{flat[0]} is a split by its name, but its images lie in no class folders: sort them "
            f"into {flat[0]}/<class>/, one folder for each class."
        )
    if len(with_images) == 1 and depth:
        return _split_places(with_images[0], depth - 1)
    return {}


def _inner(folder: Path) -> Path:
    """The folder itself, or a single one within it of the same name (`seg_train/seg_train`)."""
    below = folders_in(folder)
    if len(below) == 1 and plain(below[0].name) == plain(folder.name):
        return below[0]
    return folder


def _class_folders(folder: Path) -> list[Path]:
    """Sub-folders with images anywhere below them, by name."""
    return [path for path in folders_in(folder) if _has_images(path)]


def _has_images(folder: Path) -> bool:
    return next((True for path in files_below(folder) if _is_image(path)), False)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _read(
    name: str,
    known: DataSet | None,
    folders: list[Path],
    numbering: list[Path] | None,
    root: Path,
    split: str,
) -> Source | None:
    if not folders:
        return None
    for folder in (*folders, *(numbering or ())):
        try:
            folder.name.encode()
        except UnicodeEncodeError:
            shown = folder.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            raise InputError(f"the folder {shown!r} in {root} is not UTF-8: rename it.") from None
    if known is None:
        names = tuple(folder.name for folder in (numbering or folders))
    else:
        names = known.class_names
    paths: list[Path] = []
    labels: list[int] = []
    for folder, place in _places(folders, split):
        files = [path for path in files_below(place) if _is_image(path)]
        paths += files
        labels += [_label_of(folder, names, name)] * len(files)
    if not paths:
        return None
    images = [decode(path, str(path)) for path in paths]
    stacked = stack(images, [str(path) for path in paths], known)
    notes = _notes(root, folders[0].parent, folders)
    return Source(stacked, np.asarray(labels, dtype=np.int64), names, notes)


def _places(folders: list[Path], split: str) -> list[tuple[Path, Path]]:
    """Each class folder with the part of it that holds a split: `cat/train`, or `cat` itself."""
    within = {folder: split_folders(_class_folders(folder)) for folder in folders}
    kinds = {which for found in within.values() for which in found.values()}
    if len(kinds) < 2:
        return [(folder, folder) for folder in folders]
    places = []
    for folder, found in within.items():
        place = chosen_split(found, split)
        if place is not None:
            places.append((folder, place))
        elif not found:
            raise InputError(
                f"{folder} has no split folders and other classes have: sort its images into "
                "folders such as train and test."
            )
    return places


def _label_of(folder: Path, names: Sequence[str], name: str) -> int:
    """The class number of a folder, by class name or by number."""
    found = label_of(folder.name, names, loosely=name != "folder")
    if found is None:
        raise InputError(
            f"the folder {folder} is not a class of {name!r}: its classes are "
            f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}; rename or move it."
        )
    return found


def label_of(text: str, names: Sequence[str], *, loosely: bool) -> int | None:
    """The number of the class of that name, or None if no class has it.

    Args:
        text: The name of a folder, or a label that is a text.
        names: The names of the classes.
        loosely: Whether letters and digits alone have to agree, and a number stands for a class.

    Examples:
        >>> label_of("T-shirt_top", ["Bag", "T-shirt/top"], loosely=True)
        1
    """
    if text in names:
        return list(names).index(text)
    if loosely:
        plainly = [plain(name) for name in names]
        if plain(text) in plainly:
            return plainly.index(plain(text))
        if text.isdecimal() and int(text) < len(names):
            return int(text)
    return None


def _notes(root: Path, place: Path, folders: Sequence[Path]) -> tuple[str, ...]:
    """What lies among the images and was not counted."""
    counted = set(files_below(place))
    others: Counter[tuple[str, str]] = Counter()
    for path in place.rglob("*"):
        if not path.is_file() or path.name.lower() in SYSTEM_FILES:
            continue
        if path not in counted:
            parts = path.relative_to(place).parts
            behind = next(part for part in parts if left_behind(Path(part)))
            others["file", f"in {behind}" if behind != path.name else "with a dot in front"] += 1
        elif not _is_image(path):
            suffix = path.suffix.lower()
            others["file", f"of type {suffix}" if suffix else "without suffix"] += 1
        elif path.parent == place:
            others["image", "outside class folders"] += 1
    if root != place:
        for junk in (path for path in root.iterdir() if path.is_dir() and left_behind(path)):
            others["image", f"in {junk.name}"] += sum(map(_is_image, junk.rglob("*")))
    said = [
        f"{n} {what}{'s' * (n > 1)} {where}" for (what, where), n in sorted(others.items()) if n
    ]
    empty = [path.name for path in folders_in(place) if path not in folders]
    notes = [f"not counted in {root}: {', '.join(said)}"] if said else []
    if empty:
        listed = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        notes.append(f"not a class of {place}, as no image that can be read is in it: {listed}")
    return tuple(notes)
