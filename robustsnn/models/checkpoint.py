"""Checkpoints: `model.safetensors` and `model.json` in a folder. Loading never executes code.

The exception is a model named `python.module:factory`, which is the user's own code by request.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn
from torch.nn.utils import prune

from robustsnn.common.fields import first_of, said_of
from robustsnn.common.files import expanded, made_folder, read_text, unwritable, write_atomically
from robustsnn.errors import InputError
from robustsnn.models.factory import from_factory
from robustsnn.models.half_precision import halved
from robustsnn.models.naming import is_factory, parse_factory
from robustsnn.models.shapes import Shaped
from robustsnn.models.sparse_file import packed, unpacked
from robustsnn.models.zoo import refuse_nir, zoo_folder
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.snn.sparsity import weights_of

FORMAT = 1
#: The format of a checkpoint that stores some tensors sparsely; see `models.sparse_file`.
SPARSE_FORMAT = 2
#: The bytes above which a description is refused, and the weights above which a network is.
LARGEST, MOST_WEIGHTS = 16_000_000, 2**30
WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
#: The types that weights may have.
REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, read and checked except for the content of its weights.

    `meta` holds the description without the network: data, class_names, substitute, provenance,
    and of a network without some channels dense_weights.
    """

    name: str
    folder: Path
    config: NetworkConfig
    meta: dict[str, Any]
    sha256: str


def save_checkpoint(
    network: Network,
    folder: Path,
    *,
    data: str,
    class_names: tuple[str, ...],
    provenance: dict[str, Any],
    substitute: str | None = None,
    dense_weights: int | None = None,
    half: bool = False,
) -> str:
    """Write a checkpoint, weights first, and return the sha256 of its weights.

    Tensors with many zeros are stored sparsely. For that, -0.0 is stored as 0.0, which says the
    same: a mask of torch leaves it where a negative weight was. A network that is read back
    computes in float32 whatever its weights are stored as.

    Args:
        network: The network to save.
        folder: The folder of the checkpoint, which is made if it is absent.
        data: The name of the data set that the network was trained on.
        class_names: The name of each class.
        provenance: How the network came to be: recipe, seed, versions.
        substitute: The zoo name of the network that a black-box attacker would use.
        dense_weights: The synaptic weights of the network before channels were removed from it.
        half: Whether weights are stored as float16; see `models.half_precision`.

    Raises:
        InputError: The network holds masks of torch, which a checkpoint has no place for, or the
            folder cannot be written to, as on a full disk; a new one is left out then.
    """
    if prune.is_pruned(network):
        raise InputError(
            "the network holds masks of torch.nn.utils.prune, and a checkpoint holds weights: make "
            "them permanent first (prune.remove)."
        )
    folder = expanded(folder)
    state = network.state_dict().items()
    dense = {name: t.detach().cpu().masked_fill(t.cpu() == 0, 0).contiguous() for name, t in state}
    tensors = packed(halved(dense) if half else dense)
    blob = save_tensors(tensors)
    digest = hashlib.sha256(blob).hexdigest()
    description = {
        "format": FORMAT if tensors.keys() == dense.keys() else SPARSE_FORMAT,
        "network": network.config.model_dump(mode="json", exclude_none=True),
        "data": data,
        "class_names": list(class_names),
        "substitute": substitute,
        **({} if dense_weights is None else {"dense_weights": dense_weights}),
        "provenance": provenance,
        "sha256": digest,
    }
    _write(folder, blob, (json.dumps(description, indent=2) + "\n").encode())
    return digest


def _write(folder: Path, weights: bytes, description: bytes) -> None:
    """Write both files of a checkpoint, or leave nothing of a new one behind."""
    held = (folder / DESCRIPTION).exists()
    try:
        with made_folder(folder):
            try:
                write_atomically(folder / WEIGHTS, weights)
                write_atomically(folder / DESCRIPTION, description)
            except OSError:
                if not held:
                    (folder / WEIGHTS).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise unwritable(folder, error) from None


