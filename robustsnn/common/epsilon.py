"""Sizes and norms as papers and programs write them: `8/255`, 0.031, 2. This needs no torch."""

from __future__ import annotations

import math
import numbers
import re
from typing import Any

from robustsnn.errors import InputError

#: What is meant by each norm, without case, dashes and underscores.
_NORMS = {"inf": "Linf", "linf": "Linf", "infinity": "Linf", "∞": "Linf", "l∞": "Linf"}
_NORMS |= {"2": "L2", "2.0": "L2", "l2": "L2"}
#: A float is taken for a number of 255ths if it lies that close to one, in 255ths.
_NEAR = 1e-5


def parse_epsilon(text: str, what: str = "epsilon") -> float:
    """The number that `8/255`, `0.031` or `0` stands for, in pixel units of [0, 1].

    >>> parse_epsilon("51/255")
    0.2

    Args:
        text: A decimal number, or a fraction of two.
        what: The name of the number in the error message.

    Raises:
        InputError: The text is not a number, divides by zero, is negative, or is not finite.
    """
    top, slash, bottom = str(text).strip().partition("/")
    remedy = "write a number such as 8/255 or 0.031."
    try:
        value = float(top) / float(bottom) if slash else float(top)
    except ZeroDivisionError:
        raise InputError(f"{what} {text!r} divides by zero: {remedy}") from None
    except ValueError:
        raise InputError(f"{what} {text!r} is not a number: {remedy}") from None
    if not math.isfinite(value):
        raise InputError(f"{what} {text!r} is not finite: {remedy}")
    if value < 0:
        raise InputError(f"{what} {text!r} is negative: {remedy}")
    return abs(value)


#: A size of L2 that grows with the number d of pixel values.
_PER_VALUE = re.compile(r"\s*(.+?)\s*\*\s*sqrt\(d\)\s*")


def resolve_epsilon(text: str, values: int) -> str:
    """The epsilon as it was written, except that `0.031*sqrt(d)` becomes a number of 4 digits.

    Examples:
        >>> resolve_epsilon("8/255", 784), resolve_epsilon("0.05*sqrt(d)", 784)
        ('8/255', '1.4')
    """
    match = _PER_VALUE.fullmatch(text)
    if match is None:
        return text.strip()
    return f"{parse_epsilon(match[1]) * math.sqrt(values):.4g}"


def size_of(text: str) -> float:
    """The number before `*sqrt(d)`, or the whole of it; sizes are told apart by it.

    Raises:
        InputError: The text is not a size.
    """
    match = _PER_VALUE.fullmatch(text)
    return parse_epsilon(text) if match is None else parse_epsilon(match[1])


def sizes(value: Any) -> str | None:
    """The sizes that an epsilon stands for, as a text with commas; None stays None.

    Args:
        value: A number, a text, or several of these in a list, a tuple or an array.

    Raises:
        InputError: The value has another type.

    Examples:
        >>> sizes(8 / 255), sizes([0.031, "4/255"]), sizes("2/255, 4/255")
        ('8/255', '0.031,4/255', '2/255, 4/255')
    """
    if value is None or isinstance(value, str):
        return value
    digits = None
    if hasattr(value, "tolist"):  # a scalar or array of NumPy or torch
        narrow = "float32" in str(value.dtype) or "float16" in str(value.dtype)
        digits = 7 if narrow else None
        value = value.tolist()
    if isinstance(value, list | tuple):
        if not value:
            raise InputError("epsilon is empty: give a size such as 8/255, or leave it out.")
        return ",".join(_size(one, digits) for one in value)
    return _size(value, digits)


def _size(value: Any, digits: int | None = None) -> str:
    if isinstance(value, str):
        return value
    if hasattr(value, "tolist"):
        return str(sizes(value))
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(
            f"epsilon must be a number or a text such as 8/255, or several of them, not "
            f"{said(value)}."
        )
    if isinstance(value, numbers.Rational):
        return str(value)
    number = float(value)
    short = repr(number) if digits is None else f"{number:.{digits}g}"
    levels = number * 255
    if math.isfinite(levels) and len(short) > 8 and abs(levels - round(levels)) < _NEAR:
        return f"{round(levels)}/255"
    return short


def norm(value: Any) -> str | None:
    """The norm as records name it: `Linf` for inf, `L2` for 2; other texts stay as they are.

    Raises:
        InputError: The value is neither a number nor a text.

    Examples:
        >>> norm(2), norm(float("inf")), norm("l_inf"), norm("L2")
        ('L2', 'Linf', 'Linf', 'L2')
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real | str):
        raise InputError(f"norm must be 2 or inf, or Linf or L2 as a text, not {said(value)}.")
    text = f"{float(value):g}" if isinstance(value, numbers.Real) else value.strip()
    return _NORMS.get(text.lower().replace("_", "").replace("-", ""), text)


def said(value: Any) -> str:
    """A value in a message: a class or function by its name, short values as they are."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    shown = repr(value)
    kind = type(value).__name__
    return f"{shown} ({kind})" if len(shown) <= 40 and "\n" not in shown else f"a {kind}"
