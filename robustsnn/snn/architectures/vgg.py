"""VGG without batch normalisation and without biases, as HIRE-SNN publishes it."""

from __future__ import annotations

from functools import partial

from torch import nn

from robustsnn.errors import InputError
from robustsnn.snn.architectures.description import (
    Activation,
    Architecture,
    Layers,
    Sizes,
    conv,
    linear,
)
from robustsnn.snn.neuron import FixedDropout

POOL = 0


def _build(pattern: tuple[int, ...], sizes: Sizes, activation: Activation) -> Layers:
    """A convolution, a slot and a dropout for each layer; a pool takes the dropout's place."""
    convolutions = sum(1 for p in pattern if p != POOL)
    if len(sizes.widths) != convolutions:
        raise InputError(f"widths: expected {convolutions} numbers, got {len(sizes.widths)}.")
    channels, height, width = sizes.image
    features: list[nn.Module] = []
    widths = iter(sizes.widths)
    for entry in pattern:
        if entry == POOL:
            features[-1] = nn.AvgPool2d(2)
            height, width = height // 2, width // 2
        else:
            out = next(widths)
            features += [conv(channels, out), activation(), FixedDropout(sizes.dropout)]
            channels = out
    if height == 0 or width == 0:
        raise InputError(f"input {sizes.image} is too small for the pools of this architecture.")
    units = channels * height * width
    features.append(nn.Flatten(1))
    classifier: list[nn.Module] = []
    for hidden in sizes.classifier:
        classifier += [linear(units, hidden), activation(), FixedDropout(sizes.dropout)]
        units = hidden
    classifier.append(linear(units, sizes.classes))
    return Layers(nn.Sequential(*features), nn.Sequential(*classifier))


def _vgg(name: str, pattern: tuple[int, ...]) -> Architecture:
    return Architecture(
        name=name,
        widths=tuple(p for p in pattern if p != POOL),
        classifier=(4096, 4096),
        build=partial(_build, pattern),
    )


# These are the layer lists of HIRE-SNN (ICCV 2021). Its VGG11 has 8 convolutions and 3 pools and
# is not the VGG11 of DIET-SNN.
ARCHITECTURES = {
    a.name: a
    for a in (
        _vgg("vgg5", (64, POOL, 128, 128, POOL)),
        _vgg("vgg11", (64, POOL, 128, 256, POOL, 512, 512, 512, POOL, 512, 512)),
        _vgg(
            "vgg16",
            (64, 64, POOL, 128, 128, POOL, *(256,) * 3, POOL, *(512,) * 3, POOL, *(512,) * 3),
        ),
    )
}
