"""Operations of a network on real images: counted layer by layer and image by image, exactly.

A synaptic operation is one input that is not zero meeting one weight that is not zero. How often an
input meets a weight is its fan-out, which is smaller at the border of a padded convolution. So the
operations of an image are the sum of the fan-outs of its inputs that are not zero, over all steps.

The names are those of NeuroBench. Where its counting, that of SpikingJelly and this one differ is
said in `docs/energy.md`, and tests hold each difference to its cause.
Source: Yik et al., NeuroBench, Nature Communications 2025.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsnn.snn.network import Network
from robustsnn.snn.neuron import LIF

#: The values that a layer receives: pixels or activations, spikes in {-1, 0, 1}, or the means of
#: spikes that an average pool leaves.
Inputs = Literal["analog", "spikes", "pooled"]


class LayerOperations(NamedTuple):
    """What one layer with synapses does for one image; counts are means over the images.

    Attributes:
        name: The name of the layer.
        inputs: What the layer receives: `analog`, `spikes` or `pooled`.
        passes: How often the layer is computed for one image. A static image is the same at every
            step, so that a layer that sees it is computed once; any other layer once for each step.
        weights: The number of its weights.
        kept: The number of its weights that are not zero.
        dense: The operations of all passes if neither weights nor inputs were zero.
        synaptic: The operations of inputs that are not zero with weights that are not zero.
        bias_reads: The number of biases that are added: one for each output and pass.
    """

    name: str
    inputs: Inputs
    passes: int
    weights: int
    kept: int
    dense: float
    synaptic: float
    bias_reads: float


@dataclass(frozen=True)
class Operations:
    """What a network does for one image; counts are means over the images.

    Args:
        images: The number of images that were counted.
        layers: The layers with synapses, in the order in which they run.
        membrane_updates: The membranes that are read and written: one for each neuron and step.
        activation_sparsity: The share of the outputs of neurons that are zero, over all steps, in
            [0, 1]; NaN without neurons.
        footprint_bytes: The size of all parameters and buffers.

    Examples:
        >>> layer = LayerOperations("fc", "spikes", 4, 200, 20, 800.0, 60.0, 0.0)
        >>> found = Operations(1, (layer,), 80.0, 0.9, 800)
        >>> found.effective_acs, found.connection_sparsity
        (60.0, 0.9)
    """

    images: int
    layers: tuple[LayerOperations, ...]
    membrane_updates: float
    activation_sparsity: float
    footprint_bytes: int

    @property
    def dense(self) -> float:
        """The operations if neither weights nor inputs were zero."""
        return sum(layer.dense for layer in self.layers)

    @property
    def synaptic_operations(self) -> float:
        """The operations of inputs that are not zero with weights that are not zero."""
        return sum(layer.synaptic for layer in self.layers)

    @property
    def effective_macs(self) -> float:
        """The synaptic operations of layers whose inputs are not spikes: multiply-accumulates."""
        return sum(layer.synaptic for layer in self.layers if layer.inputs != "spikes")

    @property
    def effective_acs(self) -> float:
        """The synaptic operations of layers whose inputs are spikes: accumulates."""
        return sum(layer.synaptic for layer in self.layers if layer.inputs == "spikes")

    @property
    def pooled_operations(self) -> float:
        """The part of `effective_macs` whose inputs are means of spikes."""
        return sum(layer.synaptic for layer in self.layers if layer.inputs == "pooled")

    @property
    def bias_reads(self) -> float:
        """The number of biases that are added."""
        return sum(layer.bias_reads for layer in self.layers)

    @property
    def connection_sparsity(self) -> float:
        """The share of the weights that are zero, in [0, 1]; NaN without weights."""
        weights = sum(layer.weights for layer in self.layers)
        kept = sum(layer.kept for layer in self.layers)
        return 1 - kept / weights if weights else float("nan")

    def counts(self) -> dict[str, float]:
        """The numbers of the whole network by name, as the manifest of a run holds them."""
        named = (
            "synaptic_operations effective_macs effective_acs pooled_operations dense bias_reads "
            "membrane_updates connection_sparsity activation_sparsity footprint_bytes"
        ).split()
        found = {name: float(getattr(self, name)) for name in named}
        return {name: value for name, value in found.items() if value == value}


def fan_out(layer: nn.Conv2d | nn.Linear, shape: torch.Size, dense: bool = False) -> Tensor:
    """The number of weights that are not zero which each input of a layer meets.

    Args:
        layer: A convolution or a linear layer.
        shape: The shape of one input, such as `[channel, height, width]`.
        dense: Whether weights that are zero count too.

    Returns:
        The counts, shaped like one input.

    Examples:
        >>> layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        >>> fan_out(layer, torch.Size([1, 3, 3]), dense=True)[0].int().tolist()
        [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    """
    weight = layer.weight.detach()
    with torch.inference_mode(False), torch.enable_grad():
        there = (torch.ones_like(weight) if dense else weight != 0).to(_exact(weight.device))
        x = torch.zeros(1, *shape, dtype=there.dtype, device=there.device, requires_grad=True)
        if isinstance(layer, nn.Linear):
            y = F.linear(x, there)
        else:
            y = layer._conv_forward(x, there, None)
        # The derivative of the sum of all outputs by an input is the sum of the weights it meets.
        return torch.autograd.grad(y.sum(), x)[0][0]


def _exact(device: torch.device) -> torch.dtype:
    """A type in which counts are exact; Apple's devices have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(eq=False)
class FanOuts:
    """The fan-outs of the layers of a network, each computed when it is first needed.

    The weights must not change meanwhile.
    """

    _known: dict[tuple[nn.Module, torch.Size], Tensor] = field(default_factory=dict)

    def of(self, layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
        """The fan-outs of a layer for an input `[row, ...]`, shaped like one row."""
        key = (layer, x.shape[1:])
        if key not in self._known:
            self._known[key] = fan_out(layer, x.shape[1:])
        return self._known[key]


def with_synapses(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers whose operations are counted, by name.

    Examples:
        >>> list(with_synapses(nn.Sequential(nn.Flatten(), nn.Linear(4, 2))))
        ['1']
    """
    return {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def operations_of_rows(x: Tensor, fan: Tensor, images: int) -> Tensor:
    """The synaptic operations of each image in one layer, over all steps, `[image]`.

    Args:
        x: The inputs of the layer, `[time x image, ...]`, all images of a step together.
        fan: The fan-out of each input, shaped like one row.
        images: The number of images.
    """
    active = torch.unflatten(x != 0, 0, (-1, images)).sum(0, dtype=fan.dtype)
    return torch.mul(active, fan).flatten(1).sum(1)


@contextmanager
def counted(network: Network) -> Iterator[list[Tensor]]:
    """Count the synaptic operations of every forward pass inside the block.

    The passes are those of the network: hooks only look at the inputs of its layers.

    Args:
        network: The network, whose weights must not change meanwhile.

    Yields:
        The operations of each image of each pass so far, one tensor `[image]` for each pass.
    """
    passes: list[Tensor] = []
    fans = FanOuts()

    def begins(module: nn.Module, args: tuple[Any, ...]) -> None:
        images = args[0]
        passes.append(torch.zeros(len(images), dtype=_exact(images.device), device=images.device))

    def enters(module: Any, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach()
        passes[-1] += operations_of_rows(x, fans.of(module, x), len(passes[-1]))

    handles = [network.register_forward_pre_hook(begins)]
    handles += [
        layer.register_forward_pre_hook(enters) for layer in with_synapses(network).values()
    ]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def operations_per_image(
    network: Network, images: Tensor, keys: Tensor | None = None, batch_size: int = 64
) -> Tensor:
    """The synaptic operations of each image, over all layers and steps, float64 `[image]`.

    Args:
        network: An ANN or an SNN; its mode is left as it was.
        images: The images, `[image, channel, height, width]`, in pixel units of [0, 1].
        keys: The keys of a stochastic encoding; see `Network.forward`.
        batch_size: The number of images in a forward pass.
    """
    with _evaluated(network), counted(network) as passes:
        for start in range(0, len(images), batch_size):
            some = slice(start, start + batch_size)
            network(images[some], None if keys is None else keys[some])
    return torch.cat(passes) if passes else torch.zeros(0, dtype=torch.float64)


def count_operations(
    network: Network, images: Tensor, keys: Tensor | None = None, batch_size: int = 64
) -> Operations:
    """The operations of a network per image, counted on real images.

    Args:
        network: An ANN or an SNN; its mode is left as it was.
        images: The images, `[image, channel, height, width]`, in pixel units of [0, 1].
        keys: The keys of a stochastic encoding; see `Network.forward`.
        batch_size: The number of images in a forward pass.
    """
    with torch.no_grad(), _evaluated(network), tallied(network) as tally:
        for start in range(0, len(images), batch_size):
            some = slice(start, start + batch_size)
            network(images[some], None if keys is None else keys[some])
    return tally.operations(network)


@contextmanager
def _evaluated(network: Network) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


@contextmanager
def tallied(network: Network) -> Iterator[Tally]:
    """Tally every forward pass inside the block, layer by layer.

    Args:
        network: The network, in evaluation mode; its weights must not change meanwhile.
    """
    tally = Tally()
    handles = [network.register_forward_pre_hook(tally.begins)]
    for name, layer in with_synapses(network).items():
        handles.append(layer.register_forward_hook(tally.synapse(name)))
    for module in network.modules():
        if isinstance(module, LIF | nn.ReLU):
            handles.append(module.register_forward_hook(tally.neurons))
    try:
        yield tally
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Layer:
    """The totals of one layer over the images so far."""

    module: nn.Conv2d | nn.Linear
    after_spikes: bool
    passes: int
    dense: float
    biases: int
    binary: bool = True
    synaptic: float = 0.0


class Tally:
    """Totals over the images of all passes, filled by hooks."""

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}
        self._fans = FanOuts()
        self._images = self._size = 0
        self._spiked = False
        self._activations = self._zeros = self._updates = 0

    def begins(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A pass begins: the hook before the forward pass of the network."""
        self._size = len(args[0])
        self._images += self._size
        self._spiked = False

    def synapse(self, name: str) -> Callable[..., None]:
        """The hook after a layer with synapses."""

        def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0].detach()
            if name not in self._layers:
                passes = len(x) // self._size
                self._layers[name] = _Layer(
                    module,
                    self._spiked,
                    passes,
                    passes * float(fan_out(module, x.shape[1:], dense=True).sum()),
                    0 if module.bias is None else passes * output[0].numel(),
                )
            layer = self._layers[name]
            layer.binary &= bool(((x == 0) | (x.abs() == 1)).all())
            layer.synaptic += float(
                operations_of_rows(x, self._fans.of(module, x), self._size).sum()
            )

        return hook

    def neurons(self, module: nn.Module, args: Any, output: Any) -> None:
        """The hook after a layer of neurons, spiking or not."""
        fired = output[0] if isinstance(output, tuple) else output
        self._activations += fired.numel()
        self._zeros += fired.numel() - int(torch.count_nonzero(fired))
        if isinstance(module, LIF):
            self._spiked = True
            self._updates += fired.numel()

    def operations(self, network: Network) -> Operations:
        """The means over the images so far."""
        images = max(1, self._images)
        held = [*network.parameters(), *network.buffers()]
        return Operations(
            images=self._images,
            layers=tuple(
                LayerOperations(
                    name=name,
                    inputs=_inputs(network, layer),
                    passes=layer.passes,
                    weights=layer.module.weight.numel(),
                    kept=int(torch.count_nonzero(layer.module.weight)),
                    dense=layer.dense,
                    synaptic=layer.synaptic / images,
                    bias_reads=float(layer.biases),
                )
                for name, layer in self._layers.items()
            ),
            membrane_updates=self._updates / images,
            activation_sparsity=(
                self._zeros / self._activations if self._activations else float("nan")
            ),
            footprint_bytes=sum(tensor.numel() * tensor.element_size() for tensor in held),
        )


def _inputs(network: Network, layer: _Layer) -> Inputs:
    """What a layer receives: every layer of an ANN counts as analog, as does a static image."""
    if network.kind == "ann" or not (layer.binary or layer.after_spikes):
        return "analog"
    return "spikes" if layer.binary else "pooled"
