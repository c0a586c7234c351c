"""How compiled loops get at tensors, without copies where possible, and at threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustsnn.snn.lif_reference import empty_over_time

Array = NDArray[Any]

# With fewer neurons times steps than this, a second thread costs more than it brings.
WORTH_A_THREAD = 65_536


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="lif")


# A forked child has none of its parent's threads, and would wait for them forever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def spread(run: Callable[[int, int], None], units: int, work: int) -> None:
    """Run over units of equal size, split among as many threads as torch uses.

    Args:
        run: What to do with the units from the first number to the second, which is excluded.
        units: The number of units.
        work: The number of neurons times steps in all units together.
    """
    parts = max(1, min(torch.get_num_threads(), work // WORTH_A_THREAD, units))
    edges = [units * i // parts for i in range(parts + 1)]
    others = [_pool(parts - 1).submit(run, edges[i], edges[i + 1]) for i in range(1, parts)]
    run(edges[0], edges[1])
    for other in others:
        other.result()


def scalars(dtype: Any, *values: float) -> tuple[Any, ...]:
    """The numbers as scalars of that NumPy type."""
    return tuple(dtype.type(value) for value in values)


def dense(current: Tensor) -> Tensor:
    """The same values, every step dense in memory and the steps one after the other."""
    one = current[0]
    layout = _layout(one)
    if one.is_contiguous(memory_format=layout) and (
        len(current) == 1 or current.stride(0) == one.numel()
    ):
        return current
    copy = empty_over_time(one, len(current))
    copy.copy_(current)
    return copy


def _layout(one: Tensor) -> torch.memory_format:
    if one.dim() == 4 and one.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def flat_array(tensor: Tensor) -> Array:
    """The memory of a dense tensor `[step, ...]` as `[step, neuron]`, in storage order."""
    steps = len(tensor)
    neurons = tensor[0].numel()
    view = tensor.detach().as_strided((steps, neurons), (neurons, 1))
    array: Array = view.numpy()
    return array


def one_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor `[batch, ...]` in the memory layout of `like`."""
    if tensor.stride() == like.stride():
        return tensor
    copy = torch.empty_like(like)
    return copy.copy_(tensor)


def one_array(tensor: Tensor | None, like: Tensor) -> Array:
    """A tensor `[batch, ...]` as `[neuron]`, laid out as `like`; without rows if it is absent."""
    if tensor is None:
        return np.empty(0, like.detach().numpy().dtype)
    array: Array = flat_array(one_like(tensor.detach(), like).unsqueeze(0))[0]
    return array


def over_time(tensor: Tensor | None, like: Tensor, steps: int) -> Array:
    """A tensor `[step, batch, ...]` as `[step, neuron]`, each step laid out as `like`.

    The array has no rows if the tensor is absent.
    """
    if tensor is None:
        return np.empty((0, 0), like.detach().numpy().dtype)
    return flat_array(steps_like(tensor.detach(), like, steps))


def steps_like(tensor: Tensor, like: Tensor, steps: int) -> Tensor:
    """A tensor `[step, batch, ...]` with the steps one after the other, each laid out as `like`."""
    if tensor[0].stride() == like.stride() and (steps == 1 or tensor.stride(0) == like.numel()):
        return tensor
    return empty_over_time(like, steps).copy_(tensor)
