"""The grammar of a model's name: `module:factory@weights:steps=8,decode=spikes-sum`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robustsnn.common.files import expanded
from robustsnn.common.spec import build, parse_fields
from robustsnn.errors import InputError
from robustsnn.models.shapes import Shape


@dataclass(frozen=True)
class FactoryName:
    """The parts of a name that names code.

    Args:
        factory: The factory, `module:attribute`.
        weights: The file of its weights, if the name has one.
        shape: How its time axis is read, if the name says so.
    """

    factory: str
    weights: Path | None = None
    shape: Shape | None = None


def is_factory(text: str) -> bool:
    """Whether a name names code, and not a model that ships or a folder.

    Examples:
        >>> is_factory("nets:build@w.pt"), is_factory("fashion-mnist/vgg5-snn")
        (True, False)
    """
    return ":" in text and not expanded(text).exists()


def parse_factory(text: str) -> FactoryName:
    """The parts of a name that names code.

    Args:
        text: `module:factory`, then `@` and a file of weights, then `:` and fields of a `Shape`;
            both may be left out.

    Raises:
        InputError: A part is missing or malformed, or a field is not known.

    Examples:
        >>> parsed = parse_factory("nets:build@w.pt:steps=8,decode=membrane-max")
        >>> parsed.factory, str(parsed.weights), parsed.shape.steps, parsed.shape.decode
        ('nets:build', 'w.pt', 8, 'membrane-max')
        >>> parse_factory("nets:build")
        FactoryName(factory='nets:build', weights=None, shape=None)
    """
    head, at, tail = text.partition("@")
    file, fields = "", ""
    if at:
        # A file whose own name has a colon and an equals sign is taken as it is.
        file, fields = (tail, "") if expanded(tail).is_file() else _split(tail)
        if not file:
            raise InputError(f"{text!r} names no file behind @: write module:factory@weights.pt.")
    elif head.count(":") > 1:
        head, _, fields = head.rpartition(":")
        if "=" not in fields:
            raise InputError(
                f"{fields!r} in {text!r} is not a setting: write "
                "module:factory:steps=8,decode=spikes-sum."
            )
    module, _, attribute = head.partition(":")
    if not module or not attribute or ":" in attribute:
        raise InputError(f"{text!r} is not a model: write module:factory, or add @weights.pt.")
    name = f"{module}:{attribute}"
    shape = build(Shape, name, parse_fields(fields, name)) if fields else None
    return FactoryName(name, expanded(file) if file else None, shape)


def _split(tail: str) -> tuple[str, str]:
    """A file and the fields behind it: `w.pt:steps=8` is `w.pt` and `steps=8`."""
    file, colon, fields = tail.rpartition(":")
    return (file, fields) if colon and "=" in fields else (tail, "")
