"""How many images go through a network at a time: few enough for the caches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustsnn.snn.network import Network

#: The images of a pass for a network of another library, whose layers we cannot look into.
MICRO_BATCH = 32
#: The most images of a pass. More are not faster, and the last batch of survivors is padded to full
#: size.
LARGEST = 32
#: The fewest images of a forward pass, the copies that pad it included. Smaller passes are computed
#: by other kernels, whose sums round differently: that flips spikes at a threshold and, after
#: hundreds of steps, verdicts.
FEWEST = 4
#: The size of the largest layer over all time steps. By measurement: with less, the cost of each
#: call shows; with more, nothing is gained and memory is lost.
BUDGET_BYTES = 32 * 2**20


def micro_batch_for(network: nn.Module) -> int:
    """The images of a forward pass: a power of two that depends on the network, never on timing.

    A spike at the threshold can flip with the shape of a batch, so the same network must get the
    same number everywhere.

    Args:
        network: Any network; one that is not a `Network` gets `MICRO_BATCH`.
    """
    if not isinstance(network, Network):
        return MICRO_BATCH
    fitting = max(1, BUDGET_BYTES // (4 * largest_layer(network)))
    return int(min(LARGEST, 2 ** (fitting.bit_length() - 1)))


def padding(images: int, micro_batch: int) -> int:
    """The number of copies of the last image that give every pass of an evaluation one shape.

    >>> padding(30, 32), padding(1, 1), padding(0, 32)
    (2, 3, 0)

    Args:
        images: The images of the pass, at most `micro_batch`; a pass without images needs no copy.
        micro_batch: The most images of a pass.
    """
    return max(micro_batch, FEWEST) - images if images else 0


def bounded(micro_batch: int, images: int) -> int:
    """The images of a pass that is asked for, but no more than there are.

    A pass of the size that suits a network (see `micro_batch_for`) is left as it is.

    >>> bounded(10_000, 200), bounded(16, 4)
    (200, 16)

    Args:
        micro_batch: The images of a pass.
        images: The number of images in all.
    """
    return max(1, min(micro_batch, max(images, LARGEST)))


def largest_layer(network: Network) -> int:
    """The number of values in the largest activation of one image, over the steps kept at once.

    A layer before the first spikes sees a static image, and has one step only.
    """
    kept = network.time_steps if network.recompute is None else network.recompute
    kept = min(kept, network.time_steps)
    sizes = [network.input_shape[0] * network.input_shape[1] * network.input_shape[2]]

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        sizes.append(output[0].numel() * (1 if len(output) == 1 else kept))

    handles = [
        module.register_forward_hook(hook)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    first = next(network.parameters())
    image = torch.zeros(1, *network.input_shape, dtype=first.dtype, device=first.device)
    try:
        with torch.no_grad():
            network.run(image, steps=min(2, network.time_steps))
    finally:
        for handle in handles:
            handle.remove()
    return max(sizes)
