"""What is evaluated and on what: a model that can be loaded afresh, and images with labels."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from robustsnn.errors import InputError
from robustsnn.models.checkpoint import load_model, load_network, read_checkpoint
from robustsnn.snn.network import Network


@dataclass(frozen=True)
class Subject:
    """A model under evaluation.

    `load` gives a new network each time, in evaluation mode and frozen; `identity` changes with
    anything that changes what the network computes; `sha256` is that of its weights.
    """

    name: str
    load: Callable[[], nn.Module] = field(repr=False)
    identity: str
    sha256: str
    origin: str
    meta: Mapping[str, Any] = field(default_factory=dict, repr=False)


def subject_of(
    model: nn.Module | str | Path,
    *,
    weights: Path | None = None,
    device: str = "cpu",
    name: str | None = None,
) -> Subject:
    """A model by zoo name, checkpoint folder, `python.module:factory`, or in memory.

    A network in memory is copied at once: what happens to it later is not seen here, nor the
    other way round.

    Raises:
        InputError: It cannot be found or read.
    """
    if isinstance(model, nn.Module):
        kept = copy.deepcopy(model)
        kept.eval().requires_grad_(False)
        digest = _digest(kept)
        return Subject(
            name or type(model).__name__,
            lambda: copy.deepcopy(kept).to(device),
            digest,
            digest,
            "memory",
        )
    text = str(model)
    if weights is not None or (":" in text and not Path(text).exists()):
        # Called once: a factory may draw new weights at every call, or hand out one module always.
        made = load_model(text, weights, device)
        digest = _digest(made)
        return Subject(name or text, lambda: copy.deepcopy(made), digest, digest, text)
    return checkpoint_subject(text, device=device, name=name)


def checkpoint_subject(
    zoo_name_or_folder: str | Path, *, device: str = "cpu", name: str | None = None
) -> Subject:
    """A model by zoo name or checkpoint folder, and by nothing that would run code.

    A name that was read from a file (a manifest, a `model.json`) goes through here: only what a
    user typed may be imported.

    Raises:
        InputError: It cannot be found or read.
    """
    text = str(zoo_name_or_folder)
    if ":" in text and not Path(text).exists():
        raise InputError(
            f"{text!r} comes from a file and names code, which is never imported: give the name "
            "of a model or a checkpoint folder yourself."
        )
    checkpoint = read_checkpoint(text)
    load_network(checkpoint)  # so that broken weights are refused before anything is run
    described = json.dumps(
        {"weights": checkpoint.sha256, "network": checkpoint.config.model_dump(mode="json")},
        sort_keys=True,
    )
    return Subject(
        name or text.rstrip("/"),
        lambda: load_network(checkpoint, device),
        hashlib.sha256(described.encode()).hexdigest(),
        checkpoint.sha256,
        str(checkpoint.folder.resolve()),
        checkpoint.meta,
    )


def recomputing(subject: Subject, steps: int | None) -> Subject:
    """The same model, its gradients recomputed in segments of so many time steps.

    Raises:
        InputError: Less than one step, or a model that does not know how.
    """
    if steps is not None and steps < 1:
        raise InputError(f"recompute {steps}: give at least 1 time step.")
    if not isinstance(subject.load(), Network):
        raise InputError(
            f"{subject.name} is not a RobustSNN network: it cannot recompute in segments; "
            "lower the batch size instead."
        )

    def load() -> nn.Module:
        network = subject.load()
        assert isinstance(network, Network)
        network.recompute = steps
        return network

    return dataclasses.replace(subject, load=load)


def _digest(network: nn.Module) -> str:
    digest = hashlib.sha256(str(network).encode())
    if isinstance(network, Network):
        digest.update(f"{network.config.model_dump_json()} {network.time_steps}".encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
