"""Images that a caller holds in memory, in the forms that PyTorch programs have them in.

They are tensors, NumPy arrays, lists and PIL images in pairs with labels; datasets, subsets and
loaders whose items are such pairs, or dicts that name both. What leaves here is one `TensorSet`.
"""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
)

from robustsnn.common.users_code import users_code
from robustsnn.data.datasets import check_images
from robustsnn.data.images import TensorSet
from robustsnn.data.pixels import of_pil
from robustsnn.errors import InputError

#: The names of the two parts of an item that is a dict.
IMAGE_KEYS = ("image", "images", "img", "pixel_values", "x", "data", "input", "inputs")
LABEL_KEYS = ("label", "labels", "target", "targets", "y", "fine_label", "class")
#: How many items of a dataset are read twice: a flip by chance leaves one of them as it is half of
#: the time.
LOOKED_AT_TWICE = 16
_REMEDY = (
    "give a pair (images, labels), a DataLoader, a Dataset of such pairs, or the name of a data set"
)


def images_in_memory(data: Any, samples: int | None = None, class_names: Any = ()) -> TensorSet:
    """Images with labels, whatever holds them.

    Args:
        data: A pair of images and labels, each a tensor, a NumPy array or a list; a list of pairs
            of one image and its label; a `Dataset`, `Subset` or `DataLoader` of such pairs. A
            loader that shuffles is read in the order of its dataset or of its subset.
        samples: The number of images, from the first one on; None for all.
        class_names: The names of the classes, if they are known.

    Returns:
        The images as float32 `[n, channel, height, width]` in [0, 1]. 8-bit pixels of arrays and
        PIL images are divided by 255, and values beyond [0, 1] by no more than rounding are
        clamped. Whether 8-bit tensors are to be divided only the network knows: they are refused.

    Raises:
        InputError: The data have another form, type or range; the message names it.

    Examples:
        >>> data = images_in_memory((np.zeros((2, 4, 4, 3), np.uint8), [0, 1]))
        >>> data.shape, data.labels.tolist()
        ((3, 4, 4), [0, 1])
    """
    if samples is not None and samples < 1:
        raise InputError(f"cannot take {samples} samples: the number must be at least 1.")
    names = tuple(map(str, class_names)) or _class_names(data)
    if isinstance(data, Mapping):
        data = _of_mapping(data)
    if isinstance(data, list | tuple) and not _is_items(data):
        pixels, values = _of_pair(data)
    else:
        with users_code("the data"):
            pixels, values = _of_items(data, samples)
    pixels = check_images(pixels)
    labels = _labels(values, len(pixels))[:samples]
    if samples is not None and samples > len(pixels):
        raise InputError(f"cannot take {samples} samples: ask for 1 to {len(pixels)}.")
    pixels = pixels[:samples].detach().to("cpu", torch.float32).clone().contiguous()
    ids = np.arange(len(pixels), dtype=np.int64)
    return TensorSet("memory", pixels, labels, ids, names, fingerprint_of(pixels, labels))


def fingerprint_of(pixels: Tensor, labels: NDArray[np.int64]) -> str:
    """The first 16 hex digits of the sha256 of images in memory and their labels.

    Args:
        pixels: The images, float32 `[n, channel, height, width]`, contiguous.
        labels: The true classes, int64 `[n]`.
    """
    digest = hashlib.sha256(str(tuple(pixels.shape)).encode())
    digest.update(pixels.numpy().tobytes())
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _of_pair(pair: Sequence[Any]) -> tuple[Tensor, Any]:
    if len(pair) != 2:
        raise InputError(f"data holds {len(pair)} things, not images and labels: {_REMEDY}.")
    images, labels = pair
    labels = _array_of_labels(labels)
    pixels = _pixels(images, len(labels))
    return pixels, labels


def _of_mapping(data: Mapping[Any, Any]) -> tuple[Any, Any]:
    image = next((key for key in IMAGE_KEYS if key in data), None)
    label = next((key for key in LABEL_KEYS if key in data), None)
    if image is None or label is None:
        listed = ", ".join(repr(key) for key in list(data)[:6]) or "none"
        raise InputError(
            f"the keys of the data are {listed}: one such as 'image' and one such as 'label' are "
            "needed."
        )
    return data[image], data[label]


