"""A network of integrate-and-fire neurons written once more in snnTorch, with the same weights.

snnTorch takes off the threshold after the leak, and networks of ours before it. With a leak of 1
that is the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from robustsnn.snn.network import Network
from robustsnn.snn.neuron import LIF
from robustsnn.snn.surrogate import Triangle
from robustsnn.training.recipe import load_recipe

#: The recipe of `fashion-mnist/vgg5-snn-at` with every leak held at 1, and what it gave, in half
#: precision.
FOLDER = Path(__file__).parent / "vgg5-snn-at-if"


def integrate_and_fire() -> Network:
    """The network of ours, in evaluation mode."""
    network = Network(load_recipe(FOLDER / "recipe.yaml").network)
    halves = load_file(FOLDER / "weights.safetensors")
    network.load_state_dict({name: value.float() for name, value in halves.items()})
    return network.eval().requires_grad_(False)


class Rewritten(nn.Module):
    """Images `[batch, channel, height, width]` in [0, 1] to logits `[batch, class]`.

    Args:
        network: A network of ours without shortcuts and with leaks of 1, whose weights are shared.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.steps, self.mean, self.std = network.time_steps, network.mean, network.std
        parts: list[Any] = []
        for module in (*network.features, *network.classifier):
            if isinstance(module, LIF):
                parts.append(_neurons(module))
            elif isinstance(module, nn.Conv2d | nn.Linear | nn.AvgPool2d | nn.Flatten):
                parts.append(module)
        self.layers = nn.ModuleList(parts)

    def forward(self, images: Tensor) -> Tensor:
        """The summed current of the last layer."""
        import snntorch

        neurons = [one for one in self.layers if isinstance(one, snntorch.Leaky)]
        membranes = {one: one.reset_mem() for one in neurons}
        image = (images - self.mean) / self.std
        total = image.new_zeros(())
        for _ in range(self.steps):
            x = image
            for layer in self.layers:
                if layer in membranes:
                    x, membranes[layer] = layer(x, membranes[layer])
                else:
                    x = layer(x)
            total = total + x
        return total


def _neurons(lif: LIF) -> Any:
    import snntorch
    from snntorch import surrogate

    assert isinstance(lif.surrogate, Triangle) and lif.reset == "soft" and lif.detach_reset
    assert lif.leak.item() == 1
    threshold, width, amplitude = lif.threshold.item(), lif.surrogate.width, lif.surrogate.amplitude

    def triangle(x: Tensor, grad: Tensor, spikes: Tensor) -> Tensor:
        slope: Tensor = amplitude * (1 - (x / threshold).abs() / width).clamp_min(0) / threshold
        return grad * slope

    return snntorch.Leaky(
        beta=1.0, threshold=threshold, spike_grad=surrogate.custom_surrogate(triangle)
    )
