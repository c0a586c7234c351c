"""The way numbers and names are printed in every table, figure and sentence."""

from __future__ import annotations

import codecs
import math
import re

#: A space at which no line breaks, for a number and its unit.
NBSP = "\u00a0"

_NORMS = {"Linf": "L∞", "L2": "L2", "L1": "L1", "L0": "L0"}
_ACRONYMS = frozenset(
    "aa apgd assg bb bim bptr bptt ce cw difgsm dlr eot fab fgsm fgm fmn hart jsma mifgsm mim"
    " nifgsm pgd rfgsm rga sa sga sinifgsm spsa tifgsm upgd vmifgsm vnifgsm".split()
)
_WORDS = {
    "linf": "L∞",
    "l2": "L2",
    "ann": "ANN",
    "snn": "SNN",
    "deepfool": "DeepFool",
    "hopskipjump": "HopSkipJump",
    "rays": "RayS",
}
_DATA = {
    "fashion-mnist": "Fashion-MNIST",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn": "SVHN",
}


#: What stands for the characters of our texts in an encoding that lacks them.
_PLAIN = {
    **{"∞": "inf", "−": "-", "–": "-", "—": "-", "±": "+/-", "×": "x", "µ": "u", "μ": "u"},
    **{NBSP: " ", "─": "-", "…": "...", "≤": "<=", "≥": ">=", "²": "2", "√": "sqrt", "·": "."},
    **{"’": "'", "‘": "'", "“": '"', "”": '"', "→": "->", "⌀": "mean "},
}
#: The name of the handler of `codecs` that writes what an encoding lacks in its own characters.
READABLE = "robustsnn-readable"


def _readable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in missing), error.end


codecs.register_error(READABLE, _readable)


def readable(text: str, encoding: str) -> str:
    """A text in the characters that an encoding has.

    Args:
        text: The text.
        encoding: The name of the encoding, such as `ascii`.

    Examples:
        >>> readable("L∞ ±0.1", "ascii"), readable("L∞ ±0.1", "latin-1")
        ('Linf +/-0.1', 'Linf ±0.1')
    """
    try:
        return text.encode(encoding, READABLE).decode(encoding)
    except LookupError:
        return text


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as a percentage, "3.2 %"; an en dash for NaN."""
    return "–" if math.isnan(fraction) else f"{100 * fraction:.{digits}f}{NBSP}%"


def bounds(low: float, high: float) -> str:
    """An interval of fractions in per cent, "[1.9, 5.1]"."""
    return f"[{100 * low:.1f},{NBSP}{100 * high:.1f}]"


def points(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign: "+3.0", "−0.4"."""
    rounded = round(100 * difference, 1)
    if rounded == 0:
        return "±0.0"
    return f"{'+' if rounded > 0 else '−'}{abs(rounded):.1f}"


def p_value(p: float) -> str:
    """A p-value with its relation, "p = 0.031" or "p < 0.001"; an en dash for NaN."""
    if math.isnan(p):
        return "–"
    if p < 0.001:
        return "p < 0.001"
    return "p = 1" if p == 1 else f"p = {p:.3f}" if p < 0.9995 else "p > 0.999"


def norm(name: str) -> str:
    """The name of a norm as it is printed, "L∞" for "Linf"."""
    return _NORMS.get(name, name)


def threat(norm_name: str, epsilon: str) -> str:
    """A norm and a size as they are printed, "L∞ 8/255"; empty if nothing was perturbed."""
    return f"{norm(norm_name)}{NBSP}{epsilon}" if epsilon and norm_name else epsilon


def attack(slug: str) -> str:
    """The name of an attack as it is printed: "BB PGD-7" for "bb-pgd-7"."""
    words: list[str] = []
    for word in slug.split("-"):
        if word.isdigit() and words:
            words[-1] += f"-{word}"
        elif word == "pgd" and words == ["SA"]:
            words[-1] = "SA-PGD"
        elif word in _WORDS:
            words.append(_WORDS[word])
        else:
            first = word.capitalize() if not words else word
            words.append(word.upper() if word in _ACRONYMS else first)
    return " ".join(words)


def data(name: str) -> str:
    """The name of a data set as it is printed: "Fashion-MNIST" for "fashion-mnist"."""
    return _DATA.get(name, name)


def energy(microjoule: float) -> str:
    """An energy per image in microjoule to three digits; an en dash for NaN."""
    if math.isnan(microjoule):
        return "–"
    digits = 0 if microjoule == 0 else max(0, 2 - math.floor(math.log10(abs(microjoule))))
    return f"{microjoule:.{digits}f}"


def times(factor: float) -> str:
    """A factor to three digits or more: "1.00×", "33.3×"; an en dash for NaN.

    >>> times(2.5), times(33.333), times(1234.5), times(math.inf)
    ('2.50×', '33.3×', '1,234×', '∞×')
    """
    if math.isnan(factor):
        return "–"
    if math.isinf(factor):
        return "∞×"
    digits = 2 if factor < 10 else 1 if factor < 100 else 0
    return f"{factor:,.{digits}f}×"


def millions(number: float) -> str:
    """A number in millions to three digits, without the word; an en dash for NaN.

    Examples:
        >>> millions(1_557_533.0)
        '1.56'
    """
    return energy(number / 1e6)


def count(number: int, one: str, many: str | None = None) -> str:
    """A count with its noun in the singular or plural: "1 image", "2,000 images"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listing(items: list[str]) -> str:
    """The items as a list in a sentence: "a", "a and b", "a, b and c"."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def slug(text: str) -> str:
    """A text in lower case, with dashes between words.

    Examples:
        >>> slug("BB PGD-7")
        'bb-pgd-7'
    """
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
