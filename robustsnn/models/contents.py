"""A digest of all that the code of a network may read: its values, its functions, its classes.

A state dict holds the weights and little else. The rest decides a forward pass and its gradient
too: numbers, tensors that are no buffers, hooks, methods that were replaced, what a function closes
over, its defaults, and the globals of the user's own files that it names. Of installed packages
only the names of functions and classes count, since their versions stand in the manifest.
"""

from __future__ import annotations

import enum
import hashlib
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustsnn.common.users_code import is_installed
from robustsnn.models.names_read import globals_named, names_in, names_read

#: The hooks that decide what a module computes, forward or backward.
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
#: What torch keeps in every module; the state dict or the walk over modules has what counts of it.
_OF_TORCH = frozenset(vars(nn.Module())) - {"training", *_HOOKS}
#: What our own modules hold besides what they compute by.
_OF_OURS = ("reach", "_made", "recompute", "robustsnn_at_once")
#: What a class holds that says nothing of what it does.
_OF_CLASSES = (
    *("__doc__", "__module__", "__dict__", "__weakref__", "__annotations__", "__qualname__"),
    *("__firstlineno__", "__static_attributes__", "__annotate__", "__annotations_cache__"),
    *("__abstractmethods__", "_abc_impl", "__parameters__", "__orig_bases__", "__match_args__"),
)
#: Values that are what their text says.
_PLAIN = (
    *(int, float, complex, str, bytes, bool, type(None), range, slice, type(...)),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
#: Packages of Python whose objects hold what differs between two processes.
_PASSING = ("logging", "threading", "_thread", "queue", "io", "_io", "multiprocessing", "weakref")
#: How many values are looked at; a network that leads to more of them leads to its training.
_MOST = 200_000

Contents = dict[str, str]
"""A digest for each attribute of each module, by the names of both."""


def contents(network: nn.Module) -> Contents:
    """A digest for each attribute of each module of a network, and for the class of each.

    Args:
        network: The network, which is left as it is.

    Examples:
        >>> layer = nn.LeakyReLU(0.1)
        >>> before = contents(layer)
        >>> layer.negative_slope = 0.2
        >>> [name for name, digest in contents(layer).items() if before[name] != digest]
        ['.negative_slope']
    """
    walk = _Walk(network)
    found: Contents = {}
    for module, name in walk.modules.items():
        for attribute, value in attributes(module, walk.read):
            found[f"{name}.{attribute}"] = walk.digest(value)
        found[f"{name}:"] = walk.digest(type(module))
    return found


def attributes(module: nn.Module, read: frozenset[str] | None = None) -> Iterator[tuple[str, Any]]:
    """What a module holds besides its state dict and its parts, as far as code reads it.

    Args:
        module: The module.
        read: The names that code of the user's own reads; None for all.
    """
    if isinstance(module, torch.jit.ScriptModule):
        yield "code", _code_of_script(module)
        return
    ours = type(module).__module__.startswith("robustsnn.")
    every = read is None or not _is_plain_module(type(module))
    for attribute, value in list(vars(module).items()):
        if attribute in _HOOKS:
            # Their keys count all hooks of the process.
            yield from ([(attribute, list(value.values()))] if value else [])
        elif attribute in _OF_TORCH or (ours and attribute in _OF_OURS):
            continue
        elif every or attribute in (read or ()) or callable(value) or attribute == "training":
            yield attribute, value
    for name in sorted(module._non_persistent_buffers_set):
        yield f"buffer {name}", module._buffers.get(name)


def _is_plain_module(kind: type) -> bool:
    """Whether a class is the user's own and derives of torch's modules only."""
    bases = [one for one in kind.__mro__ if one not in (nn.Module, object)]
    return is_users(kind.__module__) and all(
        is_users(one.__module__) or one.__module__.startswith("torch.nn.") for one in bases
    )


def _code_of_script(module: torch.jit.ScriptModule) -> str:
    try:
        return str(module.code)
    except (RuntimeError, AttributeError):
        # A part of a script that is never called has no code.
        return ""


class _Walk:
    """One walk over the values of a network."""

    def __init__(self, network: nn.Module) -> None:
        self.modules = {module: name for name, module in network.named_modules()}
        self.read = names_read(self.modules, is_users)
        self.left = _MOST
        self.open: set[int] = set()
        #: The digest of each value by its address; the value is kept, so that no other takes it.
        self.done: dict[int, tuple[str, Any]] = {}

    def digest(self, value: Any) -> str:
        """The digest of a value and of all that it leads to."""
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if kind in _PLAIN:
            return _sha(name, repr(value))
        if id(value) in self.open:
            return _sha(name, "contains itself")
        if id(value) in self.done:
            return self.done[id(value)][0]
        self.left -= 1
        if self.left < 0 or kind.__module__.split(".")[0] in _PASSING:
            return _sha(name)
        self.open.add(id(value))
        try:
            found = _sha(name, *self._inside(value))
        except RecursionError:
            found = _sha(name, "deep")
        finally:
            self.open.discard(id(value))
        self.done[id(value)] = (found, value)
        return found

    def _inside(self, value: Any) -> Iterator[str | bytes]:
        """The parts of a value in a fixed order, each as text, bytes or a digest."""
        if isinstance(value, nn.Module):
            if value in self.modules:
                yield self.modules[value]
                return
            # Held where torch does not see it, such as in a list.
            yield from self._each([*contents(value).items(), *value.state_dict().items()])
        elif isinstance(value, Tensor):
            yield from _of_tensor(value)
            yield from self._each(vars(value).items())
        elif isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            yield f"{array.dtype} {array.shape}"
            yield self.digest(array.tolist()) if array.dtype == object else array.tobytes()
        elif isinstance(value, set | frozenset):
            yield from sorted(self.digest(one) for one in value)
        elif isinstance(value, Mapping):
            yield from self._each(value.items())
            yield from self._each(getattr(value, "__dict__", {}).items())
        elif isinstance(value, list | tuple):
            yield from map(self.digest, value)
            yield from self._each(getattr(value, "__dict__", {}).items())
        else:
            yield from self._each(self._of(value))

    def _of(self, value: Any) -> Iterable[tuple[Any, Any]]:
        """The parts of a value that is not a container, each with a name."""
        if isinstance(value, type):
            return self._of_class(value)
        if isinstance(value, types.FunctionType):
            return _of_function(value)
        if isinstance(value, types.CodeType):
            return _of_code(value)
        if isinstance(value, types.MethodType):
            return [("function", value.__func__), ("self", value.__self__)]
        if isinstance(value, partial):
            return [("function", value.func), ("given", [value.args, value.keywords])]
        if isinstance(value, types.ModuleType | types.BuiltinFunctionType):
            return [("name", value.__name__), ("of", getattr(value, "__module__", ""))]
        if isinstance(value, enum.Enum):
            return [("name", value.name), ("value", value.value)]
        if isinstance(value, torch.Generator):
            return [("state", value.get_state())]
        return _of_object(value)

    def _each(self, pairs: Iterable[tuple[Any, Any]]) -> Iterator[str]:
        for name, value in pairs:
            yield self.digest(name)
            yield self.digest(value)

    def _of_class(self, kind: type) -> Iterator[tuple[str, Any]]:
        """The classes that a class derives of, and what the user's own of them define."""
        parts = self.read if issubclass(kind, nn.Module) else None
        for one in kind.__mro__:
            yield "derives of", f"{one.__module__}.{one.__qualname__}"
            if not is_users(one.__module__):
                continue
            for name, value in sorted(vars(one).items(), key=lambda item: item[0]):
                if name not in _OF_CLASSES and (parts is None or name in parts):
                    yield name, _plainly(value)


def _sha(*parts: str | bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        given = part.encode() if isinstance(part, str) else part
        found.update(f"{len(given)} ".encode())
        found.update(given)
    return found.hexdigest()


def _of_tensor(value: Tensor) -> Iterator[str | bytes]:
    yield f"{tuple(value.shape)} {value.dtype}"
    if value.device.type == "meta":
        return
    plain = value.detach().cpu()
    plain = plain.to_dense() if plain.layout is not torch.strided else plain
    plain = plain.resolve_conj().resolve_neg()
    yield plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _plainly(value: Any) -> Any:
    """What a class holds, without the wrapping by which it becomes a method."""
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
        return value.__name__
    return value


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The code of a function, what it closes over, its defaults, and the globals it names."""
    yield "name", f"{function.__module__}.{function.__qualname__}"
    yield "code", function.__code__
    yield "defaults", [function.__defaults__, function.__kwdefaults__]
    yield "attributes", vars(function)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:
            # The variable has no value yet.
            continue
    if not is_users(function.__module__):
        return
    for name in sorted(globals_named(function.__code__)):
        value = function.__globals__.get(name)
        if isinstance(value, types.ModuleType) and is_users(value.__name__):
            wanted = names_in(function.__code__)
            value = {key: held for key, held in vars(value).items() if key in wanted}
        if value is not None:
            yield name, value


def _of_code(code: types.CodeType) -> Iterator[tuple[str, Any]]:
    yield "code", code.co_code
    yield "constants", code.co_consts
    yield "names", [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars]
    yield "arguments", [code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount]


def _of_object(value: Any) -> Iterator[tuple[Any, Any]]:
    """What an object of any other kind holds, and its class."""
    yield "class", type(value)
    held = dict(vars(value)) if hasattr(value, "__dict__") else {}
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                held[name] = getattr(value, name)
    yield from sorted(held.items(), key=lambda item: str(item[0]))
    if held or callable(value):
        yield "name", getattr(value, "__name__", "")
        return
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:
        # It says no more of itself.
        return
    if isinstance(reduced, str):
        yield "name", reduced
        return
    function, arguments, state, items, pairs = (*reduced, *[None] * 5)[:5]
    yield getattr(function, "__name__", ""), [arguments, state, list(items or ()), [*(pairs or ())]]


def is_users(module: str | None) -> bool:
    """Whether a module is the user's own: not ours, not Python's, and not an installed package's.

    Examples:
        >>> is_users("torch.nn"), is_users("json"), is_users("__main__")
        (False, False, True)
    """
    name = module or ""
    top = name.partition(".")[0]
    if name == "__main__":
        return True
    if top in ("", "robustsnn", "builtins") or top in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is None or not is_installed(str(file))
