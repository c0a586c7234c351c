"""Architectures: one description gives the ANN and its SNN twin.

Every module here lists its architectures in `ARCHITECTURES`; a new architecture is a new file.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from robustsnn.errors import unknown
from robustsnn.snn.architectures.description import Architecture


@cache
def architectures() -> dict[str, Architecture]:
    """Every architecture by name, from all modules of this package."""
    found: dict[str, Architecture] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        found.update(getattr(module, "ARCHITECTURES", {}))
    return found


def architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        InputError: There is none of that name.
    """
    known = architectures()
    if name not in known:
        raise unknown("architecture", name, known)
    return known[name]
