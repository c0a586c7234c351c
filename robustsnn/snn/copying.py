"""A copy of a network that somebody built, whatever tensors it holds."""

from __future__ import annotations

import contextlib
import copy
import functools
import types
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustsnn.common.users_code import out_of_memory, reason_of, where_of
from robustsnn.errors import InputError

#: What makes another network like the one given, for networks that code can build again.
ANEW: MutableMapping[nn.Module, Callable[[nn.Module], nn.Module]] = weakref.WeakKeyDictionary()


def copy_of(network: nn.Module) -> nn.Module:
    """A deep copy that says the same as the network and shares nothing with its graph.

    `copy.deepcopy` refuses a network that holds the result of a computation, which is what
    `torch.nn.utils.prune`, `weight_norm` and `spectral_norm` leave in a layer, and spiking neurons
    that keep their membranes after a pass. Here such a tensor is copied as a constant. Whatever is
    computed anew in each pass, as pruned weights are, is computed anew in the copy too. A function
    that is kept in the network, such as a hook or `self.act = lambda x: self.neuron(x)`, works on
    the modules of the copy there, where `copy.deepcopy` leaves it at those of the network.

    Args:
        network: The network, which is left as it is.

    Raises:
        InputError: The network holds something that cannot be copied, such as a lock, and nothing
            is known that makes it anew.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer.scale = 2 * layer.weight
    >>> copied = copy_of(layer)
    >>> copied.scale.requires_grad, bool((copied.scale == layer.scale).all())
    (False, True)
    """
    try:
        memo: dict[int, Any] = {}
        # Without a graph, because scripts are copied by operations that would be part of it.
        with torch.no_grad(), _ConstantsForResults():
            copied: nn.Module = copy.deepcopy(network, memo)
        rebind = _Rebinding(memo)
        for module in copied.modules():
            rebind.inside(module.__dict__)
    except (Exception, SystemExit) as error:
        # What a foreign network holds may refuse with an error of any type.
        if out_of_memory(error):
            raise
        if network in ANEW:
            made = ANEW[network](network)
            ANEW[made] = ANEW[network]
            return made
        where = where_of(error)
        raise InputError(
            f"{type(network).__name__} cannot be copied ({f'{where}: ' if where else ''}"
            f"{reason_of(error)}): an evaluation works on copies, so take out what it holds "
            "besides tensors and plain values, such as a lock or an open file."
        ) from error
    return copied


class _ConstantsForResults(TorchFunctionMode):
    """While it is in force, deep copies of computed tensors are constants.

    Every deep copy of a tensor passes here, wherever the tensor lies: in an attribute, a list, a
    dictionary, or an object of the user's own. It is in force in this thread alone.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        constant = tensor.detach()
        # By way of `deepcopy`, which keeps what it has copied alive, so that no address in the
        # memo is taken by another tensor, and keeps tensors together that share their memory. It
        # refuses most types that a user derives from tensors.
        copied: Tensor = (
            copy.deepcopy(constant, memo) if type(tensor) is Tensor else constant.clone()
        )
        copied.requires_grad_(tensor.is_leaf and tensor.requires_grad)
        memo[id(tensor)] = copied
        with self:
            # What was attached to the tensor may hold computed ones again.
            copied.__dict__.update(copy.deepcopy(tensor.__dict__, memo))
        return copied


class _Rebinding:
    """Lets functions of a copy work on what was copied, wherever they refer to it.

    A function is not copied by `copy.deepcopy`, so that what its closure and its defaults hold
    stays that of the network.

    Args:
        memo: What `copy.deepcopy` noted: the copy of each object by the address of that object.
    """

    def __init__(self, memo: dict[int, Any]) -> None:
        self.memo = memo
        self.made: dict[int, Any] = {}
        self.entered: set[int] = set()

    def inside(self, held: dict[Any, Any]) -> None:
        """Put functions of the copy in place of those in a dictionary, and in what it holds."""
        if id(held) in self.entered:
            return
        self.entered.add(id(held))
        for key, value in list(held.items()):
            new = self.of(value)
            if new is not value:
                held[key] = new

    def of(self, value: Any) -> Any:
        """A value that refers to nothing that has a copy."""
        if isinstance(value, types.FunctionType):
            return self._function(value) if self._refers(value, set()) else value
        if isinstance(value, dict):
            self.inside(value)
        elif type(value) is list and id(value) not in self.entered:
            self.entered.add(id(value))
            value[:] = [self.of(one) for one in value]
        elif type(value) is tuple:
            parts = tuple(self.of(one) for one in value)
            return value if all(a is b for a, b in zip(parts, value, strict=True)) else parts
        elif type(value) is functools.partial:
            return functools.partial(
                self.of(value.func),
                *(self.of(one) for one in value.args),
                **{name: self.of(one) for name, one in value.keywords.items()},
            )
        return value

    def _refers(self, function: types.FunctionType, seen: set[int]) -> bool:
        """Whether a function, or one that it refers to, refers to something that has a copy."""
        if id(function) in seen:
            return False
        seen.add(id(function))
        return any(
            self._refers(one, seen) if isinstance(one, types.FunctionType) else id(one) in self.memo
            for one in _referred(function)
        )

    def _copied(self, value: Any) -> Any:
        return (
            self._function(value)
            if isinstance(value, types.FunctionType)
            else self.memo.get(id(value), value)
        )

    def _function(self, function: types.FunctionType) -> Any:
        """The same function of the copy."""
        if id(function) in self.made:
            return self.made[id(function)]
        if not self._refers(function, set()):
            return function
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        made = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, None, cells
        )
        # Noted before it is filled: a function may refer to itself.
        self.made[id(function)] = made
        functools.update_wrapper(made, function)
        del made.__dict__["__wrapped__"]
        for cell, own in zip(cells, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # A variable without a value yet.
                cell.cell_contents = self._copied(own.cell_contents)
        if function.__defaults__ is not None:
            made.__defaults__ = tuple(self._copied(one) for one in function.__defaults__)
        if function.__kwdefaults__ is not None:
            made.__kwdefaults__ = {n: self._copied(v) for n, v in function.__kwdefaults__.items()}
        return made


def _referred(function: types.FunctionType) -> Iterator[Any]:
    """What a function holds: the variables around it, and its defaults."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
