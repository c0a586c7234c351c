"""A network of your own: any module from images in [0, 1] to logits, made by a function.

`PYTHONPATH=examples robustsnn evaluate my_model:build --data fashion-mnist --samples 200`, or run
this file.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import robustsnn


class Vote(nn.Module):
    """The mean of the logits of two networks, `[batch, 1, 28, 28]` to `[batch, 10]`."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        return torch.stack([self.one(images), self.other(images)]).mean(0)


def build() -> nn.Module:
    """The network: an ANN of the zoo and the SNN that was converted from it."""
    names = ("fashion-mnist/vgg5-ann", "fashion-mnist/vgg5-snn")
    return Vote(*(robustsnn.load_model(name) for name in names)).eval()


if __name__ == "__main__":
    found = robustsnn.evaluate(build(), "fashion-mnist", attack="pgd:steps=5", samples=20)
    print(found.results[["attack", "epsilon", "accuracy"]])
    print(f"level {found.level}: {found.manifest.diagnosis['next']}")
