"""A network of another library, handed over as it is."""

from __future__ import annotations

from typing import Any, overload

from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.foreign.check import check
from robustsnn.foreign.wrapped import Wrapped, found_in, needs_wrapping
from robustsnn.models.shapes import Shape, Shaped


@overload
def wrap(network: nn.Module, images: Tensor | None = None) -> Wrapped: ...


@overload
def wrap(
    network: nn.Module,
    images: Tensor | None = None,
    *,
    steps: int | None = None,
    encode: str | None = None,
    decode: str | None = None,
    output: str | int | None = None,
    input: str | None = None,
) -> Wrapped | Shaped: ...


def wrap(
    network: nn.Module,
    images: Tensor | None = None,
    *,
    steps: int | None = None,
    encode: str | None = None,
    decode: str | None = None,
    output: str | int | None = None,
    input: str | None = None,
) -> Wrapped | Shaped:
    """A network of SpikingJelly, snnTorch, Norse or sinabs whose neurons estimators can reach.

    `evaluate` and `compare` wrap networks by themselves. By hand it is for a network with a time
    axis, for attacks by other code, and to see what is reached:
    `wrap(network, images).reach.sentence`. The keywords are the fields of a name such as
    `nets:build:steps=8,decode=membrane-max`.

    Args:
        network: The network, which is not changed, but reset before every pass. It takes images in
            [0, 1] to logits, unless the keywords say how its time axis is read.
        images: Some images, `[batch, channel, height, width]`, in [0, 1], for the self-check; by
            default it is made by `evaluate`, or at the first gradient.
        steps: The number of time steps, if the network does not make them itself.
        encode: How an image becomes a sequence: `direct`, `poisson` or `latency`.
        decode: How what it returns becomes logits: `spikes-sum`, `spikes-mean`, `membrane-sum`,
            `membrane-max` or `membrane-last`.
        output: The place in a tuple, or the key in a dict, of what is decoded.
        input: Whether it takes one `step` at a call or a whole `sequence`, `[time, batch, ...]`.

    Returns:
        The network from images to logits. One without neurons that are known is a plain
        `robustsnn.models.shapes.Shaped`.

    Raises:
        InputError: A keyword has a value that cannot be right, or neither neurons are found nor a
            keyword is given.

    Examples:
        >>> from robustsnn.models.checkpoint import load_model
        >>> inside = nn.Sequential(load_model("fashion-mnist/vgg5-snn"))
        >>> len(wrap(inside).spiking_layers())
        4
        >>> wrap(nn.Flatten(), steps=8, encode="poisson", decode="spikes-mean").stochastic
        True
    """
    if images is not None and not (isinstance(images, Tensor) and images.dim() == 4):
        raise InputError("images must be a tensor [batch, channel, height, width] in [0, 1].")
    settings: dict[str, Any] = {"steps": steps, "encode": encode, "decode": decode, "input": input}
    settings["output"] = None if output is None else str(output)
    shape = Shape(**settings) if any(one is not None for one in settings.values()) else None
    if shape is not None:
        if isinstance(network, Wrapped | Shaped):
            raise InputError(
                f"{network.inner_name} is wrapped already: give wrap the network itself, with all "
                "keywords at once."
            )
        network = Shaped(network, shape)
    if needs_wrapping(network):
        network = Wrapped(network)
        network.reach.check = check
    elif shape is None and not isinstance(network, Wrapped):
        raise InputError(
            f"{type(network).__name__} holds no neurons of SpikingJelly, snnTorch, Norse or "
            "sinabs: evaluate it as it is."
        )
    assert isinstance(network, Wrapped | Shaped)
    if images is not None and isinstance(network, Wrapped):
        check(network, images)
    return network


def adapted(network: nn.Module, source: str = "auto") -> nn.Module:
    """A network as it is evaluated: wrapped if it holds neurons that it does not name.

    A network that is wrapped already is wrapped anew, since it may have changed after its check.

    Args:
        network: Any network.
        source: `auto`, or `none` to leave neurons to their library, which is cautioned.
    """
    left = source == "none"
    if isinstance(network, Wrapped):
        left = left or network.reach.opted_out
        network = network.inner
    if not needs_wrapping(network):
        return network
    reach = found_in(network)
    reach.opted_out = left
    reach.check, reach.original = check, network
    return Wrapped(network, reach)
