"""A layer of another library's neurons, as estimators see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from robustsnn.foreign.library import Dynamics, Library
from robustsnn.snn.backward_rule import BackwardRule
from robustsnn.snn.surrogate import Surrogate


class Layer:
    """What an estimator needs of a layer; see `robustsnn.snn.backward_rule`.

    It stands next to the module, which stays as its library made it.

    Args:
        name: The name of the layer in the network.
        module: The module of the library.
        library: The library.
        place: Which of the sequences of one pass it is, of a module that runs several.
    """

    def __init__(self, name: str, module: nn.Module, library: Library, place: int = 0) -> None:
        self.name, self.module, self.library, self.place = name, module, library, place
        self.rule: BackwardRule | None = None
        dynamics = self.dynamics()
        self.own = library.surrogate(module, dynamics)
        self.surrogate: Surrogate = self.own
        self.graded = dynamics.graded

    def dynamics(self, like: Tensor | None = None) -> Dynamics:
        """The dynamics as they are now, on the device and of the type of a current."""
        if like is None:
            held = [*self.module.parameters(), *self.module.buffers()]
            floating = [t for t in held if t.is_floating_point()]
            like = floating[0] if floating else torch.zeros(())
        return self.library.dynamics(self.module, like)

    @property
    def threshold(self) -> Tensor:
        """The threshold above rest."""
        return self.dynamics().threshold

    def surrogate_at(self, dynamics: Dynamics) -> Surrogate:
        """The surrogate that is set; the library's own is asked at the threshold as it is now."""
        now = dynamics.threshold
        if self.surrogate is not self.own or torch.equal(self.own.threshold.to(now), now):
            return self.surrogate
        return dataclasses.replace(self.own, threshold=now)

    @property
    def changed(self) -> bool:
        """Whether an estimator asks for another gradient than that of the library."""
        return self.rule is not None or self.surrogate is not self.own

    @property
    def twin(self) -> Callable[..., Any] | None:
        """The forward pass that an estimator put in place of the neurons, if there is one."""
        return vars(self).get("forward")

    def register_forward_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call a hook with the spikes alone, whatever the library returns with them."""

        def spikes_only(module: nn.Module, inputs: Any, output: Any) -> None:
            hook(module, inputs, self.library.spikes(output))

        return self.module.register_forward_hook(spikes_only)
