"""Output folders: what may be written where, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from robustsnn.errors import InputError


def expanded(path: Path | str) -> Path:
    """A path in which a `~` in front stands for the home folder, as in a shell.

    Examples:
        >>> expanded("~/data") == Path.home() / "data", expanded("runs/a~b")
        (True, PosixPath('runs/a~b'))
    """
    # Unlike `Path.expanduser`, this leaves a user whom nobody knows as it is.
    return Path(os.path.expanduser(path))  # noqa: PTH111


def read_text(path: Path, largest: int, remedy: str) -> str:
    """The text of a file that somebody else may have written.

    Args:
        path: The file.
        largest: The number of bytes above which it is refused before it is read.
        remedy: What the message advises.

    Raises:
        InputError: It is not an ordinary file (a pipe or a device may never end), or it is too
            large, cannot be read, or is not UTF-8.
    """
    try:
        check_file(path, largest, remedy)
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"{path} cannot be read ({reason}): {remedy}.") from None


def check_file(path: Path, largest: int, remedy: str) -> None:
    """Refuse what is not an ordinary file, or is larger than it can be.

    Raises:
        InputError: It is refused.
        OSError: There is nothing at that path, or nobody may look.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is not an ordinary file: {remedy}.")
    if found.st_size > largest:
        raise InputError(f"{path} is larger than {largest:,} bytes: {remedy}.")


@contextlib.contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """Make a folder and those above it; what was made and is empty goes if the block fails.

    Args:
        path: The folder, which may be there already.

    Raises:
        OSError: It cannot be made.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as scratch:
        ...     with contextlib.suppress(KeyError), made_folder(Path(scratch, "a", "b")):
        ...         raise KeyError
        ...     list(Path(scratch).iterdir())
        []
    """
    missing = [one for one in (path, *path.parents) if not one.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for one in missing:
            with contextlib.suppress(OSError):
                one.rmdir()
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under another name, then rename it.

    If that fails, as on a full disk, a file that was there before stays as it was and nothing else
    is left behind. The other name ends in `.part`.

    Raises:
        OSError: The file cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        scratch.write_bytes(content)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def check_output(path: Path, *markers: str) -> None:
    """Refuse an output folder that cannot be made, or that holds something that is not ours.

    Args:
        path: The folder, which need not exist.
        markers: Names of files; a folder that is not empty must hold one of them.

    Raises:
        InputError: The folder cannot be used.
    """
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file: name another folder as --output.")
        nearest = path
        while not nearest.exists() and nearest.parent != nearest:
            nearest = nearest.parent
        if not nearest.is_dir():
            raise InputError(f"cannot write to {path}: {nearest} is a file; name another --output.")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise InputError(f"cannot write to {path}: no permission; name another --output.")
        if path.is_dir() and not any((path / marker).is_file() for marker in markers):
            # A process that was killed as it started may have left unfinished files.
            if any(not inside.name.endswith(".part") for inside in path.iterdir()):
                raise InputError(f"{path} is not empty and holds no run: name another --output.")
    except OSError as error:
        raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError) -> InputError:
    """The error for a folder that cannot be written to."""
    return InputError(f"cannot write to {path} ({error.strerror or error}): name another --output.")
