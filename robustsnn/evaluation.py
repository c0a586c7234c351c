"""The evaluation: attack in batches, judge each proposal afresh, store it, resume.

An attack only proposes. What counts is the class that a separate copy of the network gives the
proposed image in a plain forward pass, once the image is known to lie in the ball and the range.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robustsnn.batching import micro_batch_for, out_of_memory
from robustsnn.diagnostics import by_row, diagnose
from robustsnn.errors import InputError
from robustsnn.folders import unwritable
from robustsnn.formats import CLEAN
from robustsnn.gradients import make_estimator
from robustsnn.preflight import IMAGES, finite_logits, preflight
from robustsnn.randomness import Rng
from robustsnn.records import ACTIVITY, DONE, RUNNING, RunFolder, open_folder, summarise
from robustsnn.registry import Attack, load_attack
from robustsnn.scoring import judge, score
from robustsnn.snn.activity import record_activity
from robustsnn.snn.energy import energy
from robustsnn.snn.network import Network
from robustsnn.snn.neuron import kernel
from robustsnn.subjects import (
    Images,
    Subject,
    check_classes,
    check_fit,
    images_of,
    recomputing,
    subject_of,
)
from robustsnn.suites import Suite, load_suite
from robustsnn.threat import ThreatModel
from robustsnn.victim import Victim

#: Images that are attacked together: the survivors of an early exit fill fewer micro-batches.
TOGETHER = 256
#: Images whose pixels are kept for the gallery.
EXAMPLES = 24
#: Images whose spikes are counted.
ACTIVITY_IMAGES = 1000

Progress = Callable[[str, int, int], None]
"""Called with what is being done, batches done, and batches in all."""


@dataclass(frozen=True)
class Task:
    """One attack at one size."""

    label: str
    slug: str
    attack: Attack = field(repr=False)
    threat: ThreatModel
    estimator: str
    substitute: bool

    @property
    def key(self) -> str:
        """Names its images in `examples.safetensors`."""
        return f"{self.slug}@{self.threat.epsilon}"


@dataclass(frozen=True)
class Plan:
    """One evaluation, checked and ready to run."""

    subject: Subject
    images: Images = field(repr=False)
    suite: Suite
    tasks: tuple[Task, ...]
    substitute: Subject | None
    seed: int
    device: str
    batch_size: int
    recompute: int | None
    save_images: bool
    identity: str

    @property
    def default_folder(self) -> Path:
        """Where the run goes if nothing else is asked for."""
        return Path("runs") / self.identity[:12]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A finished run. `records`, `results` and `activity` are those of its folder.

    `folder` is None where none was asked for; `reprinted` says that nothing was computed.
    """

    folder: Path | None
    manifest: Mapping[str, Any]
    records: pd.DataFrame = field(repr=False)
    results: pd.DataFrame
    activity: pd.DataFrame = field(repr=False)
    reprinted: bool = False


