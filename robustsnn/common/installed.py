"""What other installed packages add: attacks, estimators and reports, through entry points.

A package names them in the groups `robustsnn.attacks`, `robustsnn.estimators` and
`robustsnn.reports`. Loading one runs code of a package that somebody installed, like any import;
nothing that a file names leads to it but the names that the package itself has given.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from typing import Any

from robustsnn.errors import InputError

#: A name that users can type in front of the fields of a specification.
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")


@functools.cache
def installed(kind: str) -> dict[str, importlib.metadata.EntryPoint]:
    """The entry points of other packages, by name.

    Args:
        kind: `attacks`, `estimators` or `reports`.

    Examples:
        >>> isinstance(installed("attacks"), dict)
        True
    """
    found = importlib.metadata.entry_points(group=f"robustsnn.{kind}")
    return {one.name: one for one in sorted(found) if _NAME.fullmatch(one.name)}


def package_of(kind: str, name: str) -> str:
    """The name and the version of the package that adds something, as one text."""
    dist = installed(kind)[name].dist
    return f"{dist.name} {dist.version}" if dist is not None else "another package"


def packages() -> list[str]:
    """The names of the packages that add something, each once."""
    kinds = ("attacks", "estimators", "reports")
    dists = (one.dist for kind in kinds for one in installed(kind).values())
    return sorted({dist.name for dist in dists if dist is not None})


def load(kind: str, name: str) -> Any:
    """What an entry point names.

    Raises:
        InputError: It cannot be loaded.
    """
    try:
        return installed(kind)[name].load()
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name!r} of the package {package_of(kind, name)} does not load "
            f"({type(error).__name__}: {said}): mend or remove that package."
        ) from error
