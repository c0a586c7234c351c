"""Where content lies: the files that ship next to the mechanism, and those of a user's own.

What ships is found by listing `attacks`, `reports`, `zoo` and `estimators`; a file's name with
dashes for underscores is what users type. A user's own file is used by its path, and only where the
user has typed that path: loading it runs it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

from robustsnn.common.installed import installed, load
from robustsnn.common.users_code import USERS, reason_of, where_of
from robustsnn.errors import InputError, unknown


def folder(package: str) -> Path:
    """Where a package of `robustsnn` is installed.

    Args:
        package: Its name, such as `attacks`, `reports`, `zoo` or `estimators`.
    """
    return Path(str(files(f"robustsnn.{package}")))


def module_names(package: str, suffix: str = "") -> dict[str, str]:
    """The names that users type for the modules of a package, and the modules' own names.

    Args:
        package: Such as `attacks`.
        suffix: An ending of modules that their names leave out.

    Examples:
        >>> module_names("attacks")["sa-pgd"]
        'sa_pgd'
    """
    stems = [path.stem for path in sorted(folder(package).glob("*.py"))]
    return {
        stem.removesuffix(suffix).replace("_", "-"): stem
        for stem in stems
        if not stem.startswith("_")
    }


def summary(package: str, module: str) -> str:
    """The first line of a module's description, read without importing it."""
    source = (folder(package) / f"{module}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def object_of(package: str, module: str, name: str) -> Any:
    """What a module that ships defines under a name; None where it defines nothing."""
    return getattr(importlib.import_module(f"robustsnn.{package}.{module}"), name, None)


def object_named(
    name: str, package: str, modules: Mapping[str, str], attribute: str, what: str
) -> Any:
    """What the file of a name, or a user's own file, defines; None where ours defines nothing.

    Args:
        name: A name that ships, one that another installed package adds, or the path of a `.py`
            file, which is run for it.
        package: The package of what ships, such as `attacks`.
        modules: The modules of the names that ship.
        attribute: What the file has to define, such as `ATTACK`.
        what: What messages call it, such as `attack`.

    Raises:
        InputError: There is no such name or file, or the file fails or does not define it.
    """
    if is_file_name(name):
        return users_object(name, attribute, what.rpartition(" ")[2])
    if name in modules:
        return object_of(package, modules[name], attribute)
    if name in installed(package):
        return load(package, name)
    raise unknown(what, name, [*modules, *installed(package)])


def is_file_name(text: str) -> bool:
    """Whether a name is the path of a Python file.

    Examples:
        >>> is_file_name("pgd"), is_file_name("mine/pgd.py")
        (False, True)
    """
    return text.endswith(".py") or "/" in text


def files_in(spec: str) -> list[Path]:
    """The Python files that the specification of an attack or estimator names.

    Examples:
        >>> [str(path) for path in files_in("bptt:my/surrogate.py(width=0.5):cut=1")]
        ['my/surrogate.py']
    """
    parts = spec.replace("(", ":").replace(",", ":").split(":")
    named = [part.partition("=")[2] or part for part in parts]
    return [Path(part.strip()).expanduser() for part in named if part.strip().endswith(".py")]


def digest(path: Path) -> str:
    """The sha256 of a file's content.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(
            f"cannot read {str(path)!r} ({error.strerror}): give the path of an existing file."
        ) from None


def users_object(file: str, name: str, what: str) -> Any:
    """What a user's own file defines under a name; the file is run for it.

    Args:
        file: The path of a `.py` file.
        name: What it has to define, such as `ATTACK`.
        what: What it is called in messages, such as `attack`.

    Raises:
        InputError: There is no such file, it fails, or it does not define the name.
    """
    path = Path(file).expanduser()
    # As `files_in` finds them: a path that ends otherwise, such as `a.py/`, would not be listed.
    if not file.endswith(".py"):
        raise InputError(f"{what} file {file!r} is not a Python file: name a .py file.")
    if not path.is_file():
        raise InputError(f"no {what} file {file!r}: give the path of an existing .py file.")
    found = getattr(_loaded(path, what), name, None)
    if found is None:
        raise InputError(f"{path.name} defines no {what}: end it with a line {name} = YourClass.")
    return found


def _loaded(path: Path, what: str) -> ModuleType:
    resolved = path.resolve()
    for package in ("attacks", "estimators"):
        if resolved.parent == folder(package).resolve():
            # One of ours by its path: a second copy would be another class of the same name.
            return importlib.import_module(f"robustsnn.{package}.{path.stem}")
    key = hashlib.sha256(str(resolved).encode() + b"\0" + resolved.read_bytes()).hexdigest()[:16]
    name = f"{USERS}{what}_{key}"
    if name in sys.modules:
        return sys.modules[name]
    located = importlib.util.spec_from_file_location(name, resolved)
    assert located is not None and located.loader is not None
    module = importlib.util.module_from_spec(located)
    # Registered before it runs: dataclasses look their module up by name.
    sys.modules[name] = module
    try:
        located.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(
            f"{what} file {str(path)!r} does not load: {reason_of(error)} ({where_of(error)})."
        ) from error
    except BaseException:
        del sys.modules[name]
        raise
    return module
