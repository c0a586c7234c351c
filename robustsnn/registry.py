"""Names to files to objects: the attacks, suites, models and renderers there are.

What ships is found by listing the installed `robustsnn.attacks`, `.zoo` and `.reports`; a file
with dashes for underscores is its name, and adding a file is all it takes. A user's own attack
file is loaded the same way, by its path. Nothing here imports torch by itself.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import json
import re
import sys
import types
import typing
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from robustsnn.errors import InputError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from robustsnn.adversary.threat import ThreatModel
    from robustsnn.adversary.victim import Victim
    from robustsnn.common.randomness import Rng

KINDS = ("none", "noise", "fixed-epsilon", "transfer", "minimum-norm")
_ADAPTER = "_adapter"


class Attack(Protocol):
    """Hyper-parameters are the fields of a frozen dataclass; all else is an argument.

    `kind` is one of `KINDS`. `steps`, `restarts`, `norms` (the norms it can work in) and
    `gradient_free` (it follows none, so records name no estimator) are read where an attack has
    them. A class may define `from_spec(text)` to read what follows its name.
    """

    kind: ClassVar[str]

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, shaped like the images, which it leaves untouched.

        Args:
            victim: The network under attack.
            images: `[batch, channel, height, width]`, pixel units within the threat's range.
            labels: True classes, int64 `[batch]`.
            threat: Norm, radius and range to stay in.
            rng: A generator per image.
        """


def folder(package: str) -> Path:
    """Where `attacks`, `zoo` or `reports` is installed."""
    return Path(str(files(f"robustsnn.{package}")))


# --- attacks ------------------------------------------------------------------------------------


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


def parse_fields(text: str, owner: str) -> dict[str, str]:
    """`steps=20,step_size=2/255` as names and texts.

    Raises:
        InputError: A part without `=`, or a field given twice.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        field, equals, value = (p.strip() for p in part.partition("="))
        if not equals or not field or not value:
            raise InputError(f"{owner}: {part.strip()!r} is no setting: write field=value.")
        if field in found:
            raise InputError(f"{owner}: field {field!r} is given twice: drop one.")
        found[field] = value
    return found


def parse_value(text: str, hint: Any, what: str) -> Any:
    """A text as the type that a field declares.

    Args:
        text: What the user wrote; a float may be a fraction such as `2/255`.
        hint: `int`, `float`, `bool`, `str`, None, a `Literal`, or a union of those; text as
            written wins in a union with `str`.
        what: Names the field in an error message.

    Raises:
        InputError: The text is no such value.
    """
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    if type(None) in options and text.lower() == "none":
        return None
    options = tuple(o for o in options if o is not type(None))
    if str in options:
        return text
    for option in options:
        try:
            return _as_type(text, option)
        except (ValueError, KeyError, ZeroDivisionError):
            continue
    raise InputError(f"{what} must be {' or '.join(_wanted(o) for o in options)}, not {text!r}.")


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _as_type(text: str, hint: Any) -> Any:
    if typing.get_origin(hint) is Literal:
        for choice in typing.get_args(hint):
            if str(choice) == text:
                return choice
        raise ValueError
    if hint is bool:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[
            text.lower()
        ]
    if hint is int:
        return int(text)
    if hint is float:
        top, slash, bottom = text.partition("/")
        value = float(top) / float(bottom) if slash else float(top)
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError
        return value
    raise ValueError


def _wanted(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(c) for c in typing.get_args(hint))
    names = {bool: "true or false", int: "a whole number", float: "a number such as 0.01 or 2/255"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


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


# --- suites, models, renderers ------------------------------------------------------------------


def suite_names() -> list[str]:
    """The suites that ship."""
    return sorted(p.stem for p in (folder("attacks") / "suites").glob("*.yaml"))


def suite_path(name: str) -> Path:
    """The YAML file of a suite that ships.

    Raises:
        InputError: There is none of that name.
    """
    if name not in suite_names():
        raise unknown("suite", name, suite_names())
    return folder("attacks") / "suites" / f"{name}.yaml"


def zoo_names() -> list[str]:
    """The models that ship, as `data/model`."""
    zoo = folder("zoo")
    return sorted(p.parent.relative_to(zoo).as_posix() for p in zoo.glob("*/*/model.json"))


def zoo_folder(name: str) -> Path:
    """The checkpoint folder of a model that ships.

    Raises:
        InputError: There is none of that name.
    """
    if name not in zoo_names():
        raise unknown("model", name, zoo_names())
    return folder("zoo") / name


def zoo_summary(name: str) -> dict[str, str]:
    """Architecture, kind, time steps and clean accuracy of a model that ships, as printed.

    The accuracy is the one on its card, empty where there is none.
    """
    place = zoo_folder(name)
    network = json.loads((place / "model.json").read_text(encoding="utf-8"))["network"]
    card = place / "card.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    stated = re.search(r"clean accuracy \| ([\d.]+ %)", text)
    return {
        "architecture": str(network["architecture"]),
        "kind": str(network["kind"]),
        "time_steps": str(network["time_steps"]),
        "accuracy": stated[1] if stated else "",
    }


def renderer_names() -> list[str]:
    """The renderers of reports that ship: file names with dashes."""
    return sorted(_renderer_modules())


def renderers() -> list[types.ModuleType]:
    """The module of each renderer, imported, in the order of their names."""
    return [
        importlib.import_module(f"robustsnn.reports.{stem}")
        for _, stem in sorted(_renderer_modules().items())
    ]


def _renderer_modules() -> dict[str, str]:
    stems = [p.stem for p in folder("reports").glob("*.py") if not p.stem.startswith("_")]
    return {stem.replace("_", "-"): stem for stem in stems}
