"""The images that a model is evaluated on, checked against the network."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from robustsnn.data.datasets import check_images, load_dataset
from robustsnn.data.images import Images, TensorSet
from robustsnn.errors import InputError
from robustsnn.models.subject import Subject


def images_of(
    data: Images | tuple[Tensor, Tensor] | str | None,
    subject: Subject,
    *,
    root: Path | None = None,
    samples: int | None = None,
) -> Images:
    """The images that a model is evaluated on.

    Args:
        data: A data set, its name, images `[n, channel, height, width]` in [0, 1] with labels
            `[n]`, or None for the data set that the model was trained on.
        subject: The model.
        root: The folder of the data set; None for the sample that ships.
        samples: The number of images, from the first one on; None for all.

    Raises:
        InputError: There is no such data set, or its images have another form.
    """
    if isinstance(data, tuple):
        return _from_tensors(*data, subject, samples)
    if data is not None and not isinstance(data, str):
        if samples is None or samples == len(data):
            return data
        first = getattr(data, "first", None)
        if first is None:
            raise InputError("samples goes with a data set by name: cut your own beforehand.")
        cut: Images = first(samples)
        return cut
    if data is None:
        data = subject.meta.get("data")
        if not data:
            raise InputError(f"{subject.name} does not say what it was trained on: add --data.")
    return load_dataset(data, root, samples=samples)


def _from_tensors(
    pixels: Tensor, labels: Tensor, subject: Subject, samples: int | None
) -> TensorSet:
    check_images(pixels)
    if labels.shape != (len(pixels),) or labels.is_floating_point():
        raise InputError(
            f"labels must be {len(pixels)} whole numbers, one an image, "
            f"not {list(labels.shape)} of {labels.dtype}."
        )
    if samples is not None and not 1 <= samples <= len(pixels):
        raise InputError(f"cannot take {samples} samples: ask for 1 to {len(pixels)}.")
    pixels = pixels[:samples].detach().to("cpu", torch.float32).clone()
    values = labels[:samples].detach().cpu().numpy().astype(np.int64)
    digest = hashlib.sha256(str(tuple(pixels.shape)).encode())
    digest.update(pixels.contiguous().numpy().tobytes())
    digest.update(values.astype("<i8").tobytes())
    names = subject.meta.get("class_names") or ()
    return TensorSet(
        "memory",
        pixels,
        values,
        np.arange(len(pixels), dtype=np.int64),
        tuple(map(str, names)),
        digest.hexdigest()[:16],
    )


def check_fit(network: nn.Module, name: str, images: Images) -> None:
    """Refuse data that do not fit a network.

    Args:
        network: The network.
        name: The name of the network, for the message.
        images: The images.

    Raises:
        InputError: The images have another shape or number of classes than the network declares.
    """
    takes = getattr(network, "input_shape", None)
    if takes is not None and tuple(takes) != images.shape:
        raise InputError(
            f"{name} takes images {_shape(takes)} (channel x height x width), those of "
            f"{images.name} are {_shape(images.shape)}: choose the data it was trained on (--data)."
        )
    classes = getattr(network, "classes", None)
    if classes is not None:
        check_classes(int(classes), name, images)


def check_classes(classes: int, name: str, images: Images) -> None:
    """Refuse data of another number of classes.

    Args:
        classes: The number of classes of the network.
        name: The name of the network, for the message.
        images: The images.

    Raises:
        InputError: The images have another number of classes, or labels beyond those of the
            network.
    """
    wanted = len(images.class_names)
    highest = int(images.labels.max()) + 1
    if (wanted and classes != wanted) or classes < highest:
        raise InputError(
            f"{name} tells {classes} classes apart, {images.name} has {max(wanted, highest)}: "
            "choose the data it was trained on (--data)."
        )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
