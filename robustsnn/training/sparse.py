"""Masks while a network is trained: held after every step, and changed where a recipe says so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustsnn.common.randomness import derive
from robustsnn.snn.channels import boundaries, weights_left
from robustsnn.snn.network import Network
from robustsnn.snn.sparsity import synapses, weights_of
from robustsnn.training.channel_rewiring import drawn_channels, kept_channels, rewired_channels
from robustsnn.training.masks import Masks, apply_, budget, by_magnitude, drawn, held, predefined
from robustsnn.training.masks import kept as kept_weights
from robustsnn.training.recipe import Recipe, Sparsity
from robustsnn.training.rewiring import cosine, rewired

#: Avoids division by zero in the momentum of Adam.
TINY = 1e-8


class SparseTraining:
    """The masks of a network in training, which no step of its optimizer breaks.

    Args:
        recipe: The recipe, with a section `sparsity`.
        network: The network before its first update; its masked weights are set to zero.
        optimizer: Its optimizer. After each of its steps the masked weights are zero again.
        updates: The number of updates of the whole training.

    Raises:
        InputError: The network cannot be pruned like that.
    """

    def __init__(
        self, recipe: Recipe, network: Network, optimizer: torch.optim.Optimizer, updates: int
    ) -> None:
        assert recipe.sparsity is not None
        self.settings: Sparsity = recipe.sparsity
        self.network = network
        self.optimizer = optimizer
        self.updates = updates
        self.masks = first_masks(self.settings, network, recipe.seed)
        apply_(network, self.masks)
        optimizer.register_step_post_hook(self._hold)

    def _hold(self, *_: Any) -> None:
        apply_(self.network, self.masks)

    def put_back(self, masks: Masks) -> None:
        """Take masks of an earlier state, and set what they mask to zero."""
        self.masks = masks
        self._hold()

    def after_update(self, done: int) -> None:
        """Change the masks if it is time: after so many updates, and never after the last.

        What grew last would otherwise never be trained.
        """
        rewiring = self.settings.rewiring
        if rewiring is None or done % rewiring.every or done > self.updates - rewiring.every:
            return
        rate = cosine(rewiring.rate, rewiring.last_rate, done / self.updates)
        assert self.settings.density is not None
        momenta = momenta_of(self.network, self.optimizer)
        if self.settings.pattern == "channel":
            asked = (self.settings.density, self.settings.widest)
            self.masks = rewired_channels(self.network, self.masks, momenta, rate, *asked)
        else:
            total = budget(self.network, self.settings.density)
            self.masks = rewired(weights_of(self.network), self.masks, momenta, rate, total)
        self._hold()

    def kept(self) -> int:
        """The number of weights that are left, without those of channels that are gone."""
        if self.settings.pattern == "weight":
            return kept_weights(self.masks)
        channels = kept_channels(self.masks, boundaries(self.network))
        return weights_left(self.network, [int(mask.sum()) for mask in channels.values()])


def first_masks(settings: Sparsity, network: Network, seed: int) -> Masks:
    """The masks that training starts with.

    Args:
        settings: Where they come from.
        network: The network before its first update.
        seed: The seed of the recipe.

    Raises:
        InputError: The network cannot be pruned like that.
    """
    if settings.density is None:
        return held(network)
    if settings.start == "magnitude":
        return by_magnitude(network, settings.density)
    if settings.start == "predefined":
        return predefined(network, settings.density)
    generator = torch.Generator().manual_seed(derive(seed, "masks"))
    if settings.pattern == "channel":
        return drawn_channels(network, settings.density, generator, settings.widest)
    return drawn(network, settings.density, generator)


def momenta_of(network: Network, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The momentum of the gradient of each weight, by the name of its layer.

    It is the momentum buffer of SGD, and for Adam the mean gradient over the root of the mean
    square, so that its scale is that of a step.
    """
    found = {}
    for name, module in synapses(network).items():
        weight = module.weight
        assert isinstance(weight, Tensor)
        state = optimizer.state[weight]
        if "exp_avg" in state:
            found[name] = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + TINY)
        else:
            found[name] = state["momentum_buffer"]
    return found
