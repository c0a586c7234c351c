"""A copy of a network that somebody built, whatever tensors it holds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustsnn.common.users_code import out_of_memory, reason_of, where_of
from robustsnn.errors import InputError


def copy_of(network: nn.Module) -> nn.Module:
    """A deep copy that says the same as the network and shares nothing with its graph.

    `copy.deepcopy` refuses a network that holds the result of a computation, which is what
    `torch.nn.utils.prune`, `weight_norm` and `spectral_norm` leave in a layer, and spiking neurons
    that keep their membranes after a pass. Here such a tensor is copied as a constant. Whatever is
    computed anew in each pass, as pruned weights are, is computed anew in the copy too.

    Args:
        network: The network, which is left as it is.

    Raises:
        InputError: The network holds something that cannot be copied, such as a lock.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer.scale = 2 * layer.weight
    >>> copied = copy_of(layer)
    >>> copied.scale.requires_grad, bool((copied.scale == layer.scale).all())
    (False, True)
    """
    try:
        # Without a graph, because scripts are copied by operations that would be part of it.
        with torch.no_grad(), _ConstantsForResults():
            copied: nn.Module = copy.deepcopy(network)
    except (Exception, SystemExit) as error:
        # What a foreign network holds may refuse with an error of any type.
        if out_of_memory(error):
            raise
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
