"""Images with labels, in the form that every evaluation takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


class Images(Protocol):
    """Images with labels in a fixed order; `robustsnn.data.datasets.ImageSet` is one."""

    @property
    def name(self) -> str:
        """The name of the data set."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The true classes `[n]`."""

    @property
    def ids(self) -> NDArray[np.int64]:
        """The number of each image, `[n]`, which names it."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class; empty if they are not known."""

    @property
    def fingerprint(self) -> str:
        """A text that changes with any pixel or label."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (channel, height, width) of one image."""

    def __len__(self) -> int: ...

    def tensor(self, index: slice = ...) -> Tensor:
        """The images as float32 `[n, channel, height, width]` in [0, 1]."""


@dataclass(frozen=True, eq=False)
class TensorSet:
    """Images that a caller holds in memory; `pixels` are float32 in [0, 1]."""

    name: str
    pixels: Tensor
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    class_names: tuple[str, ...]
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (channel, height, width) of one image."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.pixels)

    def tensor(self, index: slice = slice(None)) -> Tensor:
        """The images as float32 `[n, channel, height, width]` in [0, 1]."""
        return self.pixels[index]
