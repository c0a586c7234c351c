"""The forms in which Python programs give options, as the one form that a request has; no torch.

A size may be a number, a text or several of them, a norm 2 or inf, an attack an object, a path a
text. What cannot be meant is refused by its name and type.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from robustsnn.common.files import expanded
from robustsnn.errors import InputError
from robustsnn.evaluation.options import Named

#: What is meant by each norm, without case, dashes and underscores.
_NORMS = {"inf": "Linf", "linf": "Linf", "infinity": "Linf", "∞": "Linf", "l∞": "Linf"}
_NORMS |= {"2": "L2", "2.0": "L2", "l2": "L2"}
#: A float is taken for a number of 255ths if it lies that close to one, in 255ths.
_NEAR = 1e-5
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
        raise InputError(f"{name} must be a path, not {_said(value)}.")
    return expanded(value)


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
    if hasattr(value, "tolist"):  # a scalar or array of NumPy or torch
        narrow = "32" in str(value.dtype) or "16" in str(value.dtype)
        value = value.tolist()
        if narrow and not isinstance(value, list):
            return _size(value, digits=7)
    if isinstance(value, list | tuple):
        if not value:
            raise InputError("epsilon is empty: give a size such as 8/255, or leave it out.")
        parts = [sizes(one) if one is not None else _size(one) for one in value]
        return ",".join(str(part) for part in parts)
    return _size(value)


def _size(value: Any, digits: int | None = None) -> str:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(
            f"epsilon must be a number or a text such as 8/255, or several of them, not "
            f"{_said(value)}."
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
        raise InputError(f"norm must be 2 or inf, or Linf or L2 as a text, not {_said(value)}.")
    text = f"{float(value):g}" if isinstance(value, numbers.Real) else value.strip()
    return _NORMS.get(text.lower().replace("_", "").replace("-", ""), text)


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
            f"not {_said(value)}."
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
        found = tuple(
            named(*one) if isinstance(one, tuple) and len(one) == 2 else model(one) for one in value
        )
    names = [one.name for one in found if isinstance(one, Named)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two models are called {name!r}: give each a name of its own.")
    return found


def named(name: Any, value: Any) -> Named:
    """A model under a name.

    Raises:
        InputError: The name is not a text, or the model has a type that none has.
    """
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"the name of a model must be a text, not {name!r}.")
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
    raise InputError(f"a model cannot be {_said(value)}: {remedy}.")


def is_module(value: Any) -> bool:
    """Whether something is a network in memory; whoever has one has imported torch."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _said(value: Any) -> str:
    """A value in a message: a class or function by its name, short values as they are."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    shown = repr(value)
    kind = type(value).__name__
    return f"{shown} ({kind})" if len(shown) <= 40 and "\n" not in shown else f"a {kind}"
