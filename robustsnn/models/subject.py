"""What is evaluated: a model that can be loaded anew any number of times."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.models.calling import calling, fixed_batch, frozen, take_at_once, uncompiled
from robustsnn.models.checkpoint import load_model, load_network, read_checkpoint
from robustsnn.models.identity import digest_of
from robustsnn.models.naming import parse_factory
from robustsnn.models.sources import sources_of
from robustsnn.snn.copying import ANEW, copy_of
from robustsnn.snn.network import Network


@dataclass(frozen=True)
class Subject:
    """A model under evaluation.

    `load` returns a new network each time, in evaluation mode and frozen; `identity` changes with
    its structure, weights and masks, and with the files of a factory (see `models.function` for
    the rest of what it computes); `sha256` is that of its weights; `origin` is the place that it
    came from; `meta` is the `meta` of a checkpoint; `described` says whether it is one, so that its
    weights and settings say all that it computes; `at_once` is the number of images that it takes
    at a time, if it takes no other; `weighted` says whether anything names its weights: a factory
    alone may draw them.
    """

    name: str
    load: Callable[[], nn.Module] = field(repr=False)
    identity: str
    sha256: str
    origin: str
    meta: Mapping[str, Any] = field(default_factory=dict, repr=False)
    described: bool = False
    at_once: int | None = None
    weighted: bool = True


def subject_of(
    model: nn.Module | str | Path,
    *,
    weights: Path | None = None,
    device: str = "cpu",
    name: str | None = None,
    adapt: Callable[[nn.Module], nn.Module] | None = None,
) -> Subject:
    """A model by zoo name, checkpoint folder, `python.module:factory`, or in memory.

    A network in memory is copied at once: later changes of it are not seen here, and nothing here
    changes it.

    Args:
        model: The name, the folder, the factory, or the network itself.
        weights: The weights of a factory's network, as in `load_model`.
        device: The device for the network.
        name: The name in records; by default the text, or the type of a network in memory.
        adapt: A function that a network from elsewhere goes through before it is copied.

    Raises:
        InputError: The model cannot be found or read.
    """
    if isinstance(model, nn.Module):
        with calling(model):
            kept = frozen(copy_of(_adapted(uncompiled(model), adapt)))
            digest = digest_of(kept)
        return Subject(
            name or str(getattr(model, "inner_name", type(model).__name__)),
            lambda: copy_of(kept).to(device),
            digest,
            digest,
            "memory",
        )
    text = str(model)
    if weights is not None or (":" in text and not Path(text).exists()):
        # It is called once: a factory may draw new weights at every call, or always return one
        # and the same module.
        made = load_model(text, weights, device)
        with calling(made):
            made = _adapted(made, adapt)
            digest = digest_of(made)
        files = json.dumps(sources_of(text.partition(":")[0]))
        identity = hashlib.sha256(f"{digest} {files}".encode()).hexdigest()

        def anew(network: nn.Module) -> nn.Module:
            # Nothing of the first network is held here, so that it can be forgotten.
            again = load_model(text, weights, device)
            around = getattr(network, "around", None)
            return _like(network, again if around is None else around(again))

        # What cannot be copied, such as a lock, its factory makes anew.
        ANEW[made] = anew
        weighted = weights is not None or parse_factory(text).weights is not None
        return Subject(
            name or text, lambda: copy_of(made), identity, digest, text, weighted=weighted
        )
    return checkpoint_subject(text, device=device, name=name)


def _like(network: nn.Module, again: nn.Module) -> nn.Module:
    """Another network of a factory, with the weights of the first.

    Raises:
        InputError: It is another one by anything besides its weights, or no other one at all.
    """
    if {*network.modules()} & {*again.modules()}:
        said = "returns one and the same network at every call"
    else:
        # A factory without weights draws new ones at every call.
        again.load_state_dict(network.state_dict())
        again.eval().requires_grad_(False)
        if digest_of(again) == digest_of(network):
            return again
        said = "returns another network at every call"
    name = getattr(network, "inner_name", type(network).__name__)
    raise InputError(
        f"the factory of {name} {said}, and that network cannot be copied: let it "
        "build a new and equal one."
    )


def _adapted(network: nn.Module, adapt: Callable[[nn.Module], nn.Module] | None) -> nn.Module:
    return network if adapt is None else adapt(network)


def checkpoint_subject(
    zoo_name_or_folder: str | Path, *, device: str = "cpu", name: str | None = None
) -> Subject:
    """A model by zoo name or checkpoint folder, which runs no code.

    Names that were read from a file (a manifest, a `model.json`) go through here: only a name that
    a user typed may be imported.

    Raises:
        InputError: The model cannot be found or read, or its name names code.
    """
    text = str(zoo_name_or_folder)
    if ":" in text and not Path(text).exists():
        raise InputError(
            f"{text!r} comes from a file and names code, which is never imported: give the name "
            "of a model or a checkpoint folder yourself."
        )
    checkpoint = read_checkpoint(text)
    load_network(checkpoint)  # so that broken weights are refused before anything runs
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
        described=True,
    )


def at_its_size(subject: Subject, image: Tensor, sizes: Sequence[int | None]) -> Subject:
    """The same model, which is given as many images at a time as it takes, if that is one number.

    Args:
        subject: The model.
        image: One image, `[1, channel, height, width]`.
        sizes: Numbers of images to try first, if it does not take any number of them.
    """
    if subject.described:
        return subject
    network = subject.load()
    declared = getattr(network, "batch_size", None)
    tried = [*sizes, declared if isinstance(declared, int) else None, *(2**n for n in range(9))]
    size = fixed_batch(network, image, [n for n in dict.fromkeys(tried) if n])
    if size is None:
        return subject
    return dataclasses.replace(
        subject, load=lambda: take_at_once(subject.load(), size), at_once=size
    )


def recomputing(subject: Subject, steps: int | None) -> Subject:
    """The same model, with gradients that are computed in segments of that many time steps.

    Raises:
        InputError: There is less than one step, or the model is not a `Network`.
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
