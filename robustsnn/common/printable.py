"""Text of other people made harmless: control characters become visible, formulas become text.

A name of a model, a class or an attack can hold anything, and so can the files of a run folder that
somebody sends. What a terminal, a drawing or a spreadsheet would obey must not reach it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_UNKNOWN = "\ufffd"
#: What stands for a character that is obeyed and not shown: the sign that Unicode has for it.
_SIGNS: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20)},
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), _UNKNOWN),
    # Marks, embeddings, overrides and isolates change the direction in which a line is read.
    **dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), ""),
    # Line separators, the mark at the start of a file, and characters that are none.
    **dict.fromkeys((0x2028, 0x2029), " "),
    0xFEFF: "",
    **dict.fromkeys((*range(0xD800, 0xE000), 0xFFFE, 0xFFFF), _UNKNOWN),
}
#: The first characters by which a spreadsheet takes a cell for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    r"""The text with a visible sign for each control character, without marks of direction.

    Examples:
        >>> printable("a\x1b[31mb\n")
        'a␛[31mb␊'
    """
    return text if text.isascii() and text.isprintable() else text.translate(_SIGNS)


def all_printable(value: Any) -> Any:
    r"""A value of JSON in which every text is printable, names of fields included.

    Examples:
        >>> all_printable({"a\x07": ["b\r", 1]})
        {'a␇': ['b␍', 1]}
    """
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(key)): all_printable(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(all_printable(held) for held in value)
    return value


def inert(text: str) -> str:
    """The text of a cell that no spreadsheet takes for a formula; `from_cell` is the way back.

    Examples:
        >>> inert("=1+1"), inert("vgg5")
        ("'=1+1", 'vgg5')
    """
    return f"'{text}" if text.lstrip("'").startswith(_FORMULA) else text


def from_cell(text: str) -> str:
    """The text that a cell stands for.

    Examples:
        >>> from_cell(inert("=1+1")), from_cell("'quoted'")
        ('=1+1', "'quoted'")
    """
    quoted = text.startswith("'") and text.lstrip("'").startswith(_FORMULA)
    return text[1:] if quoted else text


def inert_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """A table in whose texts no spreadsheet finds a formula; numbers stay as they are."""
    texts = frame.select_dtypes(exclude=["number", "bool"])

    def cell(value: Any) -> Any:
        return inert(value) if isinstance(value, str) else value

    return frame.assign(**{str(name): texts[name].map(cell) for name in texts.columns})


def csv_text(frame: pd.DataFrame) -> str:
    """A table as the text of a CSV file for spreadsheets.

    Args:
        frame: The table, with texts that are printable already.
    """
    return str(inert_cells(frame).to_csv(index=False, lineterminator="\n"))