def prepare(
    model: nn.Module | str | Path | Subject,
    data: Images | tuple[Tensor, Tensor] | str | None = None,
    suite: Suite | str | Path = "quick",
    *,
    norm: str | None = None,
    epsilon: str | None = None,
    data_root: Path | None = None,
    samples: int | None = None,
    substitute: nn.Module | str | Path | Subject | None = None,
    weights: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int | None = None,
    recompute: int | None = None,
    save_images: bool = False,
    name: str | None = None,
) -> Plan:
    """Check everything that can be wrong before anything is run or written; see `evaluate`.

    Raises:
        InputError: Any of it is wrong.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch size {batch_size}: give at least 1.")
    if samples is not None and samples < 1:
        raise InputError(f"cannot take {samples} samples: the number must be at least 1.")
    check_device(device)
    suite = suite if isinstance(suite, Suite) else load_suite(suite)
    suite = suite.at(norm, epsilon)
    if not isinstance(model, Subject):
        model = subject_of(model, weights=weights, device=device, name=name)
    if recompute is not None:
        model = recomputing(model, recompute)
    images = images_of(data, model, root=data_root, samples=samples)
    network = model.load()
    check_fit(network, model.name, images)
    tasks = _tasks(suite, images, network)
    second = _substitute(substitute, model, images, device) if _needs(tasks) else None
    crafting = second.load() if second else None
    for task in tasks:
        _estimator_name(task, network, crafting if task.substitute else None)
    identity = {
        "model": model.identity,
        "data": [images.fingerprint, images.name, len(images)],
        "suite": [suite.name, suite.version, suite.digest(), _files(suite)],
        "substitute": second.identity if second else None,
        "seed": seed,
        "save_images": save_images,
    }
    return Plan(
        subject=model,
        images=images,
        suite=suite,
        tasks=tasks,
        substitute=second,
        seed=seed,
        device=device,
        batch_size=micro_batch_for(network) if batch_size is None else batch_size,
        recompute=recompute,
        save_images=save_images,
        identity=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
    )


def evaluate(
    network: nn.Module | str | Path,
    data: Images | tuple[Tensor, Tensor] | str | None = None,
    suite: Suite | str | Path = "quick",
    *,
    norm: str | None = None,
    epsilon: str | None = None,
    data_root: Path | None = None,
    samples: int | None = None,
    substitute: nn.Module | str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int | None = None,
    recompute: int | None = None,
    save_images: bool = False,
    output: Path | str | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Attack a network and say what is left of its accuracy.

    Args:
        network: In memory (copied before it is attacked), a zoo name, a checkpoint folder or
            `python.module:factory`. It maps pixels in [0, 1] to logits.
        data: A data set, its name, or images `[n, channel, height, width]` in [0, 1] with labels
            `[n]`; by default what the checkpoint was trained on.
        suite: A suite, its name or its YAML file.
        norm: `Linf` or `L2` in place of the suite's.
        epsilon: Size or sizes in place of the suite's, in pixel units, such as `8/255`.
        data_root: Folder that holds the data set; by default the sample that ships.
        samples: How many of the first images.
        substitute: What a black-box attacker crafts on.
        seed: Of every draw.
        device: Where to compute.
        batch_size: Images per forward pass; by default what suits the network.
        recompute: Time steps between two membranes that a gradient keeps; less memory on long
            sequences for a second forward pass. None keeps everything.
        save_images: Keep every adversarial image, for `verify`.
        output: Run folder. The same evaluation resumes or reprints there; None keeps nothing.
        name: What to call a network in memory.
        progress: Told of every finished batch.

    Raises:
        InputError: Something given cannot be used.
    """
    plan = prepare(
        network,
        data,
        suite,
        norm=norm,
        epsilon=epsilon,
        data_root=data_root,
        samples=samples,
        substitute=substitute,
        seed=seed,
        device=device,
        batch_size=batch_size,
        recompute=recompute,
        save_images=save_images,
        name=name,
    )
    if output is not None:
        return run(plan, Path(output), progress=progress)
    with tempfile.TemporaryDirectory(prefix="robustsnn-") as scratch:
        done = run(plan, Path(scratch) / "run", progress=progress)
    return dataclasses.replace(done, folder=None)


