"""Weights in half the space: numbers of 16 bits in a file, computed with as numbers of 32 bits."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from robustsnn.snn.network import Network


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors as float16; scalars, which are thresholds and leaks, stay as they are.

    >>> found = halved({"w": torch.tensor([0.1, 2.0]), "leak": torch.tensor(0.1)})
    >>> found["w"].dtype, found["leak"].dtype
    (torch.float16, torch.float32)
    """
    return {
        name: tensor.half() if tensor.dim() and tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


@torch.no_grad()
def rounded(network: Network) -> Network:
    """A copy of a network whose weights are what is left of them after storage as float16.

    A weight above 65,504, the largest number of that format, becomes infinite.
    """
    found = copy.deepcopy(network)
    state = halved(found.state_dict())
    found.load_state_dict(state)
    return found
