"""The grammar `NAME:field=value,...`, which attacks and estimators share."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from robustsnn.errors import InputError, unknown

#: The largest whole number that a field takes.
LARGEST = 2**31


def parse_fields(text: str, owner: str) -> dict[str, str]:
    """The fields of a text such as `steps=20,step_size=2/255`, as names and texts.

    >>> parse_fields("steps=20, step_size=2/255", "pgd")
    {'steps': '20', 'step_size': '2/255'}

    Args:
        text: The part of a specification after its name.
        owner: The name, for error messages.

    Raises:
        InputError: A part has no `=`, or a field is given twice.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        field, equals, value = (p.strip() for p in part.partition("="))
        if not equals or not field or not value:
            raise InputError(f"{owner}: {part.strip()!r} is not a setting: write field=value.")
        if field in found:
            raise InputError(f"{owner}: field {field!r} is given twice: drop one.")
        found[field] = value
    return found


def parse_value(text: str, hint: Any, what: str) -> Any:
    """A text as the type that a field declares.

    >>> parse_value("51/255", float, "epsilon"), parse_value("yes", bool, "warm")
    (0.2, True)

    Args:
        text: The text that the user wrote; a float may be a fraction such as `2/255`.
        hint: The type: `int`, `float`, `bool`, `str`, None, a `Literal`, or a union of those; in
            a union with `str` the text stays as it is.
        what: The name of the field in an error message.

    Raises:
        InputError: The text is not a value of that type.
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
        whole = int(text)
        if abs(whole) > LARGEST:
            raise ValueError
        return whole
    if hint is float:
        top, slash, bottom = text.partition("/")
        value = float(top) / float(bottom) if slash else float(top)
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError
        return value
    raise ValueError


def _wanted(hint: Any) -> str:
    """A type in the words of an error message."""
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(c) for c in typing.get_args(hint))
    names = {
        bool: "true or false",
        int: "a whole number below 2^31",
        float: "a number such as 0.01 or 2/255",
    }
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def build(kind: type[Any], name: str, texts: Mapping[str, str]) -> Any:
    """An object of a dataclass, its fields read from texts.

    Args:
        kind: The class; one that is not a dataclass has no fields to set.
        name: What messages call it.
        texts: The texts by field, from `parse_fields`.

    Raises:
        InputError: A field is unknown or missing, or a text is not a value of its type.

    Examples:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Window:
        ...     width: float = 0.5
        >>> build(Window, "window", {"width": "2/4"})
        Window(width=0.5)
    """
    declared: tuple[dataclasses.Field[Any], ...] = (
        dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    )
    fields = {f.name: f for f in declared if f.init}
    hints = typing.get_type_hints(kind) if texts else {}
    values = {}
    for field, text in texts.items():
        if not fields:
            raise InputError(f"{name} has no settings: drop {field!r}.")
        if field not in fields:
            raise unknown(f"field of {name}", field, fields)
        values[field] = parse_value(text, hints[field], f"{name}: {field}")
    for field, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and field not in values:
            raise InputError(f"{name} needs {field}: write {name}:{field}=VALUE.")
    try:
        return kind(**values)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{name} cannot be made ({type(error).__name__}: {error}): mend its file or its fields."
        ) from error
