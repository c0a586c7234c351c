"""The card next to a checkpoint: what it is, how it came to be and what was measured."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import torch

from robustsnn.common.files import write_atomically
from robustsnn.common.statistics import wilson
from robustsnn.snn.network import Network
from robustsnn.training.recipe import Recipe

METHODS = {
    "ann": "an ANN trained with plain cross-entropy",
    "hybrid": "an SNN converted from its ANN, then trained with surrogate gradients",
    "hire": "an SNN converted from its ANN, then trained with HIRE-SNN's crafted input noise",
    "adversarial": "trained on adversarial images",
}


def write_card(
    folder: Path,
    recipe: Recipe,
    network: Network,
    accuracy: float,
    images: int,
    trained_on: int,
    log: list[dict[str, Any]],
    sha256: str,
) -> None:
    """Write `card.md`; every number in it was measured in this run.

    Args:
        folder: The folder of the checkpoint.
        recipe: The recipe that was trained.
        network: The trained network.
        accuracy: The accuracy on the test set, in [0, 1].
        images: The number of test images.
        trained_on: The number of training images of an epoch.
        log: The log of training, one row an epoch.
        sha256: The sha256 of the weights.
    """
    low, high = wilson(round(accuracy * images), images)
    epochs = [float(row["seconds"]) for row in log]
    parameters = sum(p.numel() for p in network.parameters())
    config = network.config
    lines = [
        f"# {recipe.name}",
        "",
        f"{config.architecture.upper()}: {METHODS[recipe.method]}{_ball(recipe)}.",
        "",
        "| | |",
        "|---|---|",
        f"| clean accuracy | {100 * accuracy:.2f} % of {images:,} test images "
        f"(95 % Wilson {100 * low:.2f} to {100 * high:.2f}), scored once, after the last epoch |",
        f"| data | {recipe.data}, all training images; crop by {recipe.augmentation.crop}, "
        f"{'flip' if recipe.augmentation.flip else 'no flip'} |",
        f"| parameters | {parameters:,} |",
        f"| time steps, encoding | {config.time_steps}, {config.encoding} |",
        f"| epochs, batch size, seed | {recipe.epochs}, {recipe.batch_size}, {recipe.seed} |",
        f"| training time | {sum(epochs) / 60:.1f} min on {torch.get_num_threads()} CPU "
        f"thread(s), {trained_on / max(median(epochs), 1e-9):.0f} images per second in the "
        "median epoch |",
        f"| started from | {recipe.init or 'random weights'} |",
        f"| black-box substitute | {recipe.substitute or 'none'} |",
        f"| sha256 of the weights | `{sha256}` |",
        "",
    ]
    if config.kind == "snn":
        layers = network.spiking_layers()
        lines += ["| layer | threshold | leak |", "|---|---|---|"]
        lines += [
            f"| {name} | {layer.threshold.item():.4f} | {layer.leak.item():.4f} |"
            for name, layer in layers.items()
        ]
        lines.append("")
    lines += [
        "Reproduce: `robustsnn train recipe.yaml --data-root DATA`, with the recipe in this "
        "folder; `training.csv` is its log, a line an epoch.",
        "",
        "Intended for measuring attacks and defences; not for use on anything that matters.",
    ]
    write_atomically(folder / "card.md", ("\n".join(lines) + "\n").encode())


def _ball(recipe: Recipe) -> str:
    """The end of the sentence on adversarial training; empty for another method."""
    settings = recipe.adversarial
    if settings is None:
        return ""
    start = "a random start" if settings.random_start else "the clean image"
    origin = "" if recipe.init is None else ", after conversion from its ANN"
    return f" of Linf {settings.epsilon}, {settings.steps} step(s) from {start}{origin}"
