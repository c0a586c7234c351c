"""The network that training starts from: drawn, taken over from a checkpoint, or converted."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from robustsnn.common.randomness import derive
from robustsnn.errors import InputError
from robustsnn.models.checkpoint import Checkpoint, load_network, read_checkpoint
from robustsnn.snn.conversion import convert
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.snn.sparsity import weights_of
from robustsnn.training.masks import apply_
from robustsnn.training.recipe import Recipe
from robustsnn.training.sparse import first_masks


def start(recipe: Recipe, path: Path, images: Tensor) -> Network:
    """The network before its first update: drawn from the seed, taken over, or converted.

    Args:
        recipe: The recipe.
        path: Its file, next to which the folder named by `init` may lie.
        images: The training images, the first of which calibrate thresholds.

    Raises:
        InputError: The network that it starts from does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(recipe.seed, "weights"))
        if recipe.init is None and recipe.conversion is None:
            return Network(recipe.network)
        origin, ours = _origin(recipe, path), recipe.network
        if recipe.conversion is None:
            network = Network(ours)
            network.load_state_dict(origin.state_dict())
            return network
        settings = recipe.conversion
        if recipe.sparsity is not None:
            # Thresholds fit the sparse network: those of the dense one can silence it.
            apply_(origin, first_masks(recipe.sparsity, origin, recipe.seed))
        return convert(
            origin,
            ours,
            [images[: settings.images]],
            scale=settings.scale,
            steps=settings.steps,
            q=settings.percentile,
            leak=settings.leak,
        )


def check_start(recipe: Recipe, path: Path) -> None:
    """Refuse a recipe that starts from a network that is missing or another one.

    Args:
        recipe: The recipe.
        path: Its file.

    Raises:
        InputError: The network that it starts from does not fit.
    """
    if recipe.init is not None:
        _origin(recipe, path)


def _origin(recipe: Recipe, path: Path) -> Network:
    """The network that training starts from, or that an SNN is converted from."""
    if recipe.init is None:
        return _unspiking(recipe)
    origin = named(recipe.init, path)
    theirs, ours = origin.config, recipe.network
    same = ["architecture", "widths", "classifier", "classes", "image", "mean", "std"]
    if recipe.conversion is None:
        same += ["kind", "encoding", "readout"]
    elif theirs.kind != "ann":
        raise InputError(f"init {recipe.init} is an SNN: leave out conversion.")
    for field in same:
        if getattr(theirs, field) != getattr(ours, field):
            raise InputError(
                f"init {recipe.init}: its {field} is {getattr(theirs, field)}, and the recipe's "
                f"is {getattr(ours, field)}."
            )
    return origin


def _unspiking(recipe: Recipe) -> Network:
    """An ANN of the architecture of a recipe with random weights, to calibrate thresholds on.

    Currents are about one in every layer (He et al., ICCV 2015), so that thresholds are too and one
    learning rate suits both; the published start of linear layers makes them a hundredth of that.
    """
    plain = {"kind": "ann", "time_steps": 1, "encoding": "direct"}
    fields = recipe.network.model_dump() | plain
    for field in ("levels", "time_weight"):
        fields.pop(field, None)
    network = Network(NetworkConfig.model_validate(fields))
    for weight in weights_of(network).values():
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
    return network


def _checkpoint(name: str, path: Path) -> Checkpoint:
    """The checkpoint of a zoo name, or of a folder relative to the recipe at `path`."""
    nearby = path.parent / name
    return read_checkpoint(nearby if nearby.is_dir() else name)


def named(name: str, path: Path) -> Network:
    """The network of a zoo name, or of a folder relative to the recipe at `path`."""
    return load_network(_checkpoint(name, path), device="cpu")


def dense_weights(recipe: Recipe, path: Path) -> int | None:
    """The synaptic weights before channels were removed; None if all are there."""
    if recipe.init is not None:
        before = _checkpoint(recipe.init, path).meta.get("dense_weights")
        if before is not None:
            return int(before)
    if recipe.sparsity is None or recipe.sparsity.pattern != "channel":
        return None
    return sum(w.numel() for w in weights_of(Network(recipe.network)).values())
