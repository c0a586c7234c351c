"""The card next to a checkpoint: what it is, how it came to be and what was measured."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import torch

from robustsnn.common.files import write_atomically
from robustsnn.common.statistics import wilson
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.snn.sparsity import compression, densities, density
from robustsnn.training.recipe import Recipe

METHODS = {
    "ann": "an ANN trained with plain cross-entropy",
    "conversion": "an SNN converted from its ANN, and not trained further",
    "hybrid": "an SNN converted from its ANN, then trained with surrogate gradients",
    "surrogate": "an SNN trained from random weights with surrogate gradients",
    "hire": "an SNN converted from its ANN, then trained with HIRE-SNN's crafted input noise",
    "gaussian": "trained on images with Gaussian noise",
    "adversarial": "trained on adversarial images",
}
#: As `METHODS`, for the controls of HIRE-SNN, by the noise between their periods.
CONTROLS = {
    "none": "in the periods of HIRE-SNN, without any noise",
    "gaussian-linf": "in the periods of HIRE-SNN, with Gaussian noise as large in Linf",
    "gaussian-l2": "in the periods of HIRE-SNN, with Gaussian noise as large in L2",
}

#: As `METHODS`, for a network that starts from the weights of another of its kind.
FURTHER = {
    "ann": "an ANN, trained further with plain cross-entropy",
    "hybrid": "an SNN, trained further with surrogate gradients",
    "hire": "an SNN, trained further with HIRE-SNN's crafted input noise",
    "gaussian": "trained further on images with Gaussian noise",
    "adversarial": "trained further on adversarial images",
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
    dense_weights: int | None = None,
    changed: int | None = None,
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
        dense_weights: The synaptic weights before channels were removed, if some were.
        changed: The number of predictions on the test set that storage as float16 changes; None for
            weights that are stored as float32.
    """
    low, high = wilson(round(accuracy * images), images)
    epochs = [float(row["seconds"]) for row in log]
    parameters = sum(p.numel() for p in network.parameters())
    config = network.config
    lines = [
        f"# {recipe.name}",
        "",
        f"{config.architecture.upper()}: {_method(recipe)}.",
        "",
        "| | |",
        "|---|---|",
        f"| clean accuracy | {100 * accuracy:.2f} % of {images:,} test images "
        f"(95 % Wilson {100 * low:.2f} to {100 * high:.2f}), scored once, after the last epoch |",
        f"| data | {recipe.data}, all training images; crop by {recipe.augmentation.crop}, "
        f"{'flip' if recipe.augmentation.flip else 'no flip'} |",
        f"| parameters | {parameters:,} |",
        *_compression(network, dense_weights),
        f"| time steps, encoding | {config.time_steps}, {_encoding(config)} |",
        f"| epochs, batch size, seed | {recipe.epochs}, {recipe.batch_size}, {recipe.seed} |",
        *_time(epochs, trained_on),
        f"| started from | {recipe.init or 'random weights'} |",
        f"| black-box substitute | {recipe.substitute or 'none'} |",
        *_stored(changed, images),
        f"| sha256 of the weights | `{sha256}` |",
        "",
    ]
    lines += [*_dynamics(network), *_densities(network, dense_weights)]
    lines += [
        "Reproduce: `robustsnn train recipe.yaml --data-root DATA`, with the recipe in this "
        "folder; `training.csv` is its log, a line an epoch.",
        "",
        "Intended for measuring attacks and defences; not for use on anything that matters.",
    ]
    write_atomically(folder / "card.md", ("\n".join(lines) + "\n").encode())


def _stored(changed: int | None, images: int) -> list[str]:
    """The row of the table that says what storage as float16 changes; none for float32."""
    if changed is None:
        return []
    return [
        f"| weights stored as | float16; {changed} of {images:,} predictions differ from those "
        "before rounding |"
    ]


def _encoding(config: NetworkConfig) -> str:
    """The encoding, with its levels or the weight of its spike times if it has some."""
    if config.time_weight is not None:
        return f"{config.encoding}, weight of spike times {config.time_weight:g}"
    return config.encoding if config.levels is None else f"{config.encoding}, N = {config.levels}"


