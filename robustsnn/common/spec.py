"""The one grammar `NAME:field=value,...`, for attacks and estimators alike."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal

from robustsnn.errors import InputError


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
