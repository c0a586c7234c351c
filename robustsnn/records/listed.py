"""The runs below a folder, without reading their records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robustsnn.common.printable import all_printable
from robustsnn.errors import InputError
from robustsnn.records.folder import read_results
from robustsnn.records.manifest import Manifest, read_manifest
from robustsnn.records.schema import CLEAN, MANIFEST, WORST_CASE

#: How deep runs lie below a folder: those of a comparison are one folder deeper than a run.
DEPTH = 3


@dataclass(frozen=True)
class Listed:
    """One run below a folder.

    Args:
        folder: The run folder.
        manifest: Its manifest; None if that cannot be read.
        accuracy: The accuracy in the worst case, the lowest of all sizes, or that on clean images
            without an attack; None for a run that is not finished.
        trouble: Why it cannot be read; empty if it can.
    """

    folder: Path
    manifest: Manifest | None = None
    accuracy: float | None = None
    trouble: str = ""


def listed_runs(root: Path) -> list[Listed]:
    """The runs in a folder and below it, the oldest first.

    Raises:
        InputError: The folder does not exist.
    """
    if not root.is_dir():
        raise InputError(f"no folder {root}: name a folder that holds run folders.")
    found = [_listed(folder) for folder in _folders(root, DEPTH)]
    return sorted(found, key=lambda run: (run.manifest.start if run.manifest else "~", run.folder))


def _folders(root: Path, depth: int) -> Iterator[Path]:
    if (root / MANIFEST).is_file():
        yield root
        return
    if depth:
        for inner in sorted(path for path in root.iterdir() if path.is_dir()):
            yield from _folders(inner, depth - 1)


def _listed(folder: Path) -> Listed:
    try:
        manifest = read_manifest(folder)
        manifest = manifest.but(**all_printable(dict(manifest)))
        if not manifest.done:
            return Listed(folder, manifest)
        results = read_results(folder / "results.csv")
        worst = results[results["attack"] == WORST_CASE]
        some = worst if len(worst) else results[results["attack"] == CLEAN]
        return Listed(folder, manifest, float(some["accuracy"].min()))
    except (InputError, KeyError, TypeError, ValueError, OSError) as error:
        return Listed(folder, trouble=str(error) or type(error).__name__)
