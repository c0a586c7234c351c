"""Where the content lies that ships next to the mechanism: attacks, reports, zoo."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def folder(package: str) -> Path:
    """Where `attacks`, `zoo` or `reports` is installed."""
    return Path(str(files(f"robustsnn.{package}")))
