"""The folder of finished measurements, so that a benchmark can be stopped and continued."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustsnn.common.files import write_atomically


class Store:
    """Finished measurements, each in a JSON file that is there as a whole or not at all.

    Args:
        folder: The folder of the files.
        identity: The digest of machine, versions and source. A measurement under another identity
            is made again, so that a table never holds numbers of different code.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        self.identity = identity
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, key: str) -> dict[str, Any] | None:
        """The measurement of a name, or None if it was not finished under this identity."""
        path = self.folder / f"{key}.json"
        if not path.exists():
            return None
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return stored if stored.get("identity") == self.identity else None

    def write(self, key: str, measured: dict[str, Any]) -> dict[str, Any]:
        """Keep a measurement; the result is what `read` will return."""
        stored = {"identity": self.identity, **measured}
        text = json.dumps(stored, indent=1) + "\n"
        write_atomically(self.folder / f"{key}.json", text.encode())
        return stored

    def once(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The stored measurement, or else a new one, which is kept."""
        stored = self.read(key)
        return self.write(key, make()) if stored is None else stored
