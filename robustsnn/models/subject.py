"""What is evaluated and on what: a model that can be loaded afresh, and images with labels."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustsnn.data.datasets import check_images, load_dataset
from robustsnn.errors import InputError
from robustsnn.models.checkpoint import load_model, load_network, read_checkpoint
from robustsnn.snn.network import Network


@dataclass(frozen=True)
class Subject:
    """A model under evaluation.

    `load` gives a new network each time, in evaluation mode and frozen; `identity` changes with
    anything that changes what the network computes; `sha256` is that of its weights.
    """

    name: str
    load: Callable[[], nn.Module] = field(repr=False)
    identity: str
    sha256: str
    origin: str
    meta: Mapping[str, Any] = field(default_factory=dict, repr=False)


def subject_of(
    model: nn.Module | str | Path,
    *,
    weights: Path | None = None,
    device: str = "cpu",
    name: str | None = None,
) -> Subject:
    """A model by zoo name, checkpoint folder, `python.module:factory`, or in memory.

    A network in memory is copied at once: what happens to it later is not seen here, nor the
    other way round.

    Raises:
        InputError: It cannot be found or read.
    """
    if isinstance(model, nn.Module):
        kept = copy.deepcopy(model)
        kept.eval().requires_grad_(False)
        digest = _digest(kept)
        return Subject(
            name or type(model).__name__,
            lambda: copy.deepcopy(kept).to(device),
            digest,
            digest,
            "memory",
        )
    text = str(model)
    if weights is not None or (":" in text and not Path(text).exists()):
        # Called once: a factory may draw new weights at every call, or hand out one module always.
        made = load_model(text, weights, device)
        digest = _digest(made)
        return Subject(name or text, lambda: copy.deepcopy(made), digest, digest, text)
    return checkpoint_subject(text, device=device, name=name)


def checkpoint_subject(
    zoo_name_or_folder: str | Path, *, device: str = "cpu", name: str | None = None
) -> Subject:
    """A model by zoo name or checkpoint folder, and by nothing that would run code.

    A name that was read from a file (a manifest, a `model.json`) goes through here: only what a
    user typed may be imported.

    Raises:
        InputError: It cannot be found or read.
    """
    text = str(zoo_name_or_folder)
    if ":" in text and not Path(text).exists():
        raise InputError(
            f"{text!r} comes from a file and names code, which is never imported: give the name "
            "of a model or a checkpoint folder yourself."
        )
    checkpoint = read_checkpoint(text)
    load_network(checkpoint)  # so that broken weights are refused before anything is run
    described = json.dumps(
        {"weights": checkpoint.sha256, "network": checkpoint.config.model_dump(mode="json")},
        sort_keys=True,
    )
    return Subject(
        name or text.rstrip("/"),
        lambda: load_network(checkpoint, device),
        hashlib.sha256(described.encode()).hexdigest(),
        checkpoint.sha256,
        str(checkpoint.folder.resolve()),
        checkpoint.meta,
    )


def recomputing(subject: Subject, steps: int | None) -> Subject:
    """The same model, its gradients recomputed in segments of so many time steps.

    Raises:
        InputError: Less than one step, or a model that does not know how.
    """
    if steps is not None and steps < 1:
        raise InputError(f"recompute {steps}: give at least 1 time step.")
    if not isinstance(subject.load(), Network):
        raise InputError(
            f"{subject.name} is not a RobustSNN network: it cannot recompute in segments; "
            "lower the batch size instead."
        )

    def load() -> nn.Module:
        network = subject.load()
        assert isinstance(network, Network)
        network.recompute = steps
        return network

    return dataclasses.replace(subject, load=load)


def _digest(network: nn.Module) -> str:
    digest = hashlib.sha256(str(network).encode())
    if isinstance(network, Network):
        digest.update(f"{network.config.model_dump_json()} {network.time_steps}".encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Images(Protocol):
    """Images with labels in a fixed order; `robustsnn.data.datasets.ImageSet` is one."""

    @property
    def name(self) -> str:
        """Name of the data set."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """True classes `[n]`."""

    @property
    def ids(self) -> NDArray[np.int64]:
        """A number `[n]` that names each image."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One a class; empty if they are not known."""

    @property
    def fingerprint(self) -> str:
        """Changes with any pixel or label."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channel, height, width)."""

    def __len__(self) -> int: ...

    def tensor(self, index: slice = ...) -> Tensor:
        """float32 `[n, channel, height, width]` in [0, 1]."""


@dataclass(frozen=True, eq=False)
class TensorSet:
    """Images that a caller holds in memory."""

    name: str
    pixels: Tensor
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    class_names: tuple[str, ...]
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channel, height, width)."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.pixels)

    def tensor(self, index: slice = slice(None)) -> Tensor:
        """float32 `[n, channel, height, width]` in [0, 1]."""
        return self.pixels[index]


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
        root: Folder of the data set; None for the sample that ships.
        samples: How many of the first images; None for all.

    Raises:
        InputError: There is no such data, or its images are not what they should be.
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
    """Refuse data of another shape or number of classes than the network's.

    Raises:
        InputError: As said.
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

    Raises:
        InputError: As said.
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
