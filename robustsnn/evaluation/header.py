"""The manifest of a run that begins: what is evaluated, on what, with which versions."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from robustsnn.common.installed import packages as installed_packages
from robustsnn.evaluation.diagnose import stages_of
from robustsnn.evaluation.meant import classes_of, kind_of
from robustsnn.evaluation.plan import Plan
from robustsnn.foreign.reach import Reach
from robustsnn.foreign.wrapped import Wrapped
from robustsnn.models.batching import bounded
from robustsnn.models.shapes import Shape, Shaped
from robustsnn.models.subject import recomputing
from robustsnn.records.manifest import Manifest
from robustsnn.records.schema import RUNNING
from robustsnn.snn.network import Network
from robustsnn.snn.neuron import kernel
from robustsnn.snn.sparsity import densities

#: The packages that numbers depend on, where they are installed.
PACKAGES = (
    "robustsnn",
    "torch",
    "numpy",
    "numba",
    "pandas",
    "pyarrow",
    "pillow",
    "scipy",
    "safetensors",
    "torchattacks",
    "foolbox",
    "adversarial-robustness-toolbox",
    "secml-torch",
    "spikingjelly",
    "snntorch",
    "norse",
    "sinabs",
)


def as_started(plan: Plan, manifest: Manifest) -> Plan:
    """The plan with the settings that its run was started with, which shaped what is on disk."""
    subject = plan.subject
    if manifest.recompute != plan.recompute:
        subject = recomputing(subject, manifest.recompute)
    size = bounded(manifest.batch_size, len(plan.images))
    return dataclasses.replace(plan, subject=subject, batch_size=size, recompute=manifest.recompute)


def with_stages(manifest: Manifest, plan: Plan) -> Manifest:
    """The manifest with what an older version did not write when it started the run.

    Args:
        manifest: The manifest of a run that is not finished.
        plan: The plan that is carried out; it has the same identity.
    """
    missing: tuple[str, ...] = ()
    if manifest.stages is None:
        missing += ("spiking", "classes", "estimator", "files", "stages")
    if manifest.densities is None:
        missing += ("densities", "dense_weights")
    if not missing:
        return manifest
    now = manifest_of(plan)
    return manifest.but(**{name: getattr(now, name) for name in missing})


def manifest_of(plan: Plan, command: Sequence[str] = ()) -> Manifest:
    """The manifest of a run that begins.

    Args:
        plan: The plan that will be carried out.
        command: The command line that asked for the run; empty for a call from Python.
    """
    network = plan.subject.load()
    ours = network if isinstance(network, Network) else None
    provenance = plan.subject.meta.get("provenance") or {}
    sizes = tuple(dict.fromkeys(task.threat.epsilon for task in plan.tasks))
    reach = network.reach if isinstance(network, Wrapped) else None
    shaped = network.inner if isinstance(network, Wrapped) else network
    shape = shaped.shape if isinstance(shaped, Shaped) else None
    return Manifest(
        identity=plan.identity,
        basis=plan.basis,
        function=dataclasses.asdict(plan.function) if plan.function else None,
        command=tuple(command),
        versions=versions(),
        model=plan.subject.name,
        origin=plan.subject.origin,
        checkpoint_sha256=plan.subject.sha256,
        kind=ours.kind if ours else "",
        architecture=(
            ours.config.architecture
            if ours
            else str(getattr(network, "inner_name", type(network).__name__))
        ),
        time_steps=ours.time_steps if ours else _steps(reach, shape),
        encoding=ours.config.encoding if ours else _encoding(reach, shape),
        method=str(provenance.get("method") or ""),
        stochastic=bool(getattr(network, "stochastic", False)),
        spiking=kind_of(network) == "snn",
        classes=classes_of(network, plan.images, plan.device),
        foreign=reach.row() if reach else None,
        densities=densities_of(network),
        dense_weights=plan.subject.meta.get("dense_weights"),
        data=plan.images.name,
        data_fingerprint=plan.images.fingerprint,
        class_names=tuple(plan.images.class_names),
        samples=len(plan.images),
        suite=plan.suite.name,
        suite_version=plan.suite.version,
        suite_sha256=plan.suite.digest(),
        entries=plan.suite.model_dump(mode="json")["entries"],
        left_out=tuple(plan.left_out),
        estimator=plan.estimator,
        files=dict(plan.files),
        stages=tuple(stage.row() for stage in stages_of(plan)),
        cascade=plan.suite.cascade,
        curve=plan.suite.curve,
        draws=plan.suite.draws,
        attack_misclassified=plan.suite.attack_misclassified,
        norm=plan.suite.norm,
        epsilon=", ".join(plan.suite.epsilon),
        sizes=sizes,
        substitute=plan.substitute.name if plan.substitute else None,
        substitute_sha256=plan.substitute.sha256 if plan.substitute else None,
        seed=plan.seed,
        save_images=plan.save_images,
        machine={"processor": platform.machine(), "cores": os.cpu_count()},
        device=plan.device,
        threads=torch.get_num_threads(),
        batch_size=plan.batch_size,
        recompute=plan.recompute,
        lif_kernel=kernel(plan.device) if ours and ours.kind == "snn" else "",
        start=datetime.now(UTC).isoformat(timespec="seconds"),
        status=RUNNING,
    )


def _steps(reach: Reach | None, shape: Shape | None) -> int:
    """The time steps of a network of another library: what its name says, or what was seen."""
    said = shape.steps if shape else None
    return max(said or (reach.steps if reach else 1), 1)


def _encoding(reach: Reach | None, shape: Shape | None) -> str:
    """How it sees an image: what its name says, or what was seen; empty if that is not known."""
    if shape is not None and shape.steps is not None:
        return shape.encode or "direct"
    return reach.encoding if reach else ""


def densities_of(network: nn.Module) -> tuple[dict[str, Any], ...]:
    """The layers with synapses as rows of a manifest, in order.

    >>> densities_of(nn.Sequential(nn.Linear(2, 1)))
    ({'layer': '0', 'weights': 2, 'kept': 2},)
    """
    return tuple(
        {"layer": layer.name, "weights": layer.weights, "kept": layer.kept}
        for layer in densities(network)
    )


def versions() -> dict[str, str]:
    """The versions of the packages that numbers depend on, and of Python, by name.

    Examples:
        >>> "torch" in versions()
        True
    """
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, *installed_packages()):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
