"""The images that a model is evaluated on, checked against the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from torch import nn

from robustsnn.data.datasets import load_dataset
from robustsnn.data.images import Images
from robustsnn.data.splits import plain
from robustsnn.errors import InputError
from robustsnn.evaluation.given import images_in_memory
from robustsnn.evaluation.options import Data
from robustsnn.models.subject import Subject


def images_of(
    data: Data,
    subject: Subject,
    *,
    root: Path | str | None = None,
    samples: int | None = None,
) -> Images:
    """The images that a model is evaluated on.

    Args:
        data: A data set, its name, images with labels in any form of `images_in_memory`, or None
            for the data set that the model was trained on.
        subject: The model.
        root: The folder of the data set; None for the sample that ships.
        samples: The number of images, from the first one on; None for all.

    Raises:
        InputError: There is no such data set, or its images have another form.
    """
    if data is not None and not isinstance(data, str):
        if not _is_set(data):
            return images_in_memory(data, samples, subject.meta.get("class_names") or ())
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


def _is_set(data: Any) -> TypeGuard[Images]:
    """Whether something is a set of images as evaluations take it."""
    return all(hasattr(data, name) for name in ("fingerprint", "tensor", "ids", "labels"))


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


def check_order(subject: Subject, images: Images) -> None:
    """Refuse images in folders whose classes have other names or numbers than in training.

    Args:
        subject: The model.
        images: The images.

    Raises:
        InputError: The model was trained on other folders, or in another order.
    """
    if images.name != "folder" or subject.meta.get("data") != "folder":
        return
    trained, here = subject.meta.get("class_names") or (), images.class_names
    if [plain(str(name)) for name in trained] != [plain(name) for name in here]:
        raise InputError(
            f"{subject.name} was trained on the classes {_numbered(trained)}, and the folders give "
            f"{_numbered(here)}: name the data root it was trained on, with its training images."
        )


def _numbered(names: Sequence[object]) -> str:
    shown = [f"{number} = {name}" for number, name in enumerate(names)][:6]
    return ", ".join([*shown, "..."] if len(names) > len(shown) else shown)


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
