"""What an estimator is: a rule at every layer of spiking neurons, or another way to a gradient.

An estimator is independent of the attack that uses it, it is in force only inside the victim's own
calls, and its name is in every record. The forward pass is always the network's own, spike for
spike; an estimator chooses what comes back from a spike.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.snn.backward_rule import BackwardRule, Trace, spiking_layers

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits `[batch, class]` and labels `[batch]` to one value for each image, `[batch]`."""

Found = tuple[Tensor, Tensor, Tensor]
"""Loss `[batch]`, logits `[batch, class]`, and the gradient of the loss by the images."""


class Passes(Protocol):
    """What a victim lends an estimator: the counted passes of one micro-batch of images."""

    @property
    def network(self) -> nn.Module:
        """The network under attack, frozen and in evaluation mode."""

    @property
    def stochastic(self) -> bool:
        """Whether the network draws at every pass."""

    @property
    def rows(self) -> Tensor:
        """Which of the victim's images each one is, int64 `[batch]`."""

    @property
    def ids(self) -> list[int]:
        """The id of each image."""

    @property
    def seed(self) -> int:
        """The seed of every draw."""

    @property
    def spent(self) -> list[int]:
        """The forward passes that each image has cost so far."""

    def spend(self, forward: int = 0, backward: int = 0) -> Tensor | None:
        """Count passes of each image.

        Returns:
            The keys of a stochastic network's draws in the next pass, int64 `[batch]`; None for a
            network that does not draw.
        """

    def logits(self, images: Tensor, keys: Tensor | None, whole: bool = False) -> Tensor:
        """Logits `[batch, class]` in batches of one shape; a gradient may flow. Nothing is counted.

        Args:
            images: Images `[batch, channel, height, width]` in pixel units.
            keys: The keys of their draws, from `spend`.
            whole: Whether they go through the network as a single batch of just their number.
        """

    def padded(self) -> Tensor:
        """`rows` with the copies of the last image that pad the pass, int64 `[padded batch]`."""

    def nonfinite(self, counts: Tensor) -> None:
        """Add to the count of each image's gradients that held NaN or infinity, `[batch]`."""


class Estimator:
    """A way to differentiate a network; a frozen dataclass whose fields are its settings.

    The usual estimator overrides `rule`, which replaces the backward pass of every layer of
    spiking neurons. One that does something else to the network overrides `applied`, and one that
    finds its gradient without a backward pass overrides `gradient`.

    `faithful` says that the logits inside `applied` are the network's own; otherwise the victim
    asks for those with another pass. `draws` is the number of draws of a stochastic network that
    one gradient is averaged over. `remembers` says that values of every neuron are kept for each
    image while an attack goes on, so that fewer images fit into memory. `spikes` says which
    networks it is for: those with spiking layers that it can reach (True), those without (False),
    or both (None).

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class WhereItFired(Estimator):
        ...     kind = "where-it-fired"
        ...     def rule(self, grad, trace):
        ...         return grad * trace.spikes
        >>> WhereItFired().name
        'where-it-fired'
    """

    kind: ClassVar[str] = ""
    spikes: ClassVar[bool | None] = True
    faithful = True
    remembers = False
    draws = 1

    @property
    def name(self) -> str:
        """What records call it: its kind, and the settings that differ from their defaults."""
        return self.named(every=False)

    def named(self, every: bool) -> str:
        """Its kind and its settings, such as `hart:width=0.5`.

        Args:
            every: Whether settings that have their default value are named too.
        """
        this: Any = self
        fields = dataclasses.fields(this) if dataclasses.is_dataclass(this) else ()
        shown = [
            f"{field.name}={_text(getattr(self, field.name))}"
            for field in fields
            if field.init and (every or getattr(self, field.name) != field.default)
        ]
        kind = self.kind or _file_of(type(self))
        return f"{kind}:{','.join(shown)}" if shown else kind

    def on(self, spiking: bool) -> Estimator:
        """The estimator for a network with or without spiking layers that it can reach.

        Raises:
            InputError: It cannot be used there.
        """
        if self.spikes and not spiking:
            raise InputError(
                f"the gradient estimator {self.name} needs spiking layers and this network has "
                "none: use bptt."
            )
        if self.spikes is False and spiking:
            raise InputError(
                f"{self.name} cannot differentiate spikes: use bptt for a spiking network."
            )
        return self

    def rule(self, grad: Tensor, trace: Trace) -> Tensor:
        """What comes back through one layer of neurons.

        Args:
            grad: The gradient of the layer's spikes, `[time, batch, ...]`.
            trace: What the layer did: currents, spikes, membranes before reset, threshold, leak.

        Returns:
            The gradient of the layer's input current, as large as `grad`.
        """
        raise TypeError(f"{type(self).__name__} defines neither rule nor applied.")

    def applied(
        self, network: nn.Module, rows: Tensor | None = None
    ) -> AbstractContextManager[None]:
        """A context in which the network differentiates that way; nothing outlives it.

        Args:
            network: The network that is differentiated.
            rows: Which image each one of the next forward pass is, int64 `[batch]`.
        """
        return ruled_layers(network, lambda _: self.rule)

    def forget(self, rows: Tensor) -> None:
        """Start anew with those images, where anything about them is remembered."""

    def gradient(self, passes: Passes, images: Tensor, labels: Tensor, loss: Loss) -> Found:
        """Loss, logits and gradient of a micro-batch; by default of one backward pass.

        Args:
            passes: The victim's passes of these images.
            images: Images `[batch, channel, height, width]` in pixel units, which may be changed.
            labels: True classes, int64 `[batch]`.
            loss: What the gradient raises.
        """
        return by_backward_pass(self, passes, images, labels, loss)


