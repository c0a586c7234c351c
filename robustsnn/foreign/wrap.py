"""A network of another library, handed over as it is."""

from __future__ import annotations

from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.foreign.check import check
from robustsnn.foreign.wrapped import Wrapped, found_in, needs_wrapping


def wrap(network: nn.Module, images: Tensor | None = None) -> Wrapped:
    """A network of SpikingJelly, snnTorch, Norse or sinabs whose neurons estimators can reach.

    `evaluate` wraps networks by itself; this is for attacks by other code, and to see what is
    reached: `wrap(network, images).reach.sentence`.

    Args:
        network: The network, from images in [0, 1] to logits; it is not changed, but its state is
            reset at every pass. A network of ours inside a module is taken too.
        images: Some images, `[batch, channel, height, width]`, in [0, 1], for the self-check; by
            default it is made by `evaluate`, or at the first gradient.

    Raises:
        InputError: No neurons are found.

    Examples:
        >>> from robustsnn.models.checkpoint import load_model
        >>> inside = nn.Sequential(load_model("fashion-mnist/vgg5-snn"))
        >>> len(wrap(inside).spiking_layers())
        4
    """
    if isinstance(network, Wrapped):
        wrapped = network
    elif needs_wrapping(network):
        wrapped = Wrapped(network)
        wrapped.reach.check = check
    else:
        raise InputError(
            f"{type(network).__name__} holds no neurons of SpikingJelly, snnTorch, Norse or "
            "sinabs: evaluate it as it is."
        )
    if images is not None:
        check(wrapped, images)
    return wrapped


def adapted(network: nn.Module, source: str = "auto") -> nn.Module:
    """A network as it is evaluated: wrapped if it holds neurons that it does not name.

    Args:
        network: Any network.
        source: `auto`, or `none` to leave neurons to their library, which is cautioned.
    """
    if isinstance(network, Wrapped) or not needs_wrapping(network):
        return network
    reach = found_in(network)
    reach.opted_out = source == "none"
    reach.check, reach.original = check, network
    return Wrapped(network, reach)
