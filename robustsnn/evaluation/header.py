"""The header of a run: what is evaluated, on what, with which versions, and what was checked."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from robustsnn.evaluation.plan import Plan
from robustsnn.models.subject import recomputing
from robustsnn.records.schema import RUNNING
from robustsnn.snn.network import Network
from robustsnn.snn.neuron import kernel

#: What numbers depend on, where it is installed.
PACKAGES = (
    "robustsnn",
    "torch",
    "torchattacks",
    "numpy",
    "numba",
    "foolbox",
    "adversarial-robustness-toolbox",
    "secml-torch",
)


def as_started(plan: Plan, manifest: Mapping[str, Any]) -> Plan:
    """The plan with the settings that its run was started with; they shaped what is on disk."""
    recompute = manifest.get("recompute")
    subject = plan.subject
    if recompute != plan.recompute:
        subject = recomputing(subject, recompute)
    return dataclasses.replace(
        plan, subject=subject, batch_size=int(manifest["batch_size"]), recompute=recompute
    )


def header_of(plan: Plan, command: Sequence[str]) -> dict[str, Any]:
    """What `manifest.json` says of a run that begins."""
    network = plan.subject.load()
    ours = network if isinstance(network, Network) else None
    provenance = plan.subject.meta.get("provenance") or {}
    sizes = list(dict.fromkeys(task.threat.epsilon for task in plan.tasks))
    return {
        "identity": plan.identity,
        "command": list(command),
        "versions": versions(),
        "model": plan.subject.name,
        "origin": plan.subject.origin,
        "checkpoint_sha256": plan.subject.sha256,
        "kind": ours.kind if ours else "",
        "architecture": ours.config.architecture if ours else type(network).__name__,
        "time_steps": ours.time_steps if ours else 1,
        "encoding": ours.config.encoding if ours else "",
        "method": str(provenance.get("method") or ""),
        "stochastic": bool(getattr(network, "stochastic", False)),
        "data": plan.images.name,
        "data_fingerprint": plan.images.fingerprint,
        "class_names": list(plan.images.class_names),
        "samples": len(plan.images),
        "suite": plan.suite.name,
        "suite_version": plan.suite.version,
        "suite_sha256": plan.suite.digest(),
        "entries": plan.suite.model_dump(mode="json")["entries"],
        "left_out": list(plan.left_out),
        "cascade": plan.suite.cascade,
        "draws": plan.suite.draws,
        "attack_misclassified": plan.suite.attack_misclassified,
        "norm": plan.suite.norm,
        "epsilon": ", ".join(plan.suite.epsilon),
        "sizes": sizes,
        "substitute": plan.substitute.name if plan.substitute else None,
        "substitute_sha256": plan.substitute.sha256 if plan.substitute else None,
        "seed": plan.seed,
        "save_images": plan.save_images,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "device": plan.device,
        "threads": torch.get_num_threads(),
        "batch_size": plan.batch_size,
        "recompute": plan.recompute,
        "lif_kernel": kernel(plan.device) if ours and ours.kind == "snn" else "",
        "start": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "status": RUNNING,
    }


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
