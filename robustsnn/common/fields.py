"""What is said of a field that a file must not have, with the field that was probably meant."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails


def first_of(error: ValidationError) -> ErrorDetails:
    """What a message should be about: an unknown field, which explains one that is missing."""
    every = error.errors()
    return next((one for one in every if one["type"] == "extra_forbidden"), every[0])


def said_of(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing that is wrong with a document, in words, without the place.

    Args:
        error: What pydantic says of the document.
        model: The model that it was checked against.

    Examples:
        >>> class Attack(BaseModel, extra="forbid"):
        ...     epsilon: str = "8/255"
        >>> try:
        ...     Attack.model_validate({"epslion": "2/255"})
        ... except ValidationError as error:
        ...     said_of(error, Attack)
        "no such field. Did you mean 'epsilon'? Known: epsilon"
    """
    first = first_of(error)
    if first["type"] != "extra_forbidden":
        return str(first["msg"]).removeprefix("Value error, ").rstrip(".")
    known = _fields_at(model, first["loc"][:-1])
    near = difflib.get_close_matches(str(first["loc"][-1]), known, n=2, cutoff=0.6)
    hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    return f"no such field.{hint} Known: {', '.join(known)}"


def _fields_at(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """The fields of the model at a place below another."""
    for part in place:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        inner = _model_in(field.annotation)
        if inner is not None:
            model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation such as `tuple[Entry, ...] | None` names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(argument) for argument in typing.get_args(annotation))
    return next((one for one in found if one is not None), None)