def _time(epochs: list[float], trained_on: int) -> list[str]:
    """The row of the table that says how long training took; none without training."""
    if not epochs:
        return []
    return [
        f"| training time | {sum(epochs) / 60:.1f} min on {torch.get_num_threads()} CPU "
        f"thread(s), {trained_on / max(median(epochs), 1e-9):.0f} images per second in the "
        "median epoch |"
    ]


def _dynamics(network: Network) -> list[str]:
    """The thresholds and leaks of an SNN as a table; nothing for an ANN."""
    layers = network.spiking_layers()
    if not layers:
        return []
    rows = [
        f"| {name} | {layer.threshold.item():.4f} | {layer.leak.item():.4f} |"
        for name, layer in layers.items()
    ]
    return ["| layer | threshold | leak |", "|---|---|---|", *rows, ""]


def _densities(network: Network, dense_weights: int | None) -> list[str]:
    """The density of each layer as a table; nothing for a dense network."""
    if density(network) == 1 and dense_weights is None:
        return []
    rows = [
        f"| {layer.name} | {layer.weights:,} | {layer.kept:,} | {100 * layer.density:.2f} % |"
        for layer in densities(network)
    ]
    return ["| layer | weights | not zero | density |", "|---|---|---|---|", *rows, ""]


def _method(recipe: Recipe) -> str:
    """How the network was trained, as the rest of a sentence."""
    further = recipe.init is not None and recipe.conversion is None
    how = (FURTHER if further else METHODS)[recipe.method]
    if recipe.hire is not None and recipe.hire.noise != "crafted":
        how = f"{METHODS['hybrid']} {CONTROLS[recipe.hire.noise]}"
    if recipe.gaussian is not None:
        how += f" of standard deviation {recipe.gaussian.deviation}"
    how += {
        "learned": "",
        "thresholds": ", with leaks held",
        "held": ", with thresholds and leaks held",
    }[recipe.dynamics]
    return f"{how}{_ball(recipe)}{_sparse(recipe)}"


def _compression(network: Network, dense_weights: int | None) -> list[str]:
    """The row of the table that says how many weights are left; none for a dense network."""
    layers = densities(network)
    kept = sum(layer.kept for layer in layers)
    before = dense_weights or sum(layer.weights for layer in layers)
    if kept == before:
        return []
    return [
        f"| synaptic weights | {kept:,} of {before:,} are not zero: "
        f"{compression(before, kept):.2f}x fewer |"
    ]


def _sparse(recipe: Recipe) -> str:
    """The end of the sentence on masks and guidance; empty for a dense network."""
    words = ""
    if recipe.guidance is not None:
        words += f", guided by the attention maps of {recipe.guidance.teacher}"
        if recipe.guidance.distillation:
            words += " and by its logits"
    settings = recipe.sparsity
    if settings is None:
        return words
    if settings.start == "held":
        return f"{words}, with the zeros of its weights held"
    what = "channels" if settings.pattern == "channel" else "weights"
    chosen = {
        "random": f"{what} drawn at random",
        "magnitude": "the largest weights of all layers (one-shot magnitude pruning)",
        "predefined": "the weights of fixed patterns (pSC4)",
    }[settings.start]
    share = f"{100 * (settings.density or 0):g} %"
    if settings.rewiring is None:
        return f"{words}, with {share} of its weights kept: {chosen}"
    return (
        f"{words}, with {share} of its weights kept: {chosen}, then pruned by size and grown by "
        f"momentum every {settings.rewiring.every} updates"
    )


def _ball(recipe: Recipe) -> str:
    """The end of the sentence on adversarial training; empty for another method."""
    settings = recipe.adversarial
    if settings is None:
        return ""
    start = "a random start" if settings.random_start else "the clean image"
    mixed = "" if not settings.clean_weight else f" and on clean ones ({settings.clean_weight:g})"
    origin = "" if recipe.conversion is None else ", after conversion from its ANN"
    return f" of Linf {settings.epsilon}, {settings.steps} step(s) from {start}{mixed}{origin}"
