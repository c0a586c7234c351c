"""The network in snnTorch, in the loop over time that its tutorials write.

Its `Leaky` has no setting for the published dynamics, in which a spike subtracts the threshold
from the membrane in the same step, before the leak:

    U = leak * Upost + I;  o = [U > V];  Upost = U - V * o

- `reset_mechanism="subtract"` by default subtracts V one step later and after the leak,
  `U = leak * U' + I - V * [U' > V]`, which is the same only if the leak is 1.
- With `reset_delay=False` it also subtracts before the step if the membrane is still above the
  threshold after the reset, so that strong inputs are reset twice; and it differentiates the reset.

So the reset is written in the loop, with `reset_mechanism="none"` and one line that subtracts. It
takes as many operations as the built-in subtraction; `python -m benchmarks settings` times both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.snn.architectures.description import Residual
from robustsnn.snn.network import Network
from robustsnn.snn.neuron import LIF, FixedDropout
from robustsnn.snn.surrogate import Triangle

NAME = "snntorch"


class Neurons(nn.Module):
    """One layer of `Leaky` neurons."""

    def __init__(self, lif: LIF, builtin_reset: bool) -> None:
        super().__init__()
        shape = lif.surrogate
        if not isinstance(shape, Triangle) or lif.reset != "soft" or not lif.detach_reset:
            raise InputError("snnTorch is given triangles and a detached soft reset only.")
        self.builtin_reset = builtin_reset
        self.leaky = snn.Leaky(
            beta=lif.leak.item(),
            threshold=lif.threshold.item(),
            spike_grad=_triangle(lif.threshold.item(), shape.width, shape.amplitude),
            reset_mechanism="subtract" if builtin_reset else "none",
        )
        # The library keeps every layer that was ever made in a list of its own.
        snn.SpikingNeuron.instances.clear()

    def forward(self, current: Tensor, membrane: Tensor) -> tuple[Tensor, Tensor]:
        """The spikes of one step and the membrane after the reset, `[batch, ...]`."""
        spikes, membrane = self.leaky(current, membrane)
        if not self.builtin_reset:
            membrane = membrane - self.leaky.threshold * spikes.detach()
        return spikes, membrane


class SnnTorchNetwork(nn.Module):
    """Maps images `[batch, channel, height, width]` in [0, 1] to logits `[batch, class]`."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network, builtin_reset: bool = False) -> None:
        super().__init__()
        self.steps = network.time_steps
        self.average = network.config.readout == "mean"
        self.register_buffer("mean", network.mean.clone())
        self.register_buffer("std", network.std.clone())
        self.layers = nn.ModuleList(
            _convert(m, builtin_reset)
            for m in (*network.features, *network.classifier)
            if not isinstance(m, FixedDropout)
        )

    def forward(self, images: Tensor) -> Tensor:
        """The logits of a loop over time, as users of the library write it."""
        x = (images - self.mean) / self.std
        membranes: dict[nn.Module, Tensor] = {}

        def fire(neurons: nn.Module, current: Tensor) -> Tensor:
            before = membranes.get(neurons)
            if before is None:
                before = torch.zeros_like(current)
            spikes: Tensor
            spikes, membranes[neurons] = neurons(current, before)
            return spikes

        logits: Tensor | None = None
        for _ in range(self.steps):
            y = x
            for layer in self.layers:
                if isinstance(layer, Neurons):
                    y = fire(layer, y)
                elif isinstance(layer, Block):
                    y = layer.run(y, fire)
                else:
                    y = layer(y)
            logits = y if logits is None else logits + y
        assert logits is not None
        return logits / self.steps if self.average else logits


class Block(nn.Module):
    """A residual block."""

    def __init__(self, block: Residual, builtin_reset: bool) -> None:
        super().__init__()
        assert isinstance(block.inner, LIF) and isinstance(block.outer, LIF)
        self.first = copy.deepcopy(block.first)
        self.inner = Neurons(block.inner, builtin_reset)
        self.second = copy.deepcopy(block.second)
        self.shortcut = copy.deepcopy(block.shortcut)
        self.outer = Neurons(block.outer, builtin_reset)

    def run(self, x: Tensor, fire: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """The spikes of one step."""
        y = fire(self.inner, self.first(x))
        return fire(self.outer, self.second(y) + self.shortcut(x))


def _convert(module: nn.Module, builtin_reset: bool) -> nn.Module:
    if isinstance(module, LIF):
        return Neurons(module, builtin_reset)
    if isinstance(module, Residual):
        return Block(module, builtin_reset)
    return copy.deepcopy(module)


def _triangle(threshold: float, width: float, amplitude: float) -> Callable[[Tensor], Tensor]:
    """The spike of `U - V` with `do/dU = amplitude / V * max(0, 1 - |U/V - 1| / width)`."""
    slope = amplitude / (width * threshold * threshold)
    peak = amplitude / threshold

    def gradient(shifted: Tensor, upstream: Tensor, spikes: Tensor) -> Tensor:
        return shifted.abs().mul_(-slope).add_(peak).clamp_(min=0).mul_(upstream)

    spike: Callable[[Tensor], Tensor] = surrogate.custom_surrogate(gradient)
    return spike
