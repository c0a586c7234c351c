"""Which weights of a network are zero, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from robustsnn.snn.copying import copy_of

#: The layers whose weights are synapses, which can be pruned.
SYNAPSES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
#: The hooks of torch that compute a weight before each pass.
COMPUTING = (prune.BasePruningMethod, WeightNorm, SpectralNorm)


class LayerDensity(NamedTuple):
    """The weights of one layer, and how many of them are not zero.

    >>> LayerDensity("fc", weights=200, kept=20).density
    0.1
    """

    name: str
    weights: int
    kept: int

    @property
    def density(self) -> float:
        """The share of the weights that are not zero, in [0, 1]; NaN without weights."""
        return self.kept / self.weights if self.weights else float("nan")


def synapses(network: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and linear layers by name, in the order in which they were registered.

    >>> list(synapses(nn.Sequential(nn.Linear(4, 2), nn.ReLU())))
    ['0']
    """
    return {name: m for name, m in network.named_modules() if isinstance(m, SYNAPSES)}


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """The weight that each layer of `synapses` computes with, by the name of the layer.

    Of a layer that `torch.nn.utils.prune`, `weight_norm`, `spectral_norm` or a parametrisation
    changes, it is the effective weight. The network is left as it is.

    >>> layer = prune.l1_unstructured(nn.Linear(4, 2), "weight", amount=6)
    >>> int(torch.count_nonzero(weights_of(layer)[""]))
    2
    """
    return {name: _effective(module) for name, module in synapses(network).items()}


def _effective(module: nn.Module) -> Tensor:
    """The weight of a layer as its next pass will compute it."""
    if any(isinstance(hook, COMPUTING) for hook in module._forward_pre_hooks.values()):
        # The attribute is that of the last pass, and masks or weights may have been loaded since.
        module = copy_of(module).requires_grad_(False)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, COMPUTING):
                hook(module, ())
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def densities(network: nn.Module) -> tuple[LayerDensity, ...]:
    """The density of each layer with synapses, in order.

    >>> layer = nn.Linear(4, 2)
    >>> _ = nn.init.zeros_(layer.weight[0])
    >>> densities(nn.Sequential(layer))
    (LayerDensity(name='0', weights=8, kept=4),)
    """
    return tuple(
        LayerDensity(name, weight.numel(), int(torch.count_nonzero(weight)))
        for name, weight in weights_of(network).items()
    )


def density(network: nn.Module) -> float:
    """The share of all synaptic weights that are not zero, in [0, 1]; NaN without any."""
    every = densities(network)
    total = sum(layer.weights for layer in every)
    return sum(layer.kept for layer in every) / total if total else float("nan")


def compression(dense_weights: int, kept: int) -> float:
    """How many times fewer weights are kept; infinite if none is.

    >>> compression(1000, 30)
    33.333333333333336
    """
    return dense_weights / kept if kept else float("inf")


def pattern(network: nn.Module) -> Mapping[str, Tensor]:
    """Where each layer has weights that are not zero, bool, shaped like its weight."""
    return {name: weight != 0 for name, weight in weights_of(network).items()}