def _is_items(data: Sequence[Any]) -> bool:
    """Whether a list holds pairs of one image and its label, and is not itself such a pair."""
    first = data[0] if len(data) else None
    if isinstance(first, Mapping):
        return True
    if not (isinstance(first, list | tuple) and len(first) >= 2):
        return False
    if _is_label(first[1]):
        return not _is_label(first[0])
    # What `list(loader)` gives: batches of images, each with as many labels.
    images, labels = (tuple(getattr(part, "shape", ())) for part in first[:2])
    return len(images) == 4 and labels == images[:1]


def _is_label(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0
    return isinstance(value, numbers.Number | str)


def _of_items(data: Any, samples: int | None) -> tuple[Tensor, Any]:
    """The images and labels of a loader or dataset, read as far as they are needed."""
    images: list[Tensor] = []
    labels: list[NDArray[Any]] = []
    found = 0
    for image, label in _batches(data, samples):
        values = _array_of_labels(label)
        pixels = _pixels(image, len(values))
        if images and pixels.shape[1:] != images[0].shape[1:]:
            raise InputError(
                f"images differ in size: the first is {_size(images[0])}, number {found} is "
                f"{_size(pixels)}: resize them to one size."
            )
        if len(pixels) != len(values):
            raise InputError(
                f"a batch has {len(pixels)} images and {len(values)} labels: {_REMEDY}."
            )
        images.append(pixels)
        labels.append(values)
        found += len(pixels)
        if samples is not None and found >= samples:
            break
    if not images:
        raise InputError(f"{_kind(data)} holds no images: give one that holds some.")
    return torch.cat(images), np.concatenate(labels)


def _batches(data: Any, samples: int | None) -> Iterator[tuple[Any, Any]]:
    if isinstance(data, DataLoader):
        for batch in _ordered(data, samples):
            yield _item(batch, data)
        return
    if isinstance(data, IterableDataset):
        items: Iterable[Any] = data
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        _refuse_draws(data, samples)
        items = (data[index] for index in range(len(data)))
    elif isinstance(data, Iterator):
        items = data
    else:
        raise InputError(f"data is {_kind(data)}: {_REMEDY}.")
    for item in items:
        image, label = _item(item, data)
        yield ([image], [label]) if _is_label(label) else (image, label)


def _ordered(loader: DataLoader[Any], samples: int | None) -> Iterable[Any]:
    """The batches of a loader; of one that shuffles, in the order of its dataset or subset."""
    if isinstance(loader.dataset, IterableDataset):
        return loader
    _refuse_draws(loader.dataset, samples)
    dataset, sampler = loader.dataset, loader.sampler
    if loader.batch_size is None or not isinstance(sampler, RandomSampler | SubsetRandomSampler):
        return loader
    if isinstance(sampler, SubsetRandomSampler):
        dataset = Subset(dataset, list(sampler.indices))
    return DataLoader(
        dataset,
        batch_size=loader.batch_size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
    )


def _refuse_draws(dataset: Any, samples: int | None) -> None:
    """Refuse a dataset that gives another image each time, as with random augmentation."""
    looked_at = min(len(dataset), LOOKED_AT_TWICE, LOOKED_AT_TWICE if samples is None else samples)
    for number in range(looked_at):
        seen = [_item(dataset[number], dataset)[0] for _ in range(2)]
        first, second = (np.asarray(image) for image in seen)
        if first.shape != second.shape or not np.array_equal(first, second):
            raise InputError(
                "the dataset gives another image each time (random augmentation?): take the random "
                "transforms out, so that there is one image to attack."
            )


def _item(item: Any, data: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        return _of_mapping(item)
    if isinstance(item, list | tuple) and len(item) >= 2:
        return item[0], item[1]
    raise InputError(
        f"{_kind(data)} gives {type(item).__name__} and not pairs of image and label: {_REMEDY}."
    )


def _kind(data: Any) -> str:
    return f"a {type(data).__name__}"


def _size(pixels: Tensor) -> str:
    return " x ".join(map(str, pixels.shape[1:]))


def _class_names(data: Any) -> tuple[str, ...]:
    """The class names that a dataset of torchvision has, however deep it lies."""
    for _ in range(8):
        names = getattr(data, "classes", None)
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            return tuple(names)
        data = getattr(data, "dataset", None)
    return ()


# --- pixels --------------------------------------------------------------------------------


def _pixels(images: Any, count: int) -> Tensor:
    """Images of any holder as a float tensor `[n, channel, height, width]`."""
    if isinstance(images, Tensor):
        return _with_channels(_dense(images), count)
    if isinstance(images, list | tuple) and len(images):
        parts = [_pixels_of_one(image, number) for number, image in enumerate(images)]
        for number, part in enumerate(parts):
            if part.shape != parts[0].shape:
                raise InputError(
                    f"images differ in size: the first is {_size(parts[0][None])}, number {number} "
                    f"is {_size(part[None])}: resize them to one size."
                )
        return torch.stack(parts)
    pixels = _scaled_array(_array(images, "images"))
    return _with_channels(_channels_first(pixels), count)


def _pixels_of_one(image: Any, number: int) -> Tensor:
    """One image as a float tensor `[channel, height, width]`."""
    if isinstance(image, Tensor):
        pixels = _dense(image)
    else:
        pixels = _scaled_array(_array(image, f"image {number}"))
        if pixels.ndim == 3:
            pixels = _channels_first(pixels[None])[0]
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3:
        raise InputError(
            f"image {number} has shape {list(pixels.shape)}: [channel, height, width] is needed."
        )
    return pixels


def _array(values: Any, what: str) -> NDArray[Any]:
    """A NumPy array of numbers that torch knows."""
    if isinstance(values, Image.Image):
        return of_pil(values, what)
    holds = isinstance(values, list | tuple) or hasattr(values, "__array__")
    try:
        array = np.array(values) if holds else np.empty(0, dtype=object)
    except Exception:
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        shown = type(values).__name__ if array.dtype.kind == "O" else str(array.dtype)
        raise InputError(f"{what}: {shown}, not numbers: {_REMEDY}.")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    return array.astype(array.dtype.newbyteorder("="), order="C")


def _scaled_array(array: NDArray[Any]) -> Tensor:
    """An array as a tensor; 8-bit pixels, which no network takes as they are, divided by 255."""
    pixels = torch.from_numpy(array)
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def _dense(pixels: Tensor) -> Tensor:
    """A tensor, if it is one of plain numbers."""
    if pixels.layout != torch.strided or pixels.is_complex() or pixels.is_quantized:
        kind = str(pixels.dtype if pixels.is_complex() else pixels.layout).removeprefix("torch.")
        raise InputError(f"images are {kind}: give dense floats in [0, 1].")
    if pixels.is_meta:
        raise InputError("images lie on the device meta, which holds no numbers: give them on cpu.")
    # Without the class of its own that a transform may have given it.
    return pixels.as_subclass(Tensor)


def _channels_first(pixels: Tensor) -> Tensor:
    """Arrays `[n, height, width, channel]`, as NumPy has them, as `[n, channel, ...]`."""
    if pixels.ndim == 4 and pixels.shape[3] in (1, 3, 4) and pixels.shape[1] not in (1, 3):
        if pixels.shape[3] == 4:
            raise InputError(
                "images have four channels, [height, width, 4]: put them on a background and drop "
                "the alpha channel."
            )
        return pixels.permute(0, 3, 1, 2)
    return pixels


def _with_channels(pixels: Tensor, count: int) -> Tensor:
    """Grey images `[n, height, width]` and a single image `[channel, ...]` in four dimensions."""
    if pixels.ndim == 3 and len(pixels) == count and count > 0:
        return pixels[:, None]
    if pixels.ndim == 3 and count == 1 and len(pixels) in (1, 3):
        return pixels[None]
    return pixels


# --- labels --------------------------------------------------------------------------------


def _array_of_labels(labels: Any) -> NDArray[Any]:
    """Labels of any holder as a NumPy array with one dimension or more."""
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        labels = labels.float() if labels.dtype == torch.bfloat16 else labels
    elif isinstance(labels, list | tuple):
        labels = [
            label.item() if isinstance(label, Tensor) and label.numel() == 1 else label
            for label in labels
        ]
    try:
        return np.atleast_1d(np.asarray(labels))
    except Exception:
        return np.empty(0, dtype=object)


def _labels(values: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Labels as int64 `[n]`, each at least 0, one for each of so many images."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (count,) or values.dtype.kind not in "iub":
        hint = ""
        if values.ndim == 2 and len(values) == count:
            hint = " One-hot labels become numbers by labels.argmax(1)."
        elif values.dtype.kind in "US":
            hint = f" The first is {values.ravel()[:1].tolist()}: number the classes from 0."
        raise InputError(
            f"labels must be {count} whole numbers, one an image, not {list(values.shape)} of "
            f"{values.dtype}.{hint}"
        )
    labels = values.astype(np.int64)
    if len(labels) and labels.min() < 0:
        number = int(labels.argmin())
        raise InputError(
            f"the label of image {number} is {labels[number]}: labels are class numbers from 0 "
            "on; drop images without a class, or number the classes again."
        )
    return labels
