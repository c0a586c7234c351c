"""Sizes of perturbations as papers write them: `8/255`, `0.031`. This needs no torch."""

from __future__ import annotations

import math
import re

from robustsnn.errors import InputError


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