def read_checkpoint(name_or_path: str | Path) -> Checkpoint:
    """The description of a checkpoint, by zoo name or folder, with its sha256 checked.

    Raises:
        InputError: There is no such checkpoint, it is malformed or truncated, or its weights
            were changed.
    """
    refuse_nir(name_or_path)
    path = expanded(name_or_path)
    if path.is_dir():
        folder, name = path, path.name
    elif path.exists():
        raise InputError(
            f"{path} is a file; a checkpoint is a folder with {WEIGHTS} and {DESCRIPTION} "
            "(official HIRE-SNN state dicts: robustsnn zoo import)."
        )
    else:
        folder, name = zoo_folder(str(name_or_path)), str(name_or_path)
    for needed in (DESCRIPTION, WEIGHTS):
        if not (folder / needed).is_file():
            raise InputError(f"{folder} is not a checkpoint: it has no {needed}.")
    where = folder / DESCRIPTION
    text = read_text(where, LARGEST, "restore it")
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON ({error}): restore it.") from None
    formats = (FORMAT, SPARSE_FORMAT)
    if not isinstance(description, dict) or description.get("format") not in formats:
        raise InputError(
            f"{where} is not a checkpoint description of format {FORMAT} or {SPARSE_FORMAT}: "
            "restore it."
        )
    try:
        config = NetworkConfig.model_validate_json(json.dumps(description.pop("network", None)))
    except ValidationError as error:
        first = first_of(error)
        field = ".".join(map(str, first["loc"])) or "network"
        said = said_of(error, NetworkConfig)
        raise InputError(f"{where}: network.{field}: {said}.") from None
    weights = description.get("dense_weights")
    if weights is not None and (type(weights) is not int or weights < 1):
        raise InputError(f"{where}: dense_weights must be a whole number above 0.")
    if not isinstance(description.get("provenance") or {}, dict):
        raise InputError(f"{where}: provenance must be a mapping.")
    for field in ("data", "substitute"):
        if not isinstance(description.get(field), str | None):
            raise InputError(f"{where}: {field} must be a name.")
    names = description.get("class_names")
    if not isinstance(names, list) or len(names) != config.classes:
        raise InputError(f"{where}: class_names must be a list of {config.classes} names.")
    try:
        digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{folder / WEIGHTS} cannot be read ({error.strerror}).") from None
    if digest != description.get("sha256"):
        raise InputError(
            f"{folder / WEIGHTS} does not match the sha256 in {DESCRIPTION}: "
            "it is truncated or was changed; restore both files."
        )
    return Checkpoint(name, folder, config, description, digest)


def load_network(checkpoint: Checkpoint, device: str | torch.device = "cpu") -> Network:
    """A fresh network with the checkpoint's weights, in evaluation mode and frozen.

    Raises:
        InputError: The weights are malformed, do not fit the description, or are not finite.
    """
    path = checkpoint.folder / WEIGHTS
    try:
        blob = path.read_bytes()
        tensors = load_tensors(blob)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a safetensors file ({error}): restore it.") from None
    if hashlib.sha256(blob).hexdigest() != checkpoint.sha256:
        # An attack would see weights that differ from those of the network that judges its images.
        raise InputError(f"{path} changed while it was in use: run the same command again.")
    expected = _described(checkpoint)
    try:
        tensors = unpacked(tensors, {name: t.shape for name, t in expected.items()})
    except ValueError as error:
        raise InputError(f"{path}: {error}: restore it.") from None
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise InputError(f"{path} lacks {name!r}: it does not fit {DESCRIPTION}.")
        if name not in expected:
            raise InputError(f"{path} holds {name!r}, which {DESCRIPTION} does not describe.")
        if tensors[name].shape != expected[name].shape:
            raise InputError(
                f"{path}: {name!r} has shape {list(tensors[name].shape)}, "
                f"{DESCRIPTION} asks for {list(expected[name].shape)}."
            )
        if tensors[name].dtype not in REAL:
            kind = str(tensors[name].dtype).removeprefix("torch.")
            raise InputError(
                f"{path}: {name!r} is {kind}, and weights are real floats: restore it."
            )
        if not torch.isfinite(tensors[name]).all():
            raise InputError(f"{path}: {name!r} holds NaN or infinity: the checkpoint is broken.")
    network = Network(checkpoint.config)
    network.load_state_dict(tensors)
    check_neurons(network, str(path))
    return freeze(network.to(device))