def run(
    plan: Plan,
    output: Path,
    *,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """Carry a plan out in a folder, from where an earlier start was stopped.

    Args:
        plan: What to do.
        output: The run folder.
        command: How it was asked for.
        progress: Told of every finished batch.

    Raises:
        InputError: The folder is not this run's, or the network gives NaN on clean images.
    """
    started = output.exists()

    def header() -> dict[str, Any]:
        # A network that cannot be evaluated leaves no folder behind.
        fitting, checks = _fitting(plan)
        return {
            **_header(fitting, command),
            "batch_size_asked": plan.batch_size,
            "preflight": checks,
        }

    folder = open_folder(output, plan.identity, header)
    manifest = folder.manifest()
    if manifest.get("status") == DONE:
        folder.tidy()
        return _read(folder, manifest, reprinted=True)
    with _locked(output):
        # Batches on disk were made at the size that the run was started with.
        plan = _as_started(plan, manifest)
        try:
            try:
                _judge_clean(plan, folder, progress or _silent)
            except InputError:
                if not started:
                    shutil.rmtree(output, ignore_errors=True)
                raise
            _attack_all(plan, folder, progress or _silent)
            return _finish(plan, folder, manifest)
        except OSError as error:
            raise unwritable(output, error) from error


def check_device(device: str) -> None:
    """Refuse a device that does not exist here.

    Raises:
        InputError: As said.
    """
    known = ["cpu"]
    if torch.cuda.is_available():
        known += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        known.append("mps")
    asked = "cuda:0" if device == "cuda" else device
    if asked not in known:
        raise InputError(f"no device {device!r} here: choose {' or '.join(known)}.")


# --- what to run --------------------------------------------------------------------------------


def _tasks(suite: Suite, images: Images, network: nn.Module) -> tuple[Task, ...]:
    tasks = []
    values = int(np.prod(images.shape))
    for entry in suite.entries:
        attack = load_attack(entry.attack)
        if attack.kind == "none":
            continue
        if entry.substitute and attack.kind != "transfer":
            # It would be run on the network itself and be recorded as a black box.
            raise InputError(
                f"{entry.label}: {entry.attack} does not craft on a substitute: write "
                f"transfer:{entry.attack}, or drop substitute."
            )
        norms = getattr(attack, "norms", None)
        for norm, epsilon in suite.budgets(entry, values):
            if norms is not None and norm not in norms:
                raise InputError(
                    f"{entry.attack} works in {' and '.join(norms)} only, not in {norm}: choose "
                    "another attack or norm."
                )
            tasks.append(
                Task(
                    label=entry.label,
                    slug=entry.slug,
                    attack=attack,
                    threat=ThreatModel(norm, epsilon),
                    estimator=entry.estimator,
                    substitute=entry.substitute or attack.kind == "transfer",
                )
            )
    return tuple(tasks)


def _needs(tasks: Sequence[Task]) -> bool:
    return any(task.substitute for task in tasks)


def _substitute(
    given: nn.Module | str | Path | Subject | None, subject: Subject, images: Images, device: str
) -> Subject:
    found = given if given is not None else subject.meta.get("substitute")
    if found is None:
        raise InputError(
            f"the suite attacks through a substitute network and {subject.name} names none: add "
            "--substitute MODEL, such as the same recipe trained with another seed."
        )
    second = found if isinstance(found, Subject) else subject_of(found, device=device)
    check_fit(second.load(), f"the substitute {second.name}", images)
    return second


def _estimator_name(task: Task, network: nn.Module, second: nn.Module | None) -> str:
    if task.attack.kind == "noise":
        return "none"
    crafted_on = network if second is None else second
    return make_estimator(task.estimator, crafted_on).name


def _files(suite: Suite) -> list[str]:
    """Digests of the user's own attack files: another content is another suite."""
    found = []
    for entry in suite.entries:
        # `transfer:` runs an attack that may be a file too.
        spec = entry.attack.strip().removeprefix("transfer:").removeprefix("attack=")
        path = Path(spec.partition(":")[0].strip()).expanduser()
        if path.suffix == ".py":
            found.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return found


# --- the loop -----------------------------------------------------------------------------------


def _judge_clean(plan: Plan, folder: RunFolder, progress: Progress) -> None:
    batches = _batches(plan)
    judging = plan.subject.load()
    for batch, where in enumerate(batches):
        if not folder.part(CLEAN, batch).exists():
            _clean_batch(plan, folder, batch, where, judging)
        progress("clean", batch + 1, len(batches) * (1 + len(plan.tasks)))


def _attack_all(plan: Plan, folder: RunFolder, progress: Progress) -> None:
    batches = _batches(plan)
    total = len(batches) * (1 + len(plan.tasks))
    done = len(batches)
    judging = plan.subject.load()
    for index, task in enumerate(plan.tasks):
        name = _part(index)
        if all(folder.part(name, batch).exists() for batch in range(len(batches))):
            done += len(batches)
            continue
        # A new copy for each attack: whatever one does to it, the next does not meet.
        network = plan.subject.load()
        second = plan.substitute.load() if task.substitute and plan.substitute else None
        estimator = _estimator_name(task, network, second)
        for batch, where in enumerate(batches):
            if not folder.part(name, batch).exists():
                rows, saved = _attacked_batch(
                    plan, folder, task, estimator, batch, where, network, second, judging
                )
                folder.write_part(name, batch, rows, saved)
            done += 1
            progress(f"{task.label} {task.threat.norm} {task.threat.epsilon}", done, total)


def _batches(plan: Plan) -> list[slice]:
    size = max(1, TOGETHER // plan.batch_size) * plan.batch_size
    return [slice(i, min(i + size, len(plan.images))) for i in range(0, len(plan.images), size)]


def _part(index: int) -> str:
    return f"attack-{index:03d}"


def _kept(plan: Plan, where: slice) -> int:
    """How many images of a batch, from its start, are stored with their pixels."""
    if plan.save_images:
        return int(where.stop - where.start)
    return max(0, min(EXAMPLES, int(where.stop)) - int(where.start))


def _inputs(plan: Plan, where: slice) -> tuple[Tensor, Tensor, list[int]]:
    images = plan.images.tensor(where).to(plan.device)
    labels = torch.from_numpy(np.ascontiguousarray(plan.images.labels[where])).to(plan.device)
    return images, labels, plan.images.ids[where].tolist()


def _clean_batch(
    plan: Plan, folder: RunFolder, batch: int, where: slice, judging: nn.Module
) -> None:
    began = time.perf_counter()
    images, labels, ids = _inputs(plan, where)
    logits = finite_logits(judging, images, ids, plan.batch_size, plan.seed)
    predictions, margins = judge(logits, labels)
    zeros = np.zeros(len(ids), dtype=np.int64)
    rows = pd.DataFrame(
        {
            **_same(plan, "none", "", "", CLEAN, ""),
            "image_id": ids,
            "label": labels.cpu().numpy(),
            "clean_prediction": predictions.cpu().numpy(),
            "prediction": predictions.cpu().numpy(),
            "margin": margins.cpu().numpy(),
            "success": False,
            "linf": 0.0,
            "l2": 0.0,
            "forward_passes": zeros + 1,
            **dict.fromkeys(("backward_passes", "zero_grad", "nonfinite_grad", "projected"), zeros),
            "seconds": (time.perf_counter() - began) / len(ids),
        }
    )
    kept = _kept(plan, where)
    saved = {
        "clean": images[:kept].cpu().numpy(),
        "label": labels[:kept].cpu().numpy(),
        "image_id": np.asarray(ids[:kept], dtype=np.int64),
        "prediction/clean": predictions[:kept].cpu().numpy(),
    }
    folder.write_part(CLEAN, batch, rows, saved if kept else None)


def _attacked_batch(
    plan: Plan,
    folder: RunFolder,
    task: Task,
    estimator: str,
    batch: int,
    where: slice,
    network: nn.Module,
    second: nn.Module | None,
    judging: nn.Module,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Records of a batch under an attack, and the images to keep."""
    began = time.perf_counter()
    images, labels, ids = _inputs(plan, where)
    clean = folder.read_part(CLEAN, batch)
    clean_predictions = torch.from_numpy(clean["prediction"].to_numpy(copy=True)).to(plan.device)
    right = clean_predictions == labels
    attacked = torch.ones_like(right) if plan.suite.attack_misclassified else right
    proposals = images.clone()
    counts = {
        name: np.zeros(len(ids), dtype=np.int64)
        for name in ("forward_passes", "backward_passes", "zero_grad", "nonfinite_grad")
    }
    where_attacked = attacked.nonzero().flatten()
    # A ball of radius 0 holds the image alone; there is nothing to look for.
    if len(where_attacked) and task.threat.radius > 0:
        some = [ids[i] for i in where_attacked.tolist()]
        found, spent = _propose(
            plan, task, network, second, images[where_attacked], labels[where_attacked], some
        )
        proposals[where_attacked] = found
        for name, values in spent.items():
            counts[name][where_attacked.cpu().numpy()] = values
    proposals, projected = _admitted(task.threat, proposals, images)
    logits = score(judging, proposals, ids, plan.batch_size, plan.seed)
    predictions, margins = judge(logits, labels)
    delta = (proposals.double() - images.double()).flatten(1)
    substitute = plan.substitute.name if task.substitute and plan.substitute else ""
    rows = pd.DataFrame(
        {
            **_same(plan, estimator, task.threat.norm, task.threat.epsilon, task.slug, substitute),
            "image_id": ids,
            "label": labels.cpu().numpy(),
            "clean_prediction": clean_predictions.cpu().numpy(),
            "prediction": predictions.cpu().numpy(),
            "margin": margins.cpu().numpy(),
            "success": (right & (predictions != labels)).cpu().numpy(),
            "linf": delta.abs().amax(1).cpu().numpy(),
            "l2": delta.square().sum(1).sqrt().cpu().numpy(),
            **counts,
            "projected": projected.to(torch.int64).cpu().numpy(),
            "seconds": (time.perf_counter() - began) / len(ids),
        }
    )
    kept = _kept(plan, where)
    saved = {
        f"adversarial/{task.key}": proposals[:kept].cpu().numpy(),
        f"prediction/{task.key}": predictions[:kept].cpu().numpy(),
    }
    return rows, saved if kept else {}


def _propose(
    plan: Plan,
    task: Task,
    network: nn.Module,
    second: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    ids: list[int],
) -> tuple[Tensor, dict[str, Any]]:
    """What an attack proposes, float32, and what it spent on each image."""
    size = plan.batch_size
    substitute = None
    if second is not None:
        substitute = Victim(
            second, make_estimator(task.estimator, second), ids, micro_batch=size, seed=plan.seed
        )
    estimator = make_estimator("bptt" if second is not None else task.estimator, network)
    victim = Victim(
        network, estimator, ids, micro_batch=size, seed=plan.seed, substitute=substitute
    )
    rng = Rng(plan.seed, ids, stream=task.slug)
    with _users_mistakes(task):
        proposal = task.attack(victim, images.clone(), labels.clone(), task.threat, rng)
    if not isinstance(proposal, Tensor) or proposal.shape != images.shape:
        got = list(proposal.shape) if isinstance(proposal, Tensor) else type(proposal).__name__
        raise InputError(
            f"the attack {task.label} proposes {got} for images {list(images.shape)}: it must "
            "return one image for each."
        )
    ledgers = [victim] if substitute is None else [victim, substitute]
    spent = {
        name: sum(getattr(ledger, name).numpy() for ledger in ledgers)
        for name in ("forward_passes", "backward_passes", "zero_grad", "nonfinite_grad")
    }
    return proposal.detach().to(images.device, images.dtype), spent


@contextlib.contextmanager
def _users_mistakes(task: Task) -> Iterator[None]:
    """Say in one line where a user's own attack failed; a failure of ours stays a traceback."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        module = type(task.attack).__module__
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is None or module.partition(".")[0] == "robustsnn":
            raise
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        where = f"{file}, line {frames[-1].lineno}" if frames else file
        raise InputError(
            f"the attack {task.label} failed ({where}): {type(error).__name__}: {error}; mend it "
            "and run the same command again."
        ) from error


def _admitted(threat: ThreatModel, proposals: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Proposals that the threat model admits, and which of them had to be changed for it."""
    outside = ~threat.admits(proposals, images)
    if not bool(outside.any()):
        return proposals, outside
    mended = threat.project(proposals, images)
    usable = proposals.isfinite().flatten(1).all(1) & threat.admits(mended, images)
    shape = (-1, *[1] * (images.dim() - 1))
    mended = torch.where(usable.view(shape), mended, images)
    return torch.where(outside.view(shape), mended, proposals), outside


def _same(
    plan: Plan, estimator: str, norm: str, epsilon: str, attack: str, substitute: str
) -> dict[str, Any]:
    return {
        "model": plan.subject.name,
        "suite": plan.suite.name,
        "attack": attack,
        "estimator": estimator,
        "substitute": substitute,
        "norm": norm,
        "epsilon": epsilon,
        "seed": plan.seed,
    }


# --- before and after ---------------------------------------------------------------------------


def _fitting(plan: Plan) -> tuple[Plan, list[dict[str, Any]]]:
    """The plan at the largest batch size, halved as often as need be, that memory allows."""
    while True:
        try:
            return plan, _preflight(plan)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if plan.batch_size == 1:
                raise InputError(
                    f"memory ran out on a single image of {plan.subject.name}: "
                    "recompute long sequences in segments with --recompute, such as 16."
                ) from error
        plan = dataclasses.replace(plan, batch_size=plan.batch_size // 2)


def _as_started(plan: Plan, manifest: Mapping[str, Any]) -> Plan:
    recompute = manifest.get("recompute")
    subject = plan.subject
    if recompute != plan.recompute:
        subject = recomputing(subject, recompute)
    return dataclasses.replace(
        plan, subject=subject, batch_size=int(manifest["batch_size"]), recompute=recompute
    )


def _preflight(plan: Plan) -> list[dict[str, Any]]:
    images, labels, ids = _inputs(plan, slice(0, min(IMAGES, len(plan.images))))
    network = plan.subject.load()
    logits = finite_logits(network, images, ids, plan.batch_size, plan.seed)
    check_classes(logits.shape[1], plan.subject.name, plan.images)
    if plan.substitute is not None:
        # Attacks craft on it at the same batch size: it must fit too.
        second = plan.substitute.load()
        estimator = make_estimator("bptt", second)
        Victim(second, estimator, ids, plan.batch_size, plan.seed).gradient(images, labels)
    return [
        check.row() for check in preflight(network, images, labels, ids, plan.batch_size, plan.seed)
    ]


def _header(plan: Plan, command: Sequence[str]) -> dict[str, Any]:
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
    for package in ("robustsnn", "torch", "torchattacks", "numpy", "numba"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _finish(plan: Plan, folder: RunFolder, manifest: dict[str, Any]) -> Evaluation:
    batches = range(len(_batches(plan)))
    parts = [CLEAN, *map(_part, range(len(plan.tasks)))]
    records, examples = folder.merged([(part, batch) for part in parts for batch in batches])
    settings = {
        task.slug: (getattr(task.attack, "steps", None), getattr(task.attack, "restarts", None))
        for task in plan.tasks
    }
    kinds = {task.slug: task.attack.kind for task in plan.tasks}
    plain = summarise(records, plan.images.name, settings)
    flags = diagnose(
        records,
        plain,
        kinds,
        _classes(plan),
        manifest.get("preflight") or (),
        bool(manifest.get("stochastic")),
    )
    results = summarise(records, plan.images.name, settings, by_row(flags, plain))
    activity, joules, counted = _activity(plan)
    header = {
        **manifest,
        "flags": [flag.row() for flag in flags],
        "energy": joules,
        "activity_images": counted,
        "seconds": round(float(records["seconds"].sum()), 3),
        "status": DONE,
    }
    folder.finish(header, records, results, activity, examples)
    return _read(folder, folder.manifest())


def _classes(plan: Plan) -> int:
    network = plan.subject.load()
    known = getattr(network, "classes", None) or len(plan.images.class_names)
    return int(known or plan.images.labels.max() + 1)


def _activity(plan: Plan) -> tuple[pd.DataFrame, dict[str, float], int]:
    """Spikes per neuron by layer and step, energy in microjoule, and images counted."""
    network = plan.subject.load()
    if not isinstance(network, Network):
        return pd.DataFrame({name: [] for name in ACTIVITY}), {}, 0
    count = min(ACTIVITY_IMAGES, len(plan.images))
    images, _, ids = _inputs(plan, slice(0, count))
    keys = torch.tensor(ids, dtype=torch.int64) if network.stochastic else None
    recorded = record_activity(network, images, keys, batch_size=plan.batch_size)
    rows = [
        (layer.name, layer.neurons, step, spikes)
        for layer in recorded.layers
        for step, spikes in enumerate(layer.spikes_per_step)
    ]
    joules = energy(network, recorded)._asdict()
    finite = {name: value for name, value in joules.items() if value == value}
    return pd.DataFrame(rows, columns=list(ACTIVITY)), finite, count


def _read(folder: RunFolder, manifest: dict[str, Any], reprinted: bool = False) -> Evaluation:
    return Evaluation(
        folder=folder.path,
        manifest=manifest,
        records=folder.records(),
        results=folder.results(),
        activity=folder.activity(),
        reprinted=reprinted,
    )


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep a second process out of a run folder; the system lets go when this one dies."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(
            f"another process is running the evaluation in {path}: wait for it, or name another "
            "--output."
        ) from None
    try:
        yield
    finally:
        os.close(handle)
