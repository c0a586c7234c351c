"""The folder of a training run: whether it can be used, and the recipe that it keeps."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from pathlib import Path
from typing import Any

import yaml

from robustsnn.common.files import check_output, made_folder, unwritable, write_atomically
from robustsnn.errors import InputError
from robustsnn.training.recipe import Recipe, document_of
from robustsnn.training.state import STATE, check_state

#: The log of a run, and the recipe next to it.
LOG, KEPT = "training.csv", "recipe.yaml"
#: The files that a run of its own leaves, one of which has to be there before another is replaced.
OURS = (STATE, LOG, "model.json", "model.safetensors", "card.md")


def check_folder(
    folder: Path, path: Path, recipe: Recipe, overrides: dict[str, Any] | None, *, resume: bool
) -> None:
    """Refuse a folder that a run cannot use, before anything is read or computed.

    Args:
        folder: The folder of the run, which need not exist.
        path: The recipe.
        recipe: The same recipe, read.
        overrides: The values in place of those of the file.
        resume: Whether the run goes on from the last finished epoch.

    Raises:
        InputError: The folder cannot be written to, holds other files or an unfinished run, or,
            with `resume`, no run of this recipe.
    """
    check_output(folder, *OURS, KEPT)
    if resume:
        check_state(folder, recipe.digest())
        return
    if (folder / STATE).exists():
        raise InputError(f"{folder} holds an unfinished run: add --resume or remove it.")
    names = set()
    if folder.is_dir():
        names = {one.name for one in folder.iterdir() if not one.name.endswith(".part")}
    if not names <= {*OURS, KEPT}:
        raise InputError(f"{folder} holds other files: choose another --output.")
    if KEPT in names and not names & set(OURS):
        held = (folder / KEPT).read_bytes()
        if held != _kept(folder, path, overrides):
            raise InputError(f"{folder} holds another recipe: choose another --output.")
    if overrides and _same(folder / KEPT, path):
        raise InputError(f"--set would change {path} itself: choose another --output.")
    _try(folder)


def open_folder(
    folder: Path, path: Path, overrides: dict[str, Any] | None, *, resume: bool
) -> None:
    """Make the folder, without what a killed run left half-written, and keep the recipe in it.

    The arguments are those of `check_folder`.

    Raises:
        InputError: The folder cannot be written to.
    """
    try:
        with made_folder(folder):
            for scratch in folder.glob(".*.part"):
                scratch.unlink(missing_ok=True)
            if not resume and not _same(folder / KEPT, path):
                write_atomically(folder / KEPT, _kept(folder, path, overrides))
    except OSError as error:
        raise unwritable(folder, error) from None


def _same(one: Path, other: Path) -> bool:
    return one.exists() and one.samefile(other)


def _kept(folder: Path, path: Path, overrides: dict[str, Any] | None) -> bytes:
    """The recipe as it was trained, with the folders that it names relative to its new place."""
    document = document_of(path, overrides)
    owners: list[tuple[Any, str]] = [(document, "init"), (document.get("guidance"), "teacher")]
    moved = []
    for owner, field in owners:
        named = owner.get(field) if isinstance(owner, dict) else None
        if not isinstance(named, str) or not (path.parent / named).is_dir():
            continue
        there = os.path.relpath((path.parent / named).resolve(), folder.resolve())
        if there != named:
            owner[field] = there
            moved.append(field)
    if not overrides and not moved:
        return path.read_bytes()
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    if moved:
        # The digest of the recipe, which the checkpoint has, is that of the file that was trained.
        text = f"# {' and '.join(moved)}: written as seen from this folder.\n{text}"
    return text.encode()


def _try(folder: Path) -> None:
    """Make the folder and a file in it, and take both away again.

    Raises:
        InputError: The system refuses that.
    """
    made, node = [], folder
    while not node.exists():
        made.append(node)
        node = node.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise unwritable(folder, error) from None
    finally:
        for one in made:
            with contextlib.suppress(OSError):
                one.rmdir()


def write_log(path: Path, log: list[dict[str, Any]]) -> None:
    """Write the log as CSV, one row an epoch."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(log[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(log)
    write_atomically(path, text.getvalue().encode())
