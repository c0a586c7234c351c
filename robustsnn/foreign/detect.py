"""Which modules of a network are neurons of another library, or of ours."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from robustsnn.foreign.library import Library
from robustsnn.foreign.norse import Norse
from robustsnn.foreign.sinabs import Sinabs
from robustsnn.foreign.snntorch import SnnTorch
from robustsnn.foreign.spikingjelly import SpikingJelly
from robustsnn.snn.backward_rule import spiking_layers
from robustsnn.snn.neuron import LIF

LIBRARIES: tuple[Library, ...] = (SpikingJelly(), SnnTorch(), Norse(), Sinabs())


def library_of(module: nn.Module) -> Library | None:
    """The library whose neuron a module is, None if it is no neuron of a library.

    >>> library_of(nn.ReLU()) is None
    True
    """
    return next((one for one in LIBRARIES if one.kind(module) is not None), None)


def neurons(network: nn.Module) -> Iterator[tuple[str, nn.Module, Library]]:
    """The neurons of other libraries in a network: name, module and library of each.

    A module that is part of a neuron is not looked at.
    """
    inside: set[nn.Module] = set()
    for name, module in network.named_modules():
        if module in inside:
            continue
        library = library_of(module)
        if library is not None:
            inside |= set(module.modules())
            yield name, module, library


def own_layers(network: nn.Module) -> dict[str, Any]:
    """The layers of neurons that need no library, by name: ours, and those that a part names.

    A part of a network may name its own layers by a method `spiking_layers()`; see
    `robustsnn.snn.backward_rule`.
    """
    found: dict[str, Any] = {}
    held: set[int] = set()
    for name, module in network.named_modules():
        named = {name: module} if isinstance(module, LIF) else {}
        if not named and module is not network:
            named = {f"{name}.{part}": one for part, one in spiking_layers(module).items()}
        for key, layer in named.items():
            # A layer is listed by its module and by every part around it that names it.
            if id(layer) not in held:
                held.add(id(layer))
                found[key] = layer
    return found


def stateful(network: nn.Module) -> list[tuple[nn.Module, Library]]:
    """Every module that keeps a state that its library can reset."""
    return [
        (module, library)
        for module in network.modules()
        for library in LIBRARIES
        if library.resets(module)
    ]


def version_of(library: Library) -> str:
    """The version of a library as it is installed, or as it says itself.

    >>> version_of(LIBRARIES[0]) != ""
    True
    """
    try:
        return importlib.metadata.version(library.package)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(library.package), "__version__", "of unknown version"))
