"""Run folders: one row for each image and attack, and one manifest.

While a run goes on, each finished batch of each attack is one file in `parts/`; the last step
merges these files. A killed run leaves no half-written file: a file is written under another name
and then renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from robustsnn.common.files import (
    check_file,
    check_output,
    made_folder,
    unwritable,
    write_atomically,
)
from robustsnn.common.printable import csv_text, from_cell
from robustsnn.errors import InputError
from robustsnn.records.manifest import Manifest, read_manifest, write_manifest
from robustsnn.records.schema import MANIFEST, RESULTS_TEXT, records_schema


def parquet(frame: pd.DataFrame, schema: pa.Schema | None = None) -> bytes:
    """A data frame as the bytes of a Parquet file.

    Args:
        frame: The data frame.
        schema: The columns that are kept and their types; by default all, as they are.
    """
    if schema is not None:
        frame = frame[schema.names]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame, schema=schema, preserve_index=False), buffer)
    return buffer.getvalue()


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one run."""

    path: Path

    @property
    def parts(self) -> Path:
        """The folder of the finished batches of a run that goes on."""
        return self.path / "parts"

    def manifest(self) -> Manifest:
        """The manifest of the run.

        Raises:
            InputError: There is no manifest, or it is damaged.
        """
        return read_manifest(self.path)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest."""
        write_manifest(self.path, manifest)

    def part(self, entry: str, batch: int) -> Path:
        """The path of a batch of an attack; the file exists once that batch is finished.

        Examples:
            >>> RunFolder(Path("runs/a")).part("pgd", 3).name
            'pgd.00003.parquet'
        """
        return self.parts / f"{entry}.{batch:05d}.parquet"

    def write_part(
        self,
        entry: str,
        batch: int,
        rows: pd.DataFrame,
        images: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """Store a finished batch; images that are kept are written before its rows.

        Args:
            entry: The name of the attack in the names of files.
            batch: The number of the batch.
            rows: The records of the batch.
            images: The images that are kept, by name.
        """
        path = self.part(entry, batch)
        self.parts.mkdir(exist_ok=True)
        if images:
            from safetensors.numpy import save

            contiguous = {name: np.ascontiguousarray(array) for name, array in images.items()}
            write_atomically(path.with_suffix(".safetensors"), save(contiguous))
        write_atomically(path, parquet(rows, records_schema(rows.columns)))

    def read_part(self, entry: str, batch: int) -> pd.DataFrame:
        """The rows of a finished batch."""
        return read_table(self.part(entry, batch))

    def read_images(self, entry: str, batch: int, name: str, rows: Sequence[int]) -> NDArray[Any]:
        """Some of a finished batch's images, `[row, ...]`, without reading the others.

        Args:
            entry: The name of the attack in the names of files.
            batch: The number of the batch.
            name: The name under which the images are kept.
            rows: The positions of the images in the batch.

        Raises:
            InputError: The images are missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = self.part(entry, batch).with_suffix(".safetensors")
        try:
            check_file(path, LARGEST, REMEDY)
            with safe_open(path, framework="np") as images:
                held = images.get_slice(name)
                return np.concatenate([held[row : row + 1] for row in rows])
        except (OSError, ValueError, SafetensorError) as error:
            raise _damaged(path, error) from None

    def write_piece(self, name: str, about: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        """Store a piece of the diagnosis, which is removed with the parts.

        Args:
            name: The name of the piece.
            about: What it says, ready for JSON.
            tensors: Its arrays, by name.
        """
        from safetensors.numpy import save

        self.parts.mkdir(exist_ok=True)
        contiguous = {key: np.ascontiguousarray(array) for key, array in tensors.items()}
        said = json.dumps(about)
        blob = save(contiguous, metadata={"about": said, "sha256": _digest(said, contiguous)})
        write_atomically(self._piece(name), blob)

    def read_piece(self, name: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
        """A piece of the diagnosis, or None if it was not stored.

        Raises:
            InputError: It is damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = self._piece(name)
        if not path.exists():
            return None
        try:
            check_file(path, LARGEST, REMEDY)
            with safe_open(path, framework="np") as held:
                said = held.metadata()["about"]
                tensors = {key: held.get_tensor(key) for key in held.keys()}
                if held.metadata()["sha256"] != _digest(said, tensors):
                    raise ValueError("it was edited")
            return json.loads(said), tensors
        except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
            raise _damaged(path, error) from None

    def _piece(self, name: str) -> Path:
        return self.parts / f"{name}.safetensors"

    def merged(self, order: Sequence[tuple[str, int]]) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The rows of all parts, and their images joined by name.

        Args:
            order: The attack and the number of each batch, in the order of the rows.
        """
        from safetensors.numpy import load_file

        frames, images = [], dict[str, list[NDArray[Any]]]()
        for entry, batch in order:
            frames.append(self.read_part(entry, batch))
            kept = self.part(entry, batch).with_suffix(".safetensors")
            if kept.is_file():
                for name, array in load_file(kept).items():
                    images.setdefault(name, []).append(array)
        return (
            pd.concat(frames, ignore_index=True),
            {name: np.concatenate(arrays) for name, arrays in images.items()},
        )

    def finish(
        self,
        manifest: Manifest,
        records: pd.DataFrame,
        results: pd.DataFrame,
        activity: pd.DataFrame,
        examples: Mapping[str, NDArray[Any]],
    ) -> None:
        """Write every file of a finished run, the manifest last, then remove the parts."""
        from safetensors.numpy import save

        contiguous = {name: np.ascontiguousarray(array) for name, array in examples.items()}
        contents = {
            "records.parquet": parquet(records, records_schema(records.columns)),
            "activity.parquet": parquet(activity),
            "examples.safetensors": save(contiguous),
            "results.csv": csv_text(results).encode(),
        }
        for name, content in contents.items():
            write_atomically(self.path / name, content)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        self.write_manifest(manifest.but(contents=digests))
        self.tidy()

    def tidy(self) -> None:
        """Remove the files that a killed or finished run does not need any more."""
        shutil.rmtree(self.parts, ignore_errors=True)
        for scratch in self.path.glob(".*.part"):
            scratch.unlink(missing_ok=True)

    def results(self) -> pd.DataFrame:
        """The rows of `results.csv`, with text columns as text."""
        return read_results(self.path / "results.csv")

    def records(self) -> pd.DataFrame:
        """The rows of `records.parquet`."""
        return read_table(self.path / "records.parquet")

    def activity(self) -> pd.DataFrame:
        """The rows of `activity.parquet`."""
        return read_table(self.path / "activity.parquet")


def _digest(about: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    """The sha256 of a piece of the diagnosis."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def read_table(path: Path) -> pd.DataFrame:
    """The rows of a Parquet file of a run folder.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        check_file(path, LARGEST, REMEDY)
        with pq.ParquetFile(path) as held:
            about = held.metadata
            groups = [about.row_group(i) for i in range(about.num_row_groups)]
            # A few bytes can stand for any number of equal rows.
            if about.num_rows > MOST_ROWS or sum(g.total_byte_size for g in groups) > LARGEST:
                raise InputError(f"{path} holds more rows than a run can have: {REMEDY}.")
        frame = pd.read_parquet(path)
        if not frame.columns.is_unique:
            raise ValueError("a column is there twice")
        plain = isinstance(frame.index, pd.RangeIndex)
        return frame if plain else frame.reset_index()
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
        # pyarrow's own errors derive from these; pandas raises some on a foreign schema.
        raise _damaged(path, error) from None


#: What is advised where a file of a run cannot be used.
REMEDY = "remove the run folder and run again"
#: The rows and bytes above which a table is refused before it is read; a run of 10,000 images
#: under 50 attacks at 10 sizes has 5 million rows.
MOST_ROWS, LARGEST = 50_000_000, 16 * 2**30


def _damaged(path: Path, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"{path} is missing or damaged ({reason}): remove the run folder and run again."
    )


def open_folder(path: Path, identity: str, create: Callable[[], Manifest]) -> RunFolder:
    """The folder of a run: a new one with its manifest, or that of an earlier start of the run.

    Args:
        path: The path of the folder, which is made if it does not exist and filled only if it is
            empty.
        identity: The identity of the run; the folder of a run of another identity is refused.
        create: The function that makes the manifest of a new run.

    Raises:
        InputError: The folder cannot be written, or holds something else.
    """
    folder = RunFolder(path)
    check_folder(path, identity)
    if (path / MANIFEST).exists():
        return folder
    manifest = create()
    try:
        with made_folder(path):
            folder.write_manifest(manifest)
    except OSError as error:
        raise unwritable(path, error) from None
    return folder


def check_folder(path: Path, identity: str) -> None:
    """Refuse a folder that does not belong to a run of that identity.

    Raises:
        InputError: The folder holds another run or other files, or it cannot be made.
    """
    check_output(path, MANIFEST)
    if not (path / MANIFEST).exists():
        return
    manifest = RunFolder(path).manifest()
    if manifest.identity != identity:
        raise InputError(
            f"{path} holds another run ({manifest.model}, {manifest.data}, suite "
            f"{manifest.suite}, {manifest.samples} images, seed {manifest.seed}): name another "
            "--output."
        )


def read_results(path: Path) -> pd.DataFrame:
    """The rows of a `results.csv`, with text columns as text: an epsilon of `0` stays text.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        check_file(path, LARGEST, REMEDY)
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        for name in frame.columns.difference(RESULTS_TEXT):
            frame[name] = pd.to_numeric(frame[name])
        for name in frame.columns.intersection(RESULTS_TEXT):
            frame[name] = frame[name].map(from_cell)
    except InputError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path, error) from None
    return frame


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep a second process out of a run folder inside the block.

    The system releases the lock even if this process dies.

    Raises:
        InputError: Another process has it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(
            f"another process is running the evaluation in {path}: wait for it, or name another "
            "--output."
        ) from None
    try:
        yield
    finally:
        os.close(handle)
