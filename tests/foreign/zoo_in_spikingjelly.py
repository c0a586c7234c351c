"""Networks of the zoo written once more in SpikingJelly, with the same weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustsnn.snn.network import Network
from robustsnn.snn.neuron import LIF
from robustsnn.snn.surrogate import Triangle

#: The tau of a membrane that keeps nothing; the library asks for one above 1.
NO_LEAK = 1.0000001


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: float, width: float, amplitude: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.settings = threshold, width, amplitude
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        threshold, width, amplitude = ctx.settings
        slope = amplitude * (1 - (x / threshold).abs() / width).clamp_min(0) / threshold
        return grads[0] * slope, None, None, None


class TriangleOfTheZoo(nn.Module):
    """A spike function of a user's own, which is not one of the library."""

    def __init__(self, threshold: float, surrogate: Triangle) -> None:
        super().__init__()
        self.settings = threshold, surrogate.width, surrogate.amplitude

    def forward(self, x: Tensor) -> Tensor:
        """Spikes of the membrane minus the threshold."""
        found: Tensor = _Spike.apply(x, *self.settings)
        return found


class Rewritten(nn.Module):
    """Images `[batch, channel, height, width]` in [0, 1] to logits `[batch, class]`.

    Args:
        network: A network of the zoo without shortcuts, whose weights are shared.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        from spikingjelly.activation_based import functional, layer

        self.steps, self.mean, self.std = network.time_steps, network.mean, network.std
        parts: list[Any] = []
        for module in (*network.features, *network.classifier):
            if isinstance(module, nn.Conv2d):
                sizes = module.in_channels, module.out_channels, module.kernel_size[0]
                parts.append(layer.Conv2d(*sizes, padding=module.padding, bias=False))
                parts[-1].weight = module.weight
            elif isinstance(module, nn.Linear):
                parts.append(layer.Linear(module.in_features, module.out_features, bias=False))
                parts[-1].weight = module.weight
            elif isinstance(module, LIF):
                parts.append(_neurons(module))
            elif isinstance(module, nn.AvgPool2d):
                parts.append(layer.AvgPool2d(module.kernel_size))
            elif isinstance(module, nn.Flatten):
                parts.append(layer.Flatten())
        self.layers = nn.Sequential(*parts)
        functional.set_step_mode(self, "m")

    def forward(self, images: Tensor) -> Tensor:
        """The summed current of the last layer; the state is not reset here."""
        x = (images - self.mean) / self.std
        found: Tensor = self.layers(x.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1)).sum(0)
        return found


def _neurons(lif: LIF) -> Any:
    from spikingjelly.activation_based import neuron

    assert isinstance(lif.surrogate, Triangle) and lif.reset == "soft"
    threshold, leak = lif.threshold.item(), lif.leak.item()
    common: dict[str, Any] = {
        "v_threshold": threshold,
        "v_reset": None,
        "surrogate_function": TriangleOfTheZoo(threshold, lif.surrogate),
        "detach_reset": lif.detach_reset,
    }
    if leak == 1:
        return neuron.IFNode(**common)
    return neuron.LIFNode(tau=NO_LEAK if leak == 0 else 1 / (1 - leak), decay_input=False, **common)
