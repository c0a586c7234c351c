"""The user's own files that a factory is written in: its own, and those that it imports."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

from robustsnn.models.contents import is_users


def sources_of(module: str) -> dict[str, str]:
    """The sha256 of the file of a module, and of each file of the user's own that it imports.

    Args:
        module: The name of a module that is loaded. What it imports inside functions counts too,
            as far as it is loaded by now.

    Examples:
        >>> sources_of("json")
        {}
    """
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if name in found or path is None:
            continue
        content = path.read_bytes()
        found[name] = hashlib.sha256(content).hexdigest()
        waiting += _imported(name, content, package=path.stem == "__init__")
    return dict(sorted(found.items()))


def _file(name: str) -> Path | None:
    """The source of a loaded module of the user's own; None for any other."""
    if not is_users(name) or name == "__main__":
        return None
    file = getattr(sys.modules.get(name), "__file__", None)
    path = None if file is None else Path(file)
    return path if path is not None and path.is_file() else None


def _imported(name: str, content: bytes, package: bool) -> Iterator[str]:
    """The names of the modules that a source imports anywhere in it, and of their packages."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        # A compiled extension, or a file that was broken after it was loaded.
        return
    here = name if package else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_packages(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = here.split(".")[: len(here.split(".")) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from _with_packages(stem)
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def _with_packages(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
