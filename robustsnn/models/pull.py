"""Checkpoints by reference: fetched, checked by their sha256, and never executed."""

from __future__ import annotations

import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from robustsnn.common.files import check_output, expanded, made_folder, unwritable
from robustsnn.errors import InputError, installing

#: The files of a checkpoint: those that it needs, and those that tell more about it.
NEEDED = ("model.json", "model.safetensors")
MORE = ("recipe.yaml", "card.md", "training.csv")
#: The most bytes of a file: weights, and any other.
LARGEST_WEIGHTS, LARGEST = 2**30, 2**22
#: The seconds that a server may stay silent.
PATIENCE = 60
HUB = re.compile(r"hf://([\w.-]+)/([\w.-]+?)(?:@([\w./-]+))?/?")

Fetch = Callable[[str, Path], bool]
"""Fetches the file of a name to a path; False if there is none of that name."""


def check_pull(source: str, output: Path | None, sha256: str | None) -> Path:
    """The folder to write; refuses what can be refused without a network or torch.

    The arguments are those of `pull`.

    Raises:
        InputError: The reference or the sha256 is malformed, or the folder is in use.

    Examples:
        >>> check_pull("hf://owner/vgg5-snn", None, None)
        PosixPath('vgg5-snn')
    """
    if source.startswith("hf://") and HUB.fullmatch(source) is None:
        raise InputError(f"{source!r} is not hf://OWNER/NAME or hf://OWNER/NAME@REVISION.")
    scheme = urlsplit(source).scheme
    if "://" in source and scheme not in ("hf", "http", "https"):
        raise InputError(f"{source!r}: only hf://, https:// and http:// are fetched from.")
    if "://" not in source and not expanded(source).is_dir():
        raise InputError(f"no folder {source}: give a folder, a URL of one, or hf://OWNER/NAME.")
    if sha256 is not None and re.fullmatch(r"[0-9a-f]{64}", sha256.lower()) is None:
        raise InputError(f"--sha256 {sha256}: give the 64 hex digits of the weights' sha256.")
    found = HUB.fullmatch(source)
    last = found[2] if found else urlsplit(source).path.rstrip("/").rpartition("/")[2]
    if output is None and last in ("", ".", ".."):
        raise InputError(f"{source} has no name of its own: give --output.")
    folder = expanded(output) if output is not None else Path(last)
    check_output(folder)
    return folder


def pull(source: str, output: Path | None = None, sha256: str | None = None) -> Path:
    """Fetch a checkpoint, check it, and write it as a folder, whole or not at all.

    The weights must have the sha256 that `model.json` states, and fit the network that it
    describes. Nothing that was fetched is run.

    Args:
        source: `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION` on the Hugging Face Hub, which takes
            the package `huggingface_hub`; the URL of a folder; or a folder.
        output: The folder to write, empty or new; by default the last part of the reference.
        sha256: The sha256 that the weights must have, if you know it from somewhere else; without
            it, the sha256 only says that both files belong together.

    Returns:
        The folder, which is a checkpoint.

    Raises:
        InputError: The reference is malformed, nothing is there, or the checkpoint is broken.
    """
    folder = check_pull(source, output, sha256)
    try:
        with made_folder(folder.parent):
            scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            try:
                fetch = _fetcher(source)
                for name in (*NEEDED, *MORE):
                    if not fetch(name, scratch / name) and name in NEEDED:
                        raise InputError(f"{source} has no {name}: it is not a checkpoint.")
                _check(scratch, source, sha256)
                scratch.chmod(0o755)
                if folder.is_dir():
                    folder.rmdir()
                scratch.rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise unwritable(folder, error) from None
    return folder


def _check(folder: Path, source: str, sha256: str | None) -> None:
    """Read the checkpoint as every command will.

    Raises:
        InputError: It is broken, or its weights are not those that were asked for.
    """
    from robustsnn.models.checkpoint import load_network, read_checkpoint

    try:
        checkpoint = read_checkpoint(folder)
        load_network(checkpoint)
    except InputError as error:
        # The folder is gone by the time that a user reads this.
        raise InputError(str(error).replace(f"{folder}", source)) from None
    if sha256 is not None and checkpoint.sha256 != sha256.lower():
        raise InputError(
            f"the weights of {source} have the sha256 {checkpoint.sha256}, not {sha256.lower()}: "
            "they are not the ones that you asked for."
        )


def _fetcher(source: str) -> Fetch:
    hub = HUB.fullmatch(source)
    if hub is not None:
        return _from_hub(f"{hub[1]}/{hub[2]}", hub[3])
    if "://" in source:
        return _from_url(source)
    return _from_folder(expanded(source))


def _limit(name: str) -> int:
    return LARGEST_WEIGHTS if name.endswith(".safetensors") else LARGEST


def _from_folder(folder: Path) -> Fetch:
    def fetch(name: str, to: Path) -> bool:
        if not (folder / name).is_file():
            return False
        if (folder / name).stat().st_size > _limit(name):
            raise _too_large(str(folder / name), name)
        shutil.copyfile(folder / name, to)
        return True

    return fetch


def _from_url(source: str) -> Fetch:
    base = urlsplit(source)

    def fetch(name: str, to: Path) -> bool:
        url = base._replace(path=f"{base.path.rstrip('/')}/{name}").geturl()
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                content: bytes = answer.read(_limit(name) + 1)
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                return False
            raise InputError(f"{url} cannot be fetched ({error.code} {error.reason}).") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise InputError(f"{url} cannot be fetched ({reason}): check the address.") from None
        if len(content) > _limit(name):
            raise _too_large(url, name)
        to.write_bytes(content)
        return True

    return fetch


def _from_hub(repository: str, revision: str | None) -> Fetch:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        raise InputError(f"hf:// needs the package huggingface_hub: {installing('hub')}.") from None

    def fetch(name: str, to: Path) -> bool:
        try:
            path = Path(hf_hub_download(repository, name, revision=revision))
        except EntryNotFoundError:
            return False
        except Exception as error:
            # Its errors are of many kinds, and each of them ends the same way here.
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"hf://{repository} cannot be fetched ({said}).") from None
        return _from_folder(path.parent)(path.name, to)

    return fetch


def _too_large(where: str, name: str) -> InputError:
    return InputError(
        f"{where} is larger than {_limit(name):,} bytes: no checkpoint is that large."
    )
