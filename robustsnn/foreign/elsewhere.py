"""Neurons that run in a pass of a network and are none of the layers that were found in it.

Layers are found by looking through the modules of a network. A neuron that a list, a closure or a
function holds is not a module of it, and the class of one that its user wrote is not known. Both
are seen only where they run. They keep the one gradient that their code gives them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from robustsnn.common.users_code import out_of_memory
from robustsnn.foreign.detect import library_of, neurons, own_layers
from robustsnn.foreign.wrapped import Wrapped
from robustsnn.models.calling import call
from robustsnn.snn.backward_rule import spiking_layers
from robustsnn.snn.network import Network

#: The most values that spikes, or numbers of them, have in a step.
VALUES = 17
#: How many times as many values what makes them spike has at least.
FINER = 4
#: The seed of the draws of a network that draws without saying so.
SEED = 0


def spiking_elsewhere(network: nn.Module, images: Tensor) -> list[str]:
    """What spikes in a pass of a network without being one of its layers, in words.

    These are neurons of a library that are not modules of the network, and functions with a
    backward pass of their own that turn what depends on the images into a few values, as spike
    functions do.

    Args:
        network: A copy of the network, in evaluation mode, with no parameter that asks for a
            gradient.
        images: Some images, `[batch, channel, height, width]`, in [0, 1].

    Examples:
        >>> spiking_elsewhere(nn.Sequential(nn.Flatten(), nn.ReLU()), torch.rand(2, 1, 2, 2))
        []
    """
    if isinstance(network, Network):
        return []
    inner = network.inner if isinstance(network, Wrapped) else network
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
            with called_neurons(set(inner.modules())) as loose:
                logits = _pass(network, images)
            found = [f"{name}, which is not a module of the network" for name in loose]
            functions = own_functions(logits)
            if functions:
                with spied(functions, _layers(inner)) as spiking:
                    _pass(network, images)
                found += [f"the function {name}" for name in spiking]
    except Exception as error:
        if out_of_memory(error):
            raise
        # What it raises is told by what is run next.
        return []
    return found


def _pass(network: nn.Module, images: Tensor) -> Tensor:
    """Logits of a pass that the libraries differentiate themselves."""
    torch.manual_seed(SEED)
    x = images.detach().clone().requires_grad_()
    keys = {}
    if getattr(network, "stochastic", False):
        keys = {"keys": torch.arange(len(images))}
    found: Tensor
    if isinstance(network, Wrapped):
        found = network.plain(x.clone(), **keys)
    else:
        found = call(network, x.clone(), **keys)
    return found


def _layers(inner: nn.Module) -> list[Any]:
    """The neurons that were found, of whose functions it is known that they spike."""
    known = [module for _, module, _ in neurons(inner)]
    return [*known, *own_layers(inner).values(), *spiking_layers(inner).values()]


@contextmanager
def called_neurons(modules: set[nn.Module]) -> Iterator[dict[str, None]]:
    """Note the kinds of neurons that are called inside the block and are none of those modules."""
    noted: dict[str, None] = {}

    def hook(module: nn.Module, args: Any) -> None:
        if module not in modules and library_of(module) is not None:
            noted.setdefault(type(module).__name__)

    handle = register_module_forward_pre_hook(hook)
    try:
        yield noted
    finally:
        handle.remove()


def own_functions(found: Tensor) -> list[type]:
    """The functions with a backward pass of their own, and not of ours, that led to a tensor."""
    kinds: dict[type, None] = {}
    seen: set[Any] = set()
    nodes: list[Any] = [found.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        # Only the node of a function of Python has it.
        kind = getattr(node, "_forward_cls", None)
        if kind is not None and not kind.__module__.startswith("robustsnn."):
            kinds.setdefault(kind)
        nodes += [before for before, _ in node.next_functions]
    return list(kinds)


@contextmanager
def spied(functions: Iterable[Any], layers: Iterable[Any]) -> Iterator[dict[str, None]]:
    """Note which functions spike inside the block, but for calls from inside of known layers."""
    noted: dict[str, None] = {}
    inside = 0

    def spy(kind: Any, forward: Any) -> Any:
        @functools.wraps(forward)
        def look(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            if not inside and _spikes(args, output):
                noted.setdefault(kind.__name__)
            return output

        return look

    def known(forward: Any) -> Any:
        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            inside += 1
            try:
                return forward(*args, **kwargs)
            finally:
                inside -= 1

        return run

    with contextlib.ExitStack() as stack:
        for kind in functions:
            stack.enter_context(_replaced(kind, "forward", staticmethod(spy(kind, kind.forward))))
        for layer in layers:
            stack.enter_context(_replaced(layer, "forward", known(layer.forward)))
        yield noted


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another attribute inside the block; the one of a class above it comes back afterwards."""
    own = name in vars(owner)
    before = vars(owner).get(name)
    place = owner.__dict__ if isinstance(owner, nn.Module) else None
    if place is None:
        setattr(owner, name, value)
    else:
        place[name] = value
    try:
        yield
    finally:
        if own and place is not None:
            place[name] = before
        elif own:
            setattr(owner, name, before)
        elif place is not None:
            place.pop(name, None)
        else:
            delattr(owner, name)


def _spikes(given: Iterable[Any], output: Any) -> bool:
    """Whether a function turned what depends on the images into a few values."""
    parts = output if isinstance(output, tuple) else (output,)
    values = [len(part.unique()) for part in parts if _floating(part)]
    if not any(2 <= count <= VALUES for count in values):
        return False
    fewest = min(count for count in values if count >= 2)
    return any(
        part.requires_grad and len(part.detach().unique()) >= FINER * fewest
        for part in given
        if _floating(part)
    )


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1
