"""The names that the code of a network reads in a forward pass, found without running it.

A module may also hold what no pass reads, such as the folder of its logs or the time at which it
was made. That must not make it another network.
"""

from __future__ import annotations

import dis
import types
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from torch import nn

#: Where a pass begins: what Python and torch call by these names.
_ENTRIES = ("forward", "__call__", "__getattr__", "__getattribute__", "right_inverse")
#: Names by which code reaches every attribute.
_REACH_ALL = ("__dict__", "vars", "eval", "exec")
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "LOAD_SUPER_METHOD")


def names_read(
    modules: Iterable[nn.Module], is_users: Callable[[str | None], bool]
) -> frozenset[str] | None:
    """The names of the attributes that code of the user's own reads; None if it may read any.

    Args:
        modules: The modules of the network.
        is_users: Whether a module of that name is the user's own.
    """
    classes: dict[type, None] = {}
    waiting: list[types.CodeType] = []
    for module in modules:
        classes |= {one: None for one in type(module).__mro__ if is_users(one.__module__)}
        for value in list(vars(module).values()):
            for one in value.values() if isinstance(value, dict) else (value,):
                waiting += _codes(one)
                if not isinstance(one, nn.Module) and is_users(type(one).__module__):
                    # An object that does a part of the work may read the module that holds it.
                    waiting += [c for held in vars(type(one)).values() for c in _codes(held)]
    names: set[str] = set(_ENTRIES)
    scanned: set[types.CodeType] = set()
    while True:
        waiting += [
            code
            for one in classes
            for name, held in vars(one).items()
            if name in names
            for code in _codes(held)
        ]
        waiting = [code for code in waiting if code not in scanned]
        if not waiting:
            break
        code = waiting.pop()
        scanned.add(code)
        names |= names_in(code)
    return None if names & set(_REACH_ALL) else frozenset(names)


def names_in(code: types.CodeType) -> set[str]:
    """The names of attributes that code reads, and its texts, which may be names of some.

    Examples:
        >>> sorted(names_in((lambda self: self.scale * getattr(self, "bias")).__code__))
        ['bias', 'getattr', 'scale']
    """
    found = {str(s.argval) for s in dis.get_instructions(code) if s.opname in _ATTRIBUTES}
    found |= globals_named(code)
    for one in code.co_consts:
        if isinstance(one, str):
            found.add(one)
        elif isinstance(one, types.CodeType):
            found |= names_in(one)
    return found


def globals_named(code: types.CodeType) -> set[str]:
    """The names of the globals that code reads.

    Examples:
        >>> sorted(globals_named((lambda x: abs(x.width) + LIMIT).__code__))
        ['LIMIT', 'abs']
    """
    steps = dis.get_instructions(code)
    found = {str(s.argval) for s in steps if s.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            found |= globals_named(one)
    return found


def _codes(value: Any) -> Iterator[types.CodeType]:
    """The code that a function or something around it runs."""
    if isinstance(value, property):
        for one in (value.fget, value.fset):
            yield from _codes(one)
    elif isinstance(value, partial):
        yield from _codes(value.func)
    else:
        function = getattr(value, "__wrapped__", None) or getattr(value, "__func__", value)
        code = getattr(function, "__code__", None)
        if isinstance(code, types.CodeType):
            yield code
        if function is not value and isinstance(value, types.FunctionType):
            yield value.__code__
