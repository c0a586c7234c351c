"""Attacks with neurons reached leave no more than attacks along the library's own gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import robustsnn
from robustsnn.data.datasets import load_dataset
from tests.foreign.networks import EACH_LIBRARY, forget, needs, trained

IMAGES = 100
#: The images by which the suite with neurons reached may be behind.
BEHIND = 2


class _Forgetful(nn.Module):
    """A network that is reset before every pass, as the documentation of its library says."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        forget(self.network)
        out: Tensor = self.network(x)
        return out


def _left_by_peers(network: nn.Module, x: Tensor, y: Tensor) -> int:
    """The images that survive APGD-CE, targeted APGD and Square of torchattacks together.

    With the settings that AutoAttack has for them, on the network itself, along the surrogate that
    it was written with.
    """
    import torchattacks

    model = _Forgetful(network).eval()
    attacks = (
        torchattacks.APGD(model, eps=8 / 255, steps=100, loss="ce", seed=0),
        torchattacks.APGDT(model, eps=8 / 255, steps=100, n_classes=10, seed=0),
        torchattacks.Square(model, eps=8 / 255, n_queries=5000, seed=0),
    )
    with torch.no_grad():
        standing = model(x).argmax(1) == y
    said = [int(standing.sum())]
    for attack in attacks:
        rows = standing.nonzero().flatten()
        if len(rows):
            proposed = attack(x[rows], y[rows]).clamp(0, 1)
            assert (proposed - x[rows]).abs().max() <= 8 / 255 + 1e-6
            with torch.no_grad():
                standing[rows] &= model(proposed).argmax(1) == y[rows]
        said.append(int(standing.sum()))
    print("clean, APGD-CE, targeted APGD, Square", said)
    return said[-1]


@needs("torchattacks")
@pytest.mark.exhaustive
@pytest.mark.parametrize("make", EACH_LIBRARY)
def test_light_leaves_no_more_than_attacks_of_a_peer(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = trained(make(), 250)
    data = load_dataset("fashion-mnist", None, samples=IMAGES)
    done = robustsnn.evaluate(network, data, "light", epsilon="8/255")
    print(done.manifest.level, done.results[["attack", "accuracy"]].values.tolist())
    worst = done.results[done.results["attack"] == "worst-case"]["accuracy"].iloc[0]
    left = _left_by_peers(network, data.tensor(), data.targets())
    assert round(float(worst) * IMAGES) <= left, (worst, left)


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
