"""The names of the estimators that ship; nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from robustsnn.common.content import is_file_name, module_names, summary
from robustsnn.errors import InputError, unknown

#: Modules of this package that are not estimators by themselves.
MECHANISM = ("base", "catalogue", "eot", "make")


def estimator_names() -> list[str]:
    """The estimators that ship: the names of the files of this package.

    Examples:
        >>> "bptt" in estimator_names()
        True
    """
    return sorted(estimator_modules())


def estimator_modules() -> dict[str, str]:
    """The module of each estimator that ships, by its name."""
    found = module_names("estimators")
    return {name: stem for name, stem in found.items() if stem not in MECHANISM}


def estimator_summary(name: str) -> str:
    """The first line of an estimator's description, read without importing it."""
    return summary("estimators", estimator_modules()[name])


def check_estimator(text: str) -> None:
    """Refuse an estimator that does not exist, without loading one that does.

    Raises:
        InputError: There is no file, or no estimator of that name.
    """
    head = text.strip().partition(":")[0].strip()
    if is_file_name(head):
        if not Path(head).expanduser().is_file():
            raise InputError(f"no estimator file {head!r}: give the path of an existing .py file.")
    elif head not in estimator_names():
        raise unknown("gradient estimator", head, estimator_names())
