"""Networks that keep more at every pass, such as a hook that appends activations to a list."""

from __future__ import annotations

import contextlib
import gc
import itertools
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustsnn.common.users_code import out_of_memory
from robustsnn.common.wording import listing
from robustsnn.errors import InputError
from robustsnn.models.calling import call, calling
from robustsnn.snn.network import Network

#: The number of passes after each of which it is counted what is kept.
PASSES = 3
#: The number of images of a pass.
IMAGES = 2
#: What collects values.
CONTAINERS = (list, dict, set, deque)


def refuse_growth(network: nn.Module, images: Tensor) -> None:
    """Refuse a network of the user's own that keeps more activations after every pass.

    An evaluation makes thousands of passes, so that such a network would fill the memory in the
    middle of a run. What the last pass left, and no more, may be kept.

    Args:
        network: A copy of the network, in evaluation mode.
        images: Some images, `[batch, channel, height, width]`, in [0, 1].

    Raises:
        InputError: It keeps more after every pass; the message names where.

    Examples:
        >>> kept, layer = [], nn.Flatten()
        >>> hook = layer.register_forward_hook(lambda module, given, found: kept.append(found))
        >>> refuse_growth(layer, torch.zeros(2, 1, 2, 2))
        Traceback (most recent call last):
            ...
        robustsnn.errors.InputError: the network Flatten keeps more tensors after every pass (by ...
    """
    if isinstance(network, Network):
        return
    inner: Any = network
    while type(inner).__module__.startswith("robustsnn.") and hasattr(inner, "inner"):
        inner = inner.inner
    try:
        if not _keeps_more(network, inner, images[:IMAGES]):
            return
    except InputError:
        # What it raises is told by what is run next.
        return
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        # What is run next tries fewer images, and says so where not even one fits.
        return
    places = [place for place, held in _containers(inner) if _kept(held)]
    where = f" ({listing(places)})" if places else ""
    raise InputError(
        f"the network {type(inner).__name__} keeps more tensors after every pass{where}, and an "
        "evaluation makes thousands of passes: remove the hook or the line that collects them."
    )


def _keeps_more(network: nn.Module, inner: nn.Module, images: Tensor) -> bool:
    """Whether passes without a gradient leave tensors behind, or those with one in containers.

    A state that leads from pass to pass holds the graphs of all of them. It is not collected, and
    the checks of a run say that it is not reset.
    """
    enabled = gc.isenabled()
    # Garbage of before that is collected in the middle would hide what is added.
    gc.disable()
    try:
        there, whole, back = [], [], []
        for _ in range(PASSES):
            _pass(network, images, gradient=False)
            # All that is new is in the youngest generation, which is small.
            there.append(_tensors(generation=0) + _held(inner))
        for _ in range(PASSES if _grows(there) else 0):
            _pass(network, images, gradient=False)
            # What only the collector of cycles can free is not kept.
            gc.collect()
            whole.append(_tensors() + _held(inner))
        for _ in range(PASSES):
            _pass(network, images, gradient=True)
            back.append(_held(inner))
    finally:
        if enabled:
            gc.enable()
    return _grows(whole) or _grows(back)


def _grows(counts: list[int]) -> bool:
    return bool(counts) and all(later > before for before, later in itertools.pairwise(counts))


def _tensors(generation: int | None = None) -> int:
    """The number of tensors in memory, or in one generation of the collector."""
    return sum(issubclass(type(one), Tensor) for one in gc.get_objects(generation=generation))


def _held(network: nn.Module) -> int:
    """The number of tensors and arrays in the containers of a network and of its hooks."""
    return sum(_kept(held) for _, held in _containers(network))


def _pass(network: nn.Module, images: Tensor, gradient: bool) -> None:
    """One pass, with a gradient or without; nothing of it is held here afterwards."""
    stochastic = bool(getattr(network, "stochastic", False))
    given = {"keys": torch.arange(len(images))} if stochastic else {}
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        with calling(network), torch.set_grad_enabled(gradient):
            x = images.detach().clone().requires_grad_(gradient)
            logits = call(network, x, **given)
            if isinstance(logits, Tensor) and logits.requires_grad:
                torch.autograd.grad(logits.sum(), x, allow_unused=True)


def _kept(held: Any) -> int:
    values = held.values() if isinstance(held, dict) else held
    return sum(
        _kept(one) if type(one) in (*CONTAINERS, tuple) else isinstance(one, Tensor | np.ndarray)
        for one in list(values)
    )


def _containers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """The containers that modules hold and that hooks lead to, each with its name for readers."""
    seen: set[int] = set()

    def new(place: str, value: Any) -> Iterator[tuple[str, Any]]:
        if type(value) in CONTAINERS and id(value) not in seen:
            seen.add(id(value))
            yield place, value

    for name, module in network.named_modules():
        for key, value in vars(module).items():
            if key.endswith("_hooks") and isinstance(value, dict):
                for hook in value.values():
                    place = f"by a hook of {name or type(module).__name__}"
                    for held in _led_to(hook):
                        yield from new(place, held)
            elif not key.startswith("_"):
                yield from new(f"in {name}.{key}" if name else f"in {key}", value)


def _led_to(hook: Any) -> Iterator[Any]:
    """What a hook can append to: attributes of its object, its variables, its globals."""
    owner = getattr(hook, "__self__", None if isinstance(hook, types.FunctionType) else hook)
    if owner is not None and not isinstance(owner, nn.Module):
        yield from getattr(owner, "__dict__", {}).values()
    function = getattr(hook, "__func__", hook)
    if isinstance(function, types.FunctionType):
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # A variable without a value yet.
                yield cell.cell_contents
        yield from function.__defaults__ or ()
        yield from (function.__globals__.get(name) for name in function.__code__.co_names)
