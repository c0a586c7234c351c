"""Attacks by name or file: what ships in `attacks/`, and a user's own.

A file with dashes for underscores is its name, and adding a file is all it takes. A user's own file
is loaded the same way, by its path. Nothing here imports torch by itself.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustsnn.adversary.contract import Attack
from robustsnn.common.content import folder
from robustsnn.common.kinds import KINDS
from robustsnn.common.spec import parse_fields, parse_value
from robustsnn.errors import InputError, unknown

_ADAPTER = "_adapter"


def attack_names() -> list[str]:
    """The attacks that ship: file names with dashes; `x_adapter.py` is `x`."""
    return sorted(_attack_modules())


def attack_summary(name: str) -> str:
    """The first line of an attack's description, read without importing it."""
    module = _attack_modules()[name]
    source = (folder("attacks") / f"{module}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def attack_class(name: str) -> type[Attack]:
    """The class of the attack of that name.

    Raises:
        InputError: There is none.
    """
    modules = _attack_modules()
    if name not in modules:
        raise unknown("attack", name, modules)
    return _attack_of(importlib.import_module(f"robustsnn.attacks.{modules[name]}"), name)


def load_attack(spec: str) -> Attack:
    """The attack that a specification describes.

    Args:
        spec: A name or the path of a `.py` file, then fields: `pgd`,
            `pgd:steps=20,step_size=2/255`, `torchattacks:MIFGSM:steps=5`,
            `transfer:pgd:steps=7`, `my/attack.py:strength=3`.

    Raises:
        InputError: No such attack, file or field, or a value of the wrong type or range.
    """
    head, _, rest = spec.strip().partition(":")
    head, rest = head.strip(), rest.strip()
    if head.endswith(".py") or "/" in head:
        path = Path(head).expanduser()
        name, kind = path.name, _user_attack(path)
    else:
        name, kind = head, attack_class(head)
    from_spec = getattr(kind, "from_spec", None)
    if from_spec is not None:
        made: Attack = from_spec(rest)
        return made
    return _build(kind, name, parse_fields(rest, name))


def _build(kind: type[Attack], name: str, texts: Mapping[str, str]) -> Attack:
    # A user's class need not be a dataclass; then there is nothing to set.
    declared: tuple[dataclasses.Field[Any], ...] = (
        dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    )
    fields = {f.name: f for f in declared if f.init}
    hints = typing.get_type_hints(kind)
    values = {}
    for field, text in texts.items():
        if field not in fields:
            raise unknown(f"field of {name}", field, fields)
        values[field] = parse_value(text, hints[field], f"{name}: {field}")
    for field, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and field not in values:
            raise InputError(f"{name} needs {field}: write {name}:{field}=VALUE.")
    return kind(**values)


def _attack_modules() -> dict[str, str]:
    stems = [p.stem for p in folder("attacks").glob("*.py") if not p.stem.startswith("_")]
    return {stem.removesuffix(_ADAPTER).replace("_", "-"): stem for stem in stems}


def _attack_of(module: types.ModuleType, name: str) -> type[Attack]:
    kind = getattr(module, "ATTACK", None)
    if not isinstance(kind, type):
        raise InputError(f"{name} defines no attack: end it with a line ATTACK = YourClass.")
    if "__call__" not in dir(kind):
        raise InputError(f"{name}: {kind.__name__} has no __call__: see docs on adding an attack.")
    if getattr(kind, "kind", None) not in KINDS:
        raise InputError(f"{name}: {kind.__name__}.kind must be one of {', '.join(KINDS)}.")
    return kind


def _user_attack(path: Path) -> type[Attack]:
    if path.suffix != ".py":
        raise InputError(f"attack file {str(path)!r} is no Python file: name a .py file.")
    if not path.is_file():
        raise InputError(f"no attack file {str(path)!r}: give the path of an existing .py file.")
    resolved = path.resolve()
    if resolved.parent == folder("attacks").resolve():
        # One of ours by its path: a second copy would be another class of the same name.
        return _attack_of(importlib.import_module(f"robustsnn.attacks.{path.stem}"), path.name)
    key = hashlib.sha256(str(resolved).encode() + b"\0" + resolved.read_bytes()).hexdigest()[:16]
    module_name = f"robustsnn_user_attack_{key}"
    module = sys.modules.get(module_name)
    if module is None:
        located = importlib.util.spec_from_file_location(module_name, resolved)
        assert located is not None and located.loader is not None
        module = importlib.util.module_from_spec(located)
        # Registered before it runs: dataclasses look their module up by name.
        sys.modules[module_name] = module
        try:
            located.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise InputError(
                f"attack file {str(path)!r} does not load: {type(error).__name__}: {error}."
            ) from error
        except BaseException:
            del sys.modules[module_name]
            raise
    return _attack_of(module, path.name)
