"""Evaluate a network that you hold in memory, such as right after training.

Any module from images in [0, 1] to logits will do; it is copied before it is attacked.
"""

from __future__ import annotations

import torch
from torch import nn

import robustsnn


def trained(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """A small classifier, fitted to the images in a few seconds."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 64), nn.ReLU())
    network.append(nn.Linear(64, int(labels.max()) + 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(200):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


if __name__ == "__main__":
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(60, 1, 12, 12, generator=draws)
    labels = (images.mean((1, 2, 3)) > 0.5).long()
    network = trained(images, labels)
    found = robustsnn.evaluate(network, (images, labels), suite="quick", name="my network")
    print(found.results[["attack", "epsilon", "accuracy", "ci_low", "ci_high"]].to_string())
    print(found.manifest.diagnosis["sentence"])
