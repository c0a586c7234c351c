"""The model of a run, read anew, and whether it is what the manifest says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from robustsnn.errors import InputError
from robustsnn.evaluation.header import densities_of, manifest_of
from robustsnn.evaluation.plan import Plan, adapting
from robustsnn.models.identity import digest_of
from robustsnn.models.subject import Subject, checkpoint_subject, recomputing, subject_of
from robustsnn.records.manifest import Manifest

#: The fields of a manifest that follow from the model, its images and its suite.
FOLLOWING = (
    "identity",
    "kind",
    "architecture",
    "time_steps",
    "encoding",
    "method",
    "stochastic",
    "spiking",
    "classes",
    "left_out",
    "files",
    "basis",
    "substitute",
    "substitute_sha256",
)
#: What older runs have in place of fields that they do not know.
UNKNOWN: tuple[Any, ...] = (None, (), "", {})


def subject_in(manifest: Manifest, model: str | None, weights: Path | None, device: str) -> Subject:
    """The model of a run.

    Args:
        manifest: The manifest of the run.
        model: The name under which the user has it, if it was moved or is code.
        weights: The state dict of a model that is code.
        device: The device that computes.

    Raises:
        InputError: It cannot be found or read, or it is another one.
    """
    if model is None and manifest.origin == "memory":
        raise InputError("the run's network was in memory: name its checkpoint with --model.")
    if model is not None:
        asked = model
        found = manifest.foreign
        # With other neurons within reach it would be another network by its digest.
        adapt = found and adapting("none" if found.get("left_alone") else "auto")
        subject = subject_of(model, weights=weights, device=device, adapt=adapt or None)
    elif weights is not None:
        raise InputError("--weights goes with --model python.module:factory: name it too.")
    else:
        # The manifest may come from anybody, so what it names is looked up and never imported.
        asked = manifest.origin if Path(manifest.origin).is_dir() else manifest.model
        if ":" in asked and not Path(asked).exists():
            raise InputError(
                f"the run's network came from code ({asked}), which a manifest cannot make "
                "RobustSNN import: name it with --model (and --weights)."
            )
        subject = checkpoint_subject(asked, device=device)
    if manifest.origin == "memory" and subject.sha256 != manifest.checkpoint_sha256:
        # Of a network in memory the digest is known, not the file that it came from.
        digest = digest_of(subject.load())
        subject = dataclasses.replace(subject, identity=digest, sha256=digest)
    if subject.sha256 != manifest.checkpoint_sha256:
        raise InputError(
            f"{asked} is not the model of this run (sha256 {subject.sha256[:12]}, the run has "
            f"{manifest.checkpoint_sha256[:12]}): name the right one with --model."
        )
    subject = dataclasses.replace(subject, name=manifest.model)
    return subject if manifest.recompute is None else recomputing(subject, manifest.recompute)


def substitute_in(manifest: Manifest, named: str | None, device: str) -> tuple[Subject | None, str]:
    """The model that black-box attacks crafted on, or None and the reason why it is not at hand.

    Raises:
        InputError: The model that the user named cannot be read.
    """
    if named is not None:
        found = subject_of(named, device=device, adapt=adapting("auto"))
        return dataclasses.replace(found, name=manifest.substitute or named), ""
    if manifest.substitute is None:
        return None, ""
    try:
        return checkpoint_subject(manifest.substitute, device=device), ""
    except InputError:
        reason = f"the substitute {manifest.substitute} is not at hand: add --substitute"
        return None, reason


def untrue(manifest: Manifest, plan: Plan, given: bool) -> tuple[str, ...]:
    """The fields of a manifest that do not follow from what it names, one sentence each.

    Args:
        manifest: The manifest of a finished run.
        plan: The same evaluation, planned anew.
        given: Whether the substitute of the run, if it has one, is at hand.
    """
    due = manifest_of(plan)
    said = []
    for name in FOLLOWING:
        if not given and name in ("identity", "substitute", "substitute_sha256"):
            continue
        if name == "method" and manifest.origin == "memory":
            continue
        stated, follows = getattr(manifest, name), getattr(due, name)
        if stated != follows and (manifest.digest or stated not in UNKNOWN):
            what = "the identity of the run" if name == "identity" else f"{name} {_short(stated)}"
            said.append(f"{what} does not follow" + _instead(name, follows))
    if manifest.foreign is not None or due.foreign is not None:
        said += _foreign(manifest.foreign, due.foreign)
    return tuple(said)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _instead(name: str, follows: Any) -> str:
    return "" if name == "identity" else f" ({_short(follows)} does)"


def _foreign(stated: Mapping[str, Any] | None, due: Mapping[str, Any] | None) -> list[str]:
    """Whether the neurons of another library are those that were found; measurements are not."""
    one, other = (
        None if found is None else {k: v for k, v in found.items() if k != "checks"}
        for found in (stated, json.loads(json.dumps(due)))
    )
    return [] if one == other else ["what is said of the neurons of another library is not so"]


def odd_densities(
    manifest: Manifest, meta: Mapping[str, Any], network: nn.Module
) -> tuple[str, ...]:
    """What the run states about the weights of the model and is not so; nothing if it is older."""
    if manifest.densities is None:
        # Runs that have a digest of their manifest state the weights too.
        return ("the run does not state the weights of the model",) if manifest.digest else ()
    found = {row["layer"]: row for row in densities_of(network)}
    stated = {row["layer"]: row for row in manifest.densities}
    differing = [
        f"the run states {_weights(stated.get(layer))} for {layer}, the model has "
        f"{_weights(found.get(layer))}"
        for layer in {**stated, **found}
        if stated.get(layer) != found.get(layer)
    ]
    if len(stated) != len(manifest.densities):
        differing.append("the run states the weights of a layer twice")
    # Only a checkpoint knows what it had before channels were removed.
    dense = meta.get("dense_weights")
    if meta and manifest.origin != "memory" and dense != manifest.dense_weights:
        differing.append(
            f"the run states {manifest.dense_weights} weights before channels were removed, the "
            f"checkpoint {dense}"
        )
    return tuple(differing)


def _weights(row: Mapping[str, Any] | None) -> str:
    return "no weights" if row is None else f"{row['kept']} of {row['weights']} weights"
