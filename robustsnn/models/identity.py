"""The digest of a network in memory, which stands for what it computes."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from robustsnn.snn.network import Network
from robustsnn.snn.sparsity import SYNAPSES

#: Attributes of a module that the state dict or modules of their own account for.
_ACCOUNTED = ("_parameters", "_modules")
#: The hooks that change what a module computes.
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
#: What `torch.nn.utils` appends to the name of a weight that it computes in every pass.
_SOURCES = ("_orig", "_g")


def digest_of(network: nn.Module) -> str:
    """A sha256 that changes with the structure, the weights and the masks of a network.

    It covers the state dict and, in modules that hold or shape weights, every other tensor: a mask
    in a plain attribute, in a buffer that is not saved, or in a hook. States of neurons are left
    out, so that a pass does not change the digest.

    >>> layer = nn.Linear(2, 1)
    >>> before = digest_of(layer)
    >>> layer.mask = layer.weight.detach() > 0
    >>> digest_of(layer) == before
    False
    """
    digest = hashlib.sha256(str(network).encode())
    if isinstance(network, Network):
        digest.update(f"{network.config.model_dump_json()} {network.time_steps}".encode())
    for name, tensor in sorted(network.state_dict().items()):
        _add(digest, name, tensor)
    for name, tensor in _unsaved(network):
        _add(digest, name, tensor)
    return digest.hexdigest()


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    plain = tensor.detach().cpu()
    plain = plain.to_dense() if plain.layout is not torch.strided else plain
    # As bytes, because numpy does not know every type of torch.
    digest.update(plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _unsaved(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors outside the state dict of modules that hold or shape weights."""
    shaping = {
        inner
        for module in network.modules()
        if isinstance(module, ParametrizationList)
        for inner in module.modules()
    }
    for name, module in network.named_modules():
        holds = any(p.dim() > 1 for p in module.parameters(recurse=False))
        if not (holds or isinstance(module, SYNAPSES) or module in shaping):
            continue
        seen: set[int] = set()
        for attribute, value in vars(module).items():
            if _elsewhere(module, attribute):
                continue
            if attribute == "_buffers":
                value = {k: v for k, v in value.items() if k in module._non_persistent_buffers_set}
            for path, tensor in _tensors(value, attribute, seen):
                yield f"{name} {path}", tensor


def _elsewhere(module: nn.Module, attribute: str) -> bool:
    """Whether an attribute holds nothing that the state dict does not determine."""
    if attribute.startswith("_") and attribute.endswith(("_hooks", "_hooks_with_kwargs")):
        return attribute not in _HOOKS
    computed = any(f"{attribute}{end}" in module._parameters for end in _SOURCES)
    return computed or attribute in _ACCOUNTED


def _tensors(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a value leads to, with the way to it; no module is entered."""
    if id(value) in seen or isinstance(value, nn.Module | type):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield path, value
        return
    for step, inner in _inside(value):
        yield from _tensors(inner, f"{path}.{step}", seen)


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """What a container, a hook or another object holds, with a name for each."""
    if isinstance(value, dict):
        # The keys of hooks count all hooks of the process, so they are not part of a name.
        yield from ((str(place), inner) for place, inner in enumerate(value.values()))
    elif isinstance(value, list | tuple):
        yield from ((str(place), inner) for place, inner in enumerate(value))
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, types.MethodType):
        yield "self", value.__self__
    elif isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield name, cell.cell_contents
            except ValueError:
                # The variable has no value yet.
                continue
    elif not isinstance(value, types.ModuleType) and hasattr(value, "__dict__"):
        yield from ((str(name), inner) for name, inner in vars(value).items())