class Applied(Protocol):
    """The part of an estimator that a backward pass needs."""

    faithful: bool

    def applied(
        self, network: nn.Module, rows: Tensor | None = None
    ) -> AbstractContextManager[None]:
        """See `Estimator.applied`."""


def by_backward_pass(
    estimator: Applied, passes: Passes, x: Tensor, labels: Tensor, loss: Loss
) -> Found:
    """Loss, logits and gradient of a micro-batch by one backward pass; see `Estimator.gradient`."""
    keys = passes.spend(forward=1, backward=1)
    own: Tensor | None = None
    if not estimator.faithful:
        with torch.no_grad():
            own = passes.logits(x, keys)
        passes.spend(forward=1)
    x.requires_grad_()
    with estimator.applied(passes.network, passes.padded()):
        logits = passes.logits(x, keys)
        # The sum keeps each image's gradient its own: a mean would scale with the batch.
        values = loss(logits, labels)
        gradient = reached(values, x)
    if own is not None:
        logits, values = own, loss(own, labels)
    return values.detach(), logits.detach(), gradient


def reached(values: Tensor, x: Tensor) -> Tensor:
    """The gradient of the sum of values by x, all zero where it does not reach x."""
    found = (
        torch.autograd.grad(values.sum(), x, allow_unused=True)[0] if values.requires_grad else None
    )
    return torch.zeros_like(x) if found is None else found.detach()


@contextmanager
def ruled_layers(network: nn.Module, rule_of: Callable[[str], BackwardRule]) -> Iterator[None]:
    """Every spiking layer with a rule, by its name, the whole sequence kept.

    Segments that are run again would cut what a rule sees of time.

    Args:
        network: A network that may name spiking layers.
        rule_of: The rule of the layer of that name.
    """
    layers = spiking_layers(network)
    segments: Any = getattr(network, "recompute", None)
    whole: Any = None
    try:
        if segments is not None:
            network.recompute = whole
        for name, layer in layers.items():
            layer.rule = rule_of(name)
        yield
    finally:
        if segments is not None:
            network.recompute = segments
        for layer in layers.values():
            layer.rule = None


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _file_of(kind: type) -> str:
    """The name of the file that a user's own estimator is written in."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return Path(file).name if file else kind.__name__
