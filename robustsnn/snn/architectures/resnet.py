"""ResNet12 without batch normalisation and without biases, as DIET-SNN and HIRE-SNN use it."""

from __future__ import annotations

from torch import nn

from robustsnn.errors import InputError
from robustsnn.snn.architectures.description import (
    Activation,
    Architecture,
    Layers,
    Residual,
    Sizes,
    conv,
    linear,
)
from robustsnn.snn.neuron import FixedDropout

STRIDES = (1, 2, 2, 2)


def _build(sizes: Sizes, activation: Activation) -> Layers:
    """Three convolutions and a pool, then four blocks of two convolutions, then the classifier.

    The first width is also that of the three convolutions in front.
    """
    if len(sizes.widths) != len(STRIDES):
        raise InputError(f"widths: expected {len(STRIDES)} numbers, got {len(sizes.widths)}.")
    channels, height, width = sizes.image
    stem = sizes.widths[0]
    features: list[nn.Module] = []
    for position in range(3):
        features += [conv(channels, stem), activation()]
        features.append(nn.AvgPool2d(2) if position == 2 else FixedDropout(sizes.dropout))
        channels = stem
    height, width = height // 2, width // 2
    for out, stride in zip(sizes.widths, STRIDES, strict=True):
        same = stride == 1 and channels == out
        features.append(
            Residual(
                first=conv(channels, out, stride=stride),
                inner=activation(),
                drop=FixedDropout(sizes.dropout),
                second=conv(out, out),
                shortcut=nn.Identity() if same else conv(channels, out, size=1, stride=stride),
                outer=activation(),
            )
        )
        channels = out
        height, width = -(-height // stride), -(-width // stride)
    if height == 0 or width == 0:
        raise InputError(f"input {sizes.image} is too small for this architecture.")
    units = channels * height * width
    features.append(nn.Flatten(1))
    classifier: list[nn.Module] = []
    for hidden in sizes.classifier:
        classifier += [linear(units, hidden), activation(), FixedDropout(sizes.dropout)]
        units = hidden
    classifier.append(linear(units, sizes.classes))
    return Layers(nn.Sequential(*features), nn.Sequential(*classifier))


ARCHITECTURES = {
    "resnet12": Architecture(
        name="resnet12", widths=(64, 128, 256, 512), classifier=(), build=_build
    )
}
