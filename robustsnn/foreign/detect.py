"""Which modules of a network are neurons of another library, or of ours."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator

from torch import nn

from robustsnn.foreign.library import Library
from robustsnn.foreign.norse import Norse
from robustsnn.foreign.sinabs import Sinabs
from robustsnn.foreign.snntorch import SnnTorch
from robustsnn.foreign.spikingjelly import SpikingJelly
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


def own_layers(network: nn.Module) -> dict[str, LIF]:
    """The layers of neurons of our own in a network, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, LIF)}


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
