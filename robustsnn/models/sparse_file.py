"""Sparse tensors in a file: the values that are not zero, and the gaps between them.

A tensor `name` becomes `name.values`, its non-zero entries in row-major order, and `name.gaps`,
one byte for each: how many zeros lie before it. A gap of 255 stands for 255 zeros with no entry
after them. Source: the relative index of Han et al., Deep Compression, ICLR 2016, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

VALUES, GAPS = ".values", ".gaps"
#: A byte that says that many zeros, and no entry after them.
SKIP = 255
#: The most bytes of a tensor that a file may describe by its gaps, since a few bytes can describe
#: any number of zeros; the largest convolution of a VGG16 has a hundredth of that.
LARGEST = 2**30
#: The integer type as wide as an element of so many bytes.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each as values and gaps where that takes fewer bytes.

    A zero is what has no bit set, so that -0.0 comes back as it was.

    >>> small = packed({"w": torch.tensor([0.0] * 9 + [0.5])})
    >>> small["w.values"], small["w.gaps"]
    (tensor([0.5000]), tensor([9], dtype=torch.uint8))
    """
    found = {}
    for name, tensor in tensors.items():
        found[name] = tensor
        taken = name + VALUES in tensors or name + GAPS in tensors
        if tensor.dim() == 0 or not tensor.is_floating_point() or taken:
            continue
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        places = flat.view(_BITS[flat.element_size()]).nonzero().flatten()
        gaps = _gaps(places.numpy())
        if len(places) * flat.element_size() + len(gaps) < flat.numel() * flat.element_size():
            del found[name]
            found[name + VALUES] = flat[places]
            found[name + GAPS] = torch.from_numpy(gaps)
    return found


def _gaps(places: np.ndarray) -> np.ndarray:
    """The bytes of the gaps before the entries at those places, in rising order."""
    zeros = np.diff(places, prepend=-1) - 1
    skips, rest = zeros // SKIP, zeros % SKIP
    gaps = np.full(len(zeros) + int(skips.sum()), SKIP, dtype=np.uint8)
    gaps[np.cumsum(skips + 1) - 1] = rest
    return gaps


def unpacked(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The tensors again, dense; what is not packed stays as it is.

    Args:
        tensors: What `packed` gave.
        shapes: The shape of each tensor by name; nothing larger is made.

    Raises:
        ValueError: The parts do not fit each other or the shape.

    >>> small = packed({"w": torch.tensor([0.0] * 9 + [0.5])})
    >>> unpacked(small, {"w": torch.Size([10])})["w"][-1]
    tensor(0.5000)
    """
    found = {n: t for n, t in tensors.items() if not n.endswith((VALUES, GAPS)) or n in shapes}
    for name, shape in shapes.items():
        if name in found:
            continue
        values, gaps = tensors.get(name + VALUES), tensors.get(name + GAPS)
        if values is None or gaps is None:
            continue
        found[name] = _dense(name, values, gaps, shape)
    for part in sorted(tensors.keys() - found.keys()):
        # One suffix alone: the name of the tensor may end like a part itself.
        name = part.removesuffix(VALUES if part.endswith(VALUES) else GAPS)
        if name not in found or name in tensors:
            found[part] = tensors[part]
    return found


def _dense(name: str, values: Tensor, gaps: Tensor, shape: torch.Size) -> Tensor:
    """The tensor of that shape; nothing of its size is made before all else is checked."""
    if gaps.dtype != torch.uint8 or gaps.dim() != 1 or values.dim() != 1:
        raise ValueError(f"{name}: its values or gaps have another type or shape")
    if not values.is_floating_point():
        raise ValueError(f"{name}: its values are not floating-point numbers")
    size = math.prod(shape)
    if size * values.element_size() > LARGEST:
        raise ValueError(f"{name}: {list(shape)} is larger than a sparse tensor may be")
    steps = gaps.numpy().astype(np.int64)
    places = np.cumsum(np.where(steps == SKIP, SKIP, steps + 1))[steps != SKIP] - 1
    ends = not len(steps) or steps[-1] != SKIP
    if not ends or len(places) != len(values) or (len(places) and places[-1] >= size):
        raise ValueError(f"{name}: its values and gaps do not fit {list(shape)}")
    flat = torch.zeros(size, dtype=values.dtype)
    flat[torch.from_numpy(places)] = values
    return flat.reshape(shape)
