"""Randomness that belongs to an image, and not to the batch that the image is in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def derive(*parts: object, bits: int = 63) -> int:
    """A non-negative integer of that many bits that depends on every part and on nothing else.

    >>> derive(0, "order", 3) == derive(0, "order", 3) != derive(1, "order", 3)
    True
    """
    text = "/".join(f"{part}" for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little") >> (128 - bits)


class Rng:
    """One independent generator for each image, keyed by (seed, image id, stream).

    The draws of an image do not depend on the other images of its batch, on their order, on the
    device or on the precision: they are made in float64 on the CPU, and then converted.

    Args:
        seed: The seed of the whole evaluation.
        image_ids: The id of each image of the batch.
        stream: A name that keeps apart draws that must not repeat each other.

    >>> rng = Rng(0, [7, 8])
    >>> both = rng.uniform((2,), 0.0, 1.0, like=torch.zeros(()))
    >>> alone = Rng(0, [8]).uniform((2,), 0.0, 1.0, like=torch.zeros(()))
    >>> torch.equal(both[1], alone[0])
    True
    """

    def __init__(self, seed: int, image_ids: Sequence[int] | Tensor, stream: str = "") -> None:
        ids = image_ids.tolist() if isinstance(image_ids, Tensor) else image_ids
        self.seed = int(seed)
        self.image_ids: tuple[int, ...] = tuple(int(i) for i in ids)
        self._path = stream
        self._generators = [
            np.random.Generator(np.random.Philox(key=derive(self.seed, i, stream, bits=128)))
            for i in self.image_ids
        ]

    def __len__(self) -> int:
        return len(self.image_ids)

    def uniform(self, shape: Iterable[int], low: float, high: float, like: Tensor) -> Tensor:
        """Draws from U(low, high), `[batch, *shape]`, with the dtype and device of `like`."""
        size = tuple(shape)
        draws = [low + (high - low) * np.asarray(g.random(size)) for g in self._generators]
        return _stack(draws, size, like)

    def normal(self, shape: Iterable[int], like: Tensor) -> Tensor:
        """Draws from N(0, 1), `[batch, *shape]`, with the dtype and device of `like`."""
        size = tuple(shape)
        draws = [np.asarray(g.standard_normal(size)) for g in self._generators]
        return _stack(draws, size, like)

    def integers(self, high: int) -> Tensor:
        """Uniform integers in [0, high), int64 `[batch]`."""
        return torch.tensor([int(g.integers(high)) for g in self._generators], dtype=torch.int64)

    def select(self, index: Tensor | Sequence[int]) -> Rng:
        """The sub-batch at those positions, or under that mask, with the same generators.

        A draw that is made through one of the two advances the other one too.
        """
        chosen = positions(index, len(self)).tolist()
        sub = Rng.__new__(Rng)
        sub.seed = self.seed
        sub.image_ids = tuple(self.image_ids[i] for i in chosen)
        sub._path = self._path
        sub._generators = [self._generators[i] for i in chosen]
        return sub

    def stream(self, name: str) -> Rng:
        """New generators for a named purpose, independent of what was drawn so far."""
        return Rng(self.seed, self.image_ids, f"{self._path}/{name}")

    def derive(self, purpose: str) -> int:
        """A 31-bit seed for a library that takes one, from seed, stream, purpose and images."""
        return derive(self.seed, self._path, purpose, *self.image_ids, bits=31)


def _stack(draws: list[NDArray[np.float64]], size: tuple[int, ...], like: Tensor) -> Tensor:
    stacked = np.stack(draws) if draws else np.empty((0, *size))
    return torch.from_numpy(stacked).to(device=like.device, dtype=like.dtype)


def positions(index: Tensor | Sequence[int], length: int) -> Tensor:
    """An index or a boolean mask over `length` images as int64 positions on the CPU.

    >>> positions(torch.tensor([True, False, True]), 3)
    tensor([0, 2])

    Raises:
        ValueError: The mask does not have `length` entries.
    """
    at = torch.as_tensor(index).cpu()
    if at.dtype == torch.bool:
        if at.shape != (length,):
            raise ValueError(f"a mask of shape {tuple(at.shape)} over {length} images")
        return at.nonzero().flatten()
    return at.to(torch.int64).flatten()
