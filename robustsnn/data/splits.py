"""The names of splits as people spell them, and what lies in a folder but is not data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from robustsnn.errors import InputError

#: The words for each split; a data set often holds what serves as our test split as validation.
WORDS = {
    "train": ("train", "training", "trn"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
    "validation": ("val", "valid", "validation", "dev"),
}
#: What may stand next to the word, as in `train_set`, `Training Images` or `trainData`.
_COMPANIONS = "set|split|data|dataset|image|images|img|imgs|photos|pictures|pics|files|folder|dir"
_SPELLED = {
    split: re.compile(
        rf"(?:{_COMPANIONS})?(?:{'|'.join(words)})(?:{_COMPANIONS})?(?:{_COMPANIONS})?\d*"
    )
    for split, words in WORDS.items()
}
#: The kinds that serve as each of our splits, in the order of preference.
SERVES = {"train": ("train",), "test": ("test", "validation")}
#: Folders that programs leave behind; every name that begins with a dot is one as well.
LEFT_BEHIND = frozenset(
    ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information")
)
#: Files of the same kind, which are not worth a note.
SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini", ".ds_store"))


def plain(text: str) -> str:
    """The letters and digits of a name, in lower case.

    Examples:
        >>> plain("T-shirt/top")
        'tshirttop'
    """
    return re.sub(r"[^a-z0-9]", "", text.lower())


def split_of(name: str) -> str | None:
    """The split that a name spells: `train`, `test` or `validation`; None if it spells none.

    Examples:
        >>> [split_of(name) for name in ("Train", "test_set", "Validation Images", "trainer")]
        ['train', 'test', 'validation', None]
    """
    text = plain(name)
    return next((split for split, spelled in _SPELLED.items() if spelled.fullmatch(text)), None)


def split_within(name: str) -> str | None:
    """The one split whose word is among the words of a name; None for none or several.

    Examples:
        >>> split_within("seg_train"), split_within("trainTest"), split_within("mnistTest")
        ('train', None, 'test')
    """
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    words = re.findall(r"[a-z]+", apart.lower())
    found = {split for split, spelled in _SPELLED.items() if any(map(spelled.fullmatch, words))}
    return found.pop() if len(found) == 1 else None


def split_folders(folders: Iterable[Path]) -> dict[Path, str]:
    """The folders next to each other that are splits, and which ones.

    A name that only has the word of a split among others, such as `seg_train`, counts if its
    neighbours are another split of the kind; `freight_train` among vehicles is a class.

    Args:
        folders: Folders below one folder.
    """
    below = list(folders)
    found = {path: split for path in below if (split := split_of(path.name))}
    if found:
        return found
    loose = {path: split for path in below if (split := split_within(path.name))}
    return loose if len(set(loose.values())) > 1 else {}


def chosen_split(folders: dict[Path, str], split: str) -> Path | None:
    """The folder that serves as a split; None if there is none.

    Args:
        folders: Folders that are splits, from `split_folders`.
        split: Our split, `train` or `test`.

    Raises:
        InputError: Two folders have names for the same split.
    """
    for kind in SERVES[split]:
        found = sorted(path for path, which in folders.items() if which == kind)
        if len(found) > 1:
            raise InputError(
                f"{found[0]} and {found[1]} are both {kind} images by their names: move one of "
                "them away, or name a folder that holds only one."
            )
        if found:
            return found[0]
    return None


def left_behind(path: Path) -> bool:
    """Whether a file or folder was left there by a program and is not data."""
    return path.name[0] == "." or path.name in LEFT_BEHIND


def folders_in(folder: Path) -> list[Path]:
    """The folders below one, by name, without those that programs leave behind."""
    return sorted(
        (path for path in folder.iterdir() if path.is_dir() and not left_behind(path)),
        key=lambda path: path.name,
    )


def files_below(folder: Path) -> Iterator[Path]:
    """All files anywhere below a folder, by name, without what programs leave behind."""
    for path in sorted(folder.iterdir()):
        if left_behind(path) or path.name.lower() in SYSTEM_FILES:
            continue
        if path.is_dir():
            yield from files_below(path)
        elif path.is_file():
            yield path
