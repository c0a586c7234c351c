"""Attacks with neurons reached leave no more than attacks by the gradient of the library alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import robustsnn
from robustsnn.data.datasets import load_dataset
from tests.foreign.networks import (
    EACH_LIBRARY,
    trained,
)

IMAGES = 100
#: The images by which the suite with neurons reached may be behind.
BEHIND = 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("make", EACH_LIBRARY)
def test_light_is_at_least_as_strong_with_neurons_reached(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = trained(make(), 250)
    data = load_dataset("fashion-mnist", None, samples=IMAGES)

    def left(source: str) -> int:
        done = robustsnn.evaluate(network, data, "light", epsilon="8/255", source=source)
        worst = done.results[done.results["attack"] == "worst-case"]["accuracy"].iloc[0]
        print(source, done.manifest.level, done.results[["attack", "accuracy"]].values.tolist())
        return round(float(worst) * IMAGES)

    reached, alone = left("auto"), left("none")
    assert reached <= alone + BEHIND, (reached, alone)
