"""The state of an unfinished training run: weights, optimizer and position, in one file.

It is a safetensors file with JSON in its header. All draws are a function of (seed, epoch), so
the position stands for the random state too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from robustsnn.common.files import write_atomically
from robustsnn.errors import InputError
from robustsnn.snn.network import Network

STATE = "state.safetensors"


def save_state(
    folder: Path,
    network: Network,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    epoch: int,
    recipe: str,
    log: list[dict[str, Any]],
    masks: Mapping[str, torch.Tensor],
) -> None:
    """Write the state after an epoch, which replaces the state before it in one step.

    Args:
        folder: The folder of the run.
        network: The network that is trained.
        optimizer: Its optimizer.
        scheduler: The learning-rate scheduler of the optimizer.
        epoch: The number of epochs that are finished.
        recipe: The digest of the recipe.
        log: The log so far, one row an epoch.
        masks: The masks of a sparse network, by the name of the layer; empty for another.
    """
    tensors = {
        f"network.{n}": t.detach().cpu().contiguous() for n, t in network.state_dict().items()
    }
    tensors |= {f"mask.{n}": m.detach().cpu().contiguous() for n, m in masks.items()}
    scalars: dict[str, dict[str, float]] = {}
    described = optimizer.state_dict()
    for index, entries in described["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                # Each gets memory of its own: an optimizer may keep views into one buffer.
                tensors[f"optimizer.{index}.{key}"] = value.detach().cpu().clone().contiguous()
            else:
                scalars.setdefault(str(index), {})[key] = value
    about = {
        "recipe": recipe,
        "epoch": epoch,
        "optimizer_scalars": scalars,
        "optimizer_groups": described["param_groups"],
        "scheduler": {k: v for k, v in scheduler.state_dict().items() if _plain(v)},
        "log": log,
    }
    blob = save_tensors(tensors, metadata={"state": json.dumps(about)})
    write_atomically(folder / STATE, blob)


def _plain(value: Any) -> bool:
    """Whether JSON can hold the value."""
    return isinstance(value, int | float | str | bool | list)


def load_state(
    folder: Path,
    network: Network,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    recipe: str,
) -> tuple[int, list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Put a saved state back, and return the number of finished epochs, their log and the masks.

    The arguments are those of `save_state`; network, optimizer and scheduler are changed in place.

    Raises:
        InputError: There is no state, it is broken, or it belongs to another recipe.
    """
    path = folder / STATE
    about = check_state(folder, recipe)
    try:
        return _put_back(about, load_tensors(path.read_bytes()), network, optimizer, scheduler)
    except _BROKEN as error:
        raise _broken(path, error) from None


#: What reading a file raises that somebody else may have written.
_BROKEN = (
    *(SafetensorError, OSError, RecursionError, LookupError, TypeError, ValueError),
    *(AttributeError, RuntimeError),
)


def check_state(folder: Path, recipe: str) -> dict[str, Any]:
    """What the state in a folder says of itself, without its tensors.

    Args:
        folder: The folder of the run.
        recipe: The digest of the recipe.

    Raises:
        InputError: There is no state, it is broken, or it belongs to another recipe.
    """
    path = folder / STATE
    if not path.is_file():
        raise InputError(f"nothing to resume in {folder}: leave out --resume.")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = file.read(length)
        about: dict[str, Any] = json.loads(json.loads(header)["__metadata__"]["state"])
        held = about["recipe"]
    except _BROKEN as error:
        raise _broken(path, error) from None
    if held != recipe:
        raise InputError(f"{folder} holds a run of another recipe: choose another --output.")
    return about


def _broken(path: Path, error: Exception) -> InputError:
    said = " ".join(str(error).split())[:200]
    return InputError(f"{path} is broken ({said}): start again without --resume.")


def _put_back(
    about: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    network: Network,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
) -> tuple[int, list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Put a state back into what is trained, and return what `load_state` returns."""
    network.load_state_dict(
        {n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")}
    )
    state: dict[int, dict[str, Any]] = {
        int(i): dict(values) for i, values in about["optimizer_scalars"].items()
    }
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": about["optimizer_groups"]})
    scheduler.load_state_dict(about["scheduler"])
    device = next(network.parameters()).device
    masks = {
        n.removeprefix("mask."): t.to(device) for n, t in tensors.items() if n.startswith("mask.")
    }
    return int(about["epoch"]), list(about["log"]), masks