def check_neurons(network: Network, where: str) -> None:
    """Refuse neurons that are none: every threshold is above 0, and every leak lies in [0, 1].

    Args:
        network: The network.
        where: What the message calls it.

    Raises:
        InputError: A threshold or a leak has another value.
    """
    for name, layer in network.spiking_layers().items():
        threshold, leak = layer.threshold.detach().item(), layer.leak.detach().item()
        if not threshold > 0:
            raise InputError(f"{where}: the threshold of {name} is {threshold:g}, not above 0.")
        if not 0 <= leak <= 1:
            raise InputError(f"{where}: the leak of {name} is {leak:g}, not in [0, 1].")


def outline(config: NetworkConfig, where: str) -> Network:
    """A network without memory for its weights, since a few bytes can describe any size.

    Args:
        config: The description of the network.
        where: What messages call the file that holds it.

    Raises:
        InputError: There can be no such network, or it is larger than any that can be used.
    """
    try:
        with torch.device("meta"):
            network = Network(config)
    except (RuntimeError, ValueError, OverflowError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{where} describes a network that cannot be built ({said}).") from None
    held = sum(weight.numel() for weight in weights_of(network).values())
    if held > MOST_WEIGHTS:
        raise InputError(f"{where} describes {held:,} weights, more than {MOST_WEIGHTS:,}.")
    return network


def _described(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The state dict of the network that a checkpoint describes, with shapes and without memory.

    Raises:
        InputError: There can be no such network, or the dense one had fewer weights.
    """
    where = checkpoint.folder / DESCRIPTION
    network = outline(checkpoint.config, str(where))
    held = sum(weight.numel() for weight in weights_of(network).values())
    dense = checkpoint.meta.get("dense_weights")
    if dense is not None and dense < held:
        raise InputError(
            f"{where}: dense_weights is {dense}, but the network without some of its channels has "
            f"{held} weights already."
        )
    return network.state_dict()


def freeze(network: Network) -> Network:
    """The same network, in evaluation mode and with no parameter that asks for a gradient."""
    network.eval()
    network.requires_grad_(False)
    return network


def load_model(
    name_or_path: str | Path, weights: Path | None = None, device: str | torch.device = "cpu"
) -> nn.Module:
    """A network by zoo name, checkpoint folder or `python.module:factory`.

    Args:
        name_or_path: A zoo name such as `fashion-mnist/vgg5-snn`, a folder, or a factory that
            returns an `nn.Module` from images in [0, 1] to logits, such as `nets:build`,
            `nets:build@weights.pt`, or, if it has a time axis,
            `nets:build@weights.pt:steps=8,encode=direct,decode=membrane-max`; see
            `robustsnn.models.shapes`. A factory runs the code of its module.
        weights: The weights of a factory's network, and only of one: a safetensors file, or what
            `torch.save` wrote: a state dict, or a dict that holds one next to other things. Its
            keys may have a prefix such as `module.`. It is read without executing code.
        device: The device for the network.

    Raises:
        InputError: The network cannot be found or read.

    Examples:
        >>> network = load_model("fashion-mnist/vgg5-snn")
        >>> network(torch.zeros(1, 1, 28, 28)).shape
        torch.Size([1, 10])
    """
    if isinstance(name_or_path, nn.Module):
        raise InputError("load_model takes a name or a folder: a network in memory is loaded.")
    text = str(name_or_path)
    refuse_nir(weights)
    if is_factory(text):
        named = parse_factory(text)
        if weights is not None and named.weights is not None:
            raise InputError(f"{text!r} names its weights already: drop --weights.")
        network = from_factory(named.factory, weights or named.weights).to(device)
        return network if named.shape is None else Shaped(network, named.shape)
    if weights is not None:
        raise InputError(f"--weights goes with python.module:factory, not with {text!r}.")
    return load_network(read_checkpoint(name_or_path), device)
