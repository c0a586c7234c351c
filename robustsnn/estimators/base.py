"""What an estimator is: a backward rule at every spiking layer, or another way to a gradient.

An estimator is independent of the attack that uses it. It is in force only inside the victim's own
calls, and every record names it. The forward pass is always the network's own, spike for spike; an
estimator only chooses how gradients pass backward through a spike.
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
"""A function from logits `[batch, class]` and labels `[batch]` to losses of images, `[batch]`."""

Found = tuple[Tensor, Tensor, Tensor]
"""Loss `[batch]`, logits `[batch, class]`, and the gradient of the loss with respect to images."""


class Passes(Protocol):
    """What a victim lends to an estimator: the counted passes of one micro-batch of images."""

    @property
    def network(self) -> nn.Module:
        """The network under attack, frozen and in evaluation mode."""

    @property
    def stochastic(self) -> bool:
        """Whether the network draws at every pass."""

    @property
    def rows(self) -> Tensor:
        """The position of each image among the images of the victim, int64 `[batch]`."""

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
        """Logits `[batch, class]` from batches of one shape; passes are not counted here.

        A gradient may flow.

        Args:
            images: The images, `[batch, channel, height, width]`, in pixel units.
            keys: The keys of their draws, from `spend`.
            whole: Whether the images go through the network in a single batch of exactly their
                number, without padding.
        """

    def padded(self) -> Tensor:
        """`rows`, followed by those of the copies that pad the batch, int64 `[padded batch]`."""

    def nonfinite(self, counts: Tensor) -> None:
        """Add to the number of gradients of each image that held NaN or infinity, `[batch]`."""


class Estimator:
    """A way to differentiate a network; a frozen dataclass whose fields are its settings.

    The usual estimator overrides `rule`, which replaces the backward pass of every layer of
    spiking neurons. An estimator that does something else to the network overrides `applied`, and
    one that finds its gradient without a backward pass overrides `gradient`.

    `faithful` says that the logits inside `applied` are the network's own; if they are not, the
    victim makes another pass for those. `draws` is the number of draws of a stochastic network
    that one gradient is averaged over. `remembers` says that values of every neuron are kept for
    each image while an attack goes on, so that fewer images fit into memory. `spikes` says which
    networks the estimator is for: those with spiking layers that it can reach (True), those
    without (False), or both (None).

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
        """The name in records: the kind and the settings that differ from their defaults."""
        return self.named(every=False)

    def named(self, every: bool) -> str:
        """The kind and the settings, such as `hart:width=0.5`.

        Args:
            every: Whether settings with their default values are named too.
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
            InputError: The estimator does not fit such a network.
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
        """The gradient that passes backward through one layer of neurons.

        Args:
            grad: The gradient of the layer's spikes, `[time, batch, ...]`.
            trace: The trace of the layer: its currents, spikes, membranes before reset, threshold
                and leak.

        Returns:
            The gradient of the layer's input current, `[time, batch, ...]`.
        """
        raise InputError(
            f"the estimator {self.name} defines neither rule nor applied: write one of them."
        )

    def applied(
        self, network: nn.Module, rows: Tensor | None = None
    ) -> AbstractContextManager[None]:
        """A context in which the network is differentiated by this estimator.

        Nothing in the network outlives the context.

        Args:
            network: The network that is differentiated.
            rows: The position, among the images of the victim, of each image of the next forward
                pass, int64 `[batch]`.
        """
        return ruled_layers(network, lambda _: self.rule)

    def forget(self, rows: Tensor) -> None:
        """Forget what is remembered of those images, if anything is."""

    def gradient(self, passes: Passes, images: Tensor, labels: Tensor, loss: Loss) -> Found:
        """Loss, logits and gradient of a micro-batch; by default from one backward pass.

        Args:
            passes: The victim's passes of these images.
            images: The images, `[batch, channel, height, width]`, in pixel units; the tensor may
                be changed.
            labels: The true classes, int64 `[batch]`.
            loss: The loss that a step along the gradient raises.
        """
        return by_backward_pass(self, passes, images, labels, loss)


class Applied(Protocol):
    """The part of an estimator that a backward pass needs."""

    faithful: bool

    def applied(
        self, network: nn.Module, rows: Tensor | None = None
    ) -> AbstractContextManager[None]:
        """A context in which the network is differentiated; see `Estimator.applied`."""


def by_backward_pass(
    estimator: Applied, passes: Passes, x: Tensor, labels: Tensor, loss: Loss
) -> Found:
    """Loss, logits and gradient of a micro-batch by one backward pass.

    Args:
        estimator: The estimator.
        passes: The victim's passes of these images.
        x: The images, `[batch, channel, height, width]`, in pixel units.
        labels: The true classes, int64 `[batch]`.
        loss: The loss that a step along the gradient raises.
    """
    keys = passes.spend(forward=1, backward=1)
    own: Tensor | None = None
    if not estimator.faithful:
        with torch.no_grad():
            own = passes.logits(x, keys)
        passes.spend(forward=1)
    x.requires_grad_()
    with estimator.applied(passes.network, passes.padded()):
        logits = passes.logits(x, keys)
        # Of the sum, each image gets its own gradient; that of a mean would depend on the batch.
        values = loss(logits, labels)
        gradient = reached(values, x)
    if own is not None:
        logits, values = own, loss(own, labels)
    return values.detach(), logits.detach(), gradient


def reached(values: Tensor, x: Tensor) -> Tensor:
    """The gradient of the sum of values with respect to x; all zero if it does not reach x.

    Examples:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> reached(x**2, x)
        tensor([2., 4.])
    """
    found = (
        torch.autograd.grad(values.sum(), x, allow_unused=True)[0] if values.requires_grad else None
    )
    return torch.zeros_like(x) if found is None else found.detach()


@contextmanager
def ruled_layers(network: nn.Module, rule_of: Callable[[str], BackwardRule]) -> Iterator[None]:
    """Give every spiking layer a backward rule inside the block, over the whole sequence.

    Segments that are computed again for a gradient would show a rule only a part of the time
    steps.

    Args:
        network: A network, which may name spiking layers.
        rule_of: The function from the name of a layer to its rule.
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
