"""Logits that carry the synaptic operations of each image, for attacks on what a network spends."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.snn.backward_rule import spiking_layers
from robustsnn.snn.network import Network
from robustsnn.snn.operations import FanOuts, operations_of_rows, with_synapses


class Counted(NamedTuple):
    """What a pass of each image says about it.

    Args:
        operations: The synaptic operations, float64 `[batch]`; over several draws, their mean.
        logits: The logits, `[batch, class]`.
    """

    operations: Tensor
    logits: Tensor


class Counting:
    """A network whose logits have one more column: the synaptic operations of each image.

    Whatever is done to logits (batches, draws, differences) is then done to the operations too, so
    that every estimator gives their gradient. Their value is the exact count of
    `robustsnn.snn.operations`. A spike does not have a derivative, nor does the question whether an
    input is zero: the gradient is that of the sum of all spikes, or means of spikes, each times its
    fan-out, and the estimator carries it through the neurons. The image itself, if it enters the
    first layer as it is, has no spikes to add.

    Args:
        network: The network under attack, whose weights must not change meanwhile.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._fans = FanOuts()

    def check(self) -> None:
        """Refuse a network whose spikes cannot be counted.

        Raises:
            InputError: The network does not spike, or is not one of RobustSNN.
        """
        if not spiking_layers(self._network):
            raise InputError(
                "the network has no spikes, so there are none to raise: attack the energy of a "
                "spiking network."
            )
        if not isinstance(self._network, Network):
            raise InputError(
                "synaptic operations are counted in networks of RobustSNN only: import the weights "
                "into one."
            )

    def __call__(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits and operations, float64 `[batch, class + 1]`; a gradient may flow.

        Args:
            images: The images, `[batch, channel, height, width]`, in pixel units.
            keys: The keys of their draws, if the network draws.
        """
        network: Any = self._network
        steps, drawn = int(network.time_steps), bool(network.stochastic)
        counts: list[Tensor] = []

        def enters(layer: Any, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            first, passes = not counts, len(x) // len(images)
            # An estimator may show all steps at once, as one mean.
            each = 1 if first and not drawn else steps // passes
            signs = x.detach().sign() if first and drawn else None
            fan = self._fans.of(layer, x) * each
            counts.append(
                operations_of_rows(x, fan, len(images))
                if first and not drawn
                else _Count.apply(x, fan, len(images), signs)
            )

        layers = with_synapses(network).values()
        handles = [layer.register_forward_pre_hook(enters) for layer in layers]
        segments, network.recompute = network.recompute, None
        try:
            logits: Tensor = network(images, keys=keys) if drawn else network(images)
        finally:
            network.recompute = segments
            for handle in handles:
                handle.remove()
        operations = torch.stack(counts).sum(0)
        return torch.cat([logits.to(operations.dtype), operations[:, None]], dim=1)


class _Count(torch.autograd.Function):
    """The inputs that are not zero, each times its fan-out; the gradient is that of their sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fan: Tensor, images: int, signs: Tensor | None) -> Tensor:
        ctx.save_for_backward(fan, signs)
        ctx.shape, ctx.dtype, ctx.images = x.shape, x.dtype, images
        return operations_of_rows(x, fan, images)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        fan, signs = ctx.saved_tensors
        each = grads[0].reshape(-1, *[1] * fan.dim()) * fan
        found = each.to(ctx.dtype).expand(ctx.shape[0] // ctx.images, *each.shape)
        found = found.reshape(ctx.shape)
        return found if signs is None else found * signs, None, None, None


def activity_of(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss that a step towards more synaptic operations raises: the last column, `[batch]`."""
    return logits[:, -1]


def apart(extended: Tensor, dtype: torch.dtype) -> Counted:
    """Operations and logits apart.

    Examples:
        >>> apart(torch.tensor([[0.5, 2.0, 40.0]]), torch.float32).operations
        tensor([40.])
    """
    return Counted(extended[:, -1], extended[:, :-1].to(dtype))
