"""Sizes of perturbations as papers write them: `8/255`, `0.031`. This needs no torch."""

from __future__ import annotations

import math

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
