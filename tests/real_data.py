"""Real test images: those that ship, or the whole set where it lies beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustsnn.data.datasets import ImageSet, load_dataset

SHARED = Path(__file__).parents[2] / "shared" / "data"
ROOTS = {"fashion-mnist": SHARED / "fashion_mnist", "cifar10": SHARED / "cifar10"}


def whole(name: str) -> bool:
    """Whether the whole set is there."""
    return name in ROOTS and ROOTS[name].is_dir()


def real_images(name: str, samples: int | None = None) -> ImageSet:
    """The first images of a test set; skips the test where there are none of it."""
    if whole(name):
        return load_dataset(name, ROOTS[name], samples=samples)
    if name != "fashion-mnist":
        pytest.skip(f"{name} does not ship, and ../shared/data is absent")
    return load_dataset(name, None, samples=samples)
