"""The names of the estimators that ship; nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from robustsnn.common.content import is_file_name, module_names, summary
from robustsnn.common.installed import installed, package_of
from robustsnn.errors import InputError, unknown

#: The modules of this package that are not estimators that a user can name.
MECHANISM = ("base", "catalogue", "eot", "make")


def estimator_names() -> list[str]:
    """The estimators that ship, which are the files here, and those that other packages add.

    Examples:
        >>> "bptt" in estimator_names()
        True
    """
    return sorted({*estimator_modules(), *installed("estimators")})


def estimator_modules() -> dict[str, str]:
    """The module of each estimator that ships, by its name."""
    found = module_names("estimators")
    return {name: stem for name, stem in found.items() if stem not in MECHANISM}


def estimator_summary(name: str) -> str:
    """The first line of an estimator's description, read without importing the estimator.

    Examples:
        >>> estimator_summary("spsa").partition(":")[0]
        'SPSA'
    """
    modules = estimator_modules()
    if name not in modules:
        return f"of the package {package_of('estimators', name)}"
    return summary("estimators", modules[name])


def check_estimator(text: str) -> None:
    """Refuse an estimator that does not exist, without loading an estimator that does.

    Args:
        text: The specification of the estimator.

    Raises:
        InputError: There is no such file, or no estimator of that name.

    Examples:
        >>> check_estimator("bptt:arctan")
    """
    head = text.strip().partition(":")[0].strip()
    if is_file_name(head):
        if not Path(head).expanduser().is_file():
            raise InputError(f"no estimator file {head!r}: give the path of an existing .py file.")
    elif head not in estimator_names():
        raise unknown("gradient estimator", head, estimator_names())
