from typing import Literal

import pytest

from robustsnn.common.spec import parse_value
from robustsnn.errors import InputError


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("3", int, 3),
        ("2/255", float, 2 / 255),
        ("yes", bool, True),
        ("0", bool, False),
        ("abc", str, "abc"),
        ("none", int | None, None),
        ("4", int | None, 4),
        ("2/255", str | float | None, "2/255"),
        ("last", Literal["best", "last"], "last"),
        ("2", Literal[1, 2], 2),
    ],
)
def test_values(text, hint, value):
    found = parse_value(text, hint, "x")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [("1.5", int), ("nan", float), ("1/0", float), ("2", bool), ("c", Literal["a"])],
)
def test_bad_values(text, hint):
    with pytest.raises(InputError, match="x must be"):
        parse_value(text, hint, "x")
