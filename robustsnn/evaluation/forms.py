"""The forms in which Python programs give options, as the one form that a request has; no torch.

A size may be a number, a text or several of them, a norm 2 or inf, an attack an object, a path a
text. What cannot be meant is refused by its name and type.
"""

from __future__ import annotations

import dataclasses
import operator
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from robustsnn.common.epsilon import norm as norm
from robustsnn.common.epsilon import said
from robustsnn.common.epsilon import sizes as sizes
from robustsnn.common.files import expanded
from robustsnn.errors import InputError
from robustsnn.evaluation.options import Named

_MODELS = "a name, a checkpoint folder, python.module:factory or a torch.nn.Module"


def whole(name: str, value: Any) -> int | None:
    """A whole number, such as one of NumPy or a tensor of one element; None stays None.

    Raises:
        InputError: The value is not a whole number.
    """
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be a whole number, not {value!r}.") from None


def switch(name: str, value: Any) -> bool:
    """True or False, such as a bool of NumPy.

    Raises:
        InputError: The value is something else.
    """
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise InputError(f"{name} must be True or False, not {value!r}.")


def path(name: str, value: Any) -> Path | None:
    """A path with `~` expanded; None stays None.

    Raises:
        InputError: The value is neither a path nor a text.
    """
    if value is None:
        return None
    if not isinstance(value, str | Path):
        raise InputError(f"{name} must be a path, not {said(value)}.")
    return expanded(value)


def attacks(value: Any) -> tuple[str, ...]:
    """The specifications of attacks: of a text, a path or an attack, or of several of these.

    Raises:
        InputError: One is something else, or an attack that lies in no file.
    """
    if value is None:
        return ()
    if isinstance(value, str | Path) or not isinstance(value, Iterable):
        return (_attack(value),)
    return tuple(map(_attack, value))


def _attack(value: Any) -> str:
    if isinstance(value, str | Path):
        return str(value)
    kind = value if isinstance(value, type) else type(value)
    if not (hasattr(kind, "kind") and callable(value)):
        raise InputError(
            f"attack must be a name such as pgd:steps=20, the path of a .py file, or an attack, "
            f"not {said(value)}."
        )
    fields = (
        ()
        if isinstance(value, type) or not dataclasses.is_dataclass(value)
        else (dataclasses.fields(value))
    )
    changed = [
        f"{field.name}={getattr(value, field.name)}"
        for field in fields
        if field.init and getattr(value, field.name) != field.default
    ]
    return ":".join([_home(kind), ",".join(changed)]).rstrip(":")


def _home(kind: type) -> str:
    """The name or the file by which the class of an attack is found again."""
    module = sys.modules.get(kind.__module__)
    if getattr(module, "ATTACK", None) is kind:
        if kind.__module__.startswith("robustsnn.attacks."):
            return str(kind.__module__).rpartition(".")[2].replace("_", "-")
        file = getattr(module, "__file__", None)
        if file:
            return str(file)
    raise InputError(
        f"the attack {kind.__name__} lies in no file that ends with ATTACK = {kind.__name__}, so "
        "nobody could run it again: put it into a .py file of its own and give its path."
    )


def models(value: Any) -> tuple[Any, ...]:
    """The models of a request: of one, of several in a list, or of a dict of names to models.

    Raises:
        InputError: A model has a type that none has, or two have one name.

    Examples:
        >>> models({"ours": "fashion-mnist/vgg5-snn"})
        (Named(name='ours', model='fashion-mnist/vgg5-snn'),)
    """
    if isinstance(value, Mapping):
        found = tuple(named(name, one) for name, one in value.items())
    elif isinstance(value, str | Path) or is_module(value) or not isinstance(value, Iterable):
        found = (model(value),)
    else:
        found = tuple(named(*one) if _is_named(one) else model(one) for one in value)
    names = [one.name for one in found if isinstance(one, Named)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two models are called {name!r}: give each a name of its own.")
    return found


def _is_named(one: Any) -> bool:
    return isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str)


def called(name: str, value: Any) -> Any:
    """A function; None stays None.

    Raises:
        InputError: The value cannot be called.
    """
    if value is not None and not callable(value):
        raise InputError(f"{name} must be a function, not {said(value)}.")
    return value


def named(name: Any, value: Any) -> Named:
    """A model under a name.

    Raises:
        InputError: The name is not a text, or the model has a type that none has.
    """
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"the name of a model must be a text, not {said(name)}.")
    return Named(name, model(value))


def model(value: Any) -> Any:
    """A model as it is, a path with `~` expanded.

    Raises:
        InputError: The value has a type that no model has.
    """
    if isinstance(value, str | Path):
        return str(expanded(value)) if isinstance(value, str) else expanded(value)
    if isinstance(value, Named) or is_module(value) or hasattr(value, "identity"):
        return value
    remedy = f"give {_MODELS}"
    if isinstance(value, type):
        remedy = f"make an object of it, such as {value.__name__}()"
    elif isinstance(value, Mapping):
        remedy = "load it into its network first (network.load_state_dict(...))"
    elif isinstance(value, Callable):  # type: ignore[arg-type]
        remedy = "give a torch.nn.Module whose forward calls it"
    raise InputError(f"a model cannot be {said(value)}: {remedy}.")


def is_module(value: Any) -> bool:
    """Whether something is a network in memory; whoever has one has imported torch."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)
