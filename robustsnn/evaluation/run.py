"""The evaluation: attack in batches, judge each proposal afresh, store it, resume a killed run."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from robustsnn.common.files import unwritable
from robustsnn.diagnosis.diagnose import diagnose
from robustsnn.errors import InputError
from robustsnn.evaluation import forms
from robustsnn.evaluation.batch import Networks, batches_of, inputs_of, part_name
from robustsnn.evaluation.cascade import Cascade, attack_survivors
from robustsnn.evaluation.diagnose import probed
from robustsnn.evaluation.earlier import identity_in, refuse_other_versions
from robustsnn.evaluation.finished import Evaluation as Evaluation
from robustsnn.evaluation.header import as_started, manifest_of, with_stages
from robustsnn.evaluation.judging import attacked_batch, clean_batch
from robustsnn.evaluation.memory import fit_to_memory
from robustsnn.evaluation.mended import take_over
from robustsnn.evaluation.options import Data
from robustsnn.evaluation.plan import Plan, plans_of
from robustsnn.evaluation.progress import Progress as Progress
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.suites import Suite
from robustsnn.foreign.activity import count as count_activity
from robustsnn.records.folder import RunFolder, locked, open_folder
from robustsnn.records.manifest import Manifest, blaming
from robustsnn.records.schema import ACTIVITY, CLEAN, DONE
from robustsnn.snn.activity import record_activity
from robustsnn.snn.energy import energies, energy
from robustsnn.snn.network import Network
from robustsnn.snn.operations import tallied

#: The number of images whose spikes are counted.
ACTIVITY_IMAGES = 1000


def evaluate(
    network: nn.Module | str | Path,
    data: Data = None,
    suite: Suite | str | Path | None = None,
    *,
    attack: Any = (),
    epsilon: Any = None,
    norm: Any = None,
    output: Path | str | None = None,
    progress: Progress | None = None,
    command: Sequence[str] = (),
    **settings: Any,
) -> Evaluation:
    """Attack a network and measure the accuracy that remains.

    Args:
        network: A network in memory (it is copied before it is attacked), a zoo name, a checkpoint
            folder or `python.module:factory`. It maps pixels in [0, 1] to logits.
        data: A data set, its name, or images in [0, 1] with labels: a pair of tensors, arrays or
            lists, a DataLoader, a Dataset or Subset, or a list of pairs. By default the data set
            that the checkpoint was trained on.
        suite: A suite, its name or its YAML file; by default `quick`.
        attack: One or several attacks in place of a suite, such as `"pgd:steps=20"`.
        epsilon: A size or several in place of the suite's, such as `8/255` or `"8/255"`.
        norm: The norm in place of the suite's: inf or 2, `"Linf"` or `"L2"`.
        output: The run folder. The same evaluation is resumed or read there; None keeps nothing.
        progress: The function that is told of every finished batch.
        command: The command line that asked for the evaluation.
        **settings: The other fields of `robustsnn.Request`, such as `samples`, `seed`,
            `substitute`, `estimator` or `device`.

    Raises:
        InputError: An argument cannot be used.

    Examples:
        >>> import robustsnn
        >>> found = robustsnn.evaluate("fashion-mnist/vgg5-ann", samples=4, attack="fgsm")
        >>> found.results["attack"].tolist()
        ['clean', 'fgsm', 'worst-case']
        >>> found.level, found.clean
        ('B', 1.0)
    """
    what = {"attack": attack, "epsilon": epsilon, "norm": norm}
    (plan,) = plans_of(Request.of(network, data, suite, **what, **settings))
    folder, progress = forms.path("output", output), forms.called("progress", progress)
    if folder is not None:
        return run(plan, folder, command=command, progress=progress)
    with tempfile.TemporaryDirectory(prefix="robustsnn-") as scratch:
        done = run(plan, Path(scratch) / "run", command=command, progress=progress)
    return dataclasses.replace(done, folder=None)


def run(
    plan: Plan,
    output: Path,
    *,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """Carry out a plan in a folder, from where an earlier start was stopped.

    Args:
        plan: The plan.
        output: The run folder.
        command: The command line that asked for the run; empty for a call from Python.
        progress: The function that is told of every finished batch.

    Raises:
        InputError: The folder belongs to something else, or the network cannot be evaluated on
            the clean images.
    """
    take_over(output, plan)
    started = output.exists()

    def begun() -> Manifest:
        # A network that cannot be evaluated leaves no folder behind.
        fitting, checks = fit_to_memory(plan)
        found = manifest_of(fitting, command)
        return found.but(
            batch_size_asked=plan.batch_size, preflight=[check.as_check() for check in checks]
        )

    folder = open_folder(output, identity_in(output, plan), begun)
    manifest = folder.manifest()
    if manifest.done:
        folder.tidy()
        return _read(folder, manifest, reprinted=True)
    refuse_other_versions(output, manifest)
    with locked(output):
        # The batches on disk have the size that the run was started with.
        with blaming(output):
            plan = as_started(plan, manifest)
            manifest = with_stages(manifest, plan)
        try:
            try:
                _judge_clean(plan, folder, progress or _silent)
            except InputError:
                if not started:
                    shutil.rmtree(output, ignore_errors=True)
                raise
            manifest = probed(plan, folder, manifest, progress or _silent)
            if plan.suite.cascade:
                cascade = attack_survivors(plan, folder, progress or _silent)
                return _finish(plan, folder, manifest, cascade)
            _attack_all(plan, folder, progress or _silent)
            return _finish(plan, folder, manifest)
        except OSError as error:
            raise unwritable(output, error) from error


def _judge_clean(plan: Plan, folder: RunFolder, progress: Progress) -> None:
    batches = batches_of(plan)
    judging = plan.subject.load()
    for batch, where in enumerate(batches):
        if not folder.part(CLEAN, batch).exists():
            clean_batch(plan, folder, batch, where, judging)
        progress("clean", batch + 1, len(batches) * (1 + len(plan.tasks)))


def _attack_all(plan: Plan, folder: RunFolder, progress: Progress) -> None:
    batches = batches_of(plan)
    total = len(batches) * (1 + len(plan.tasks))
    done = len(batches)
    judging = plan.subject.load()
    for index, task in enumerate(plan.tasks):
        name = part_name(index)
        if all(folder.part(name, batch).exists() for batch in range(len(batches))):
            done += len(batches)
            continue
        networks = Networks.of(plan, task, judging)
        for batch, where in enumerate(batches):
            if not folder.part(name, batch).exists():
                rows, saved = attacked_batch(plan, folder, index, batch, where, networks)
                folder.write_part(name, batch, rows, saved)
            done += 1
            progress(f"{task.label} {task.threat.norm} {task.threat.epsilon}", done, total)


def _finish(
    plan: Plan, folder: RunFolder, manifest: Manifest, cascade: Cascade | None = None
) -> Evaluation:
    if cascade is None:
        records, examples = folder.merged(_parts(plan))
    else:
        records, examples = cascade.records(), cascade.examples()
    found = diagnose(manifest, records)
    activity, measured = activity_of(plan)
    manifest = manifest.but(
        **found.fields(),
        **measured,
        seconds=round(float(records["seconds"].sum()), 3),
        status=DONE,
    )
    folder.finish(manifest, records, found.results, activity, examples)
    return _read(folder, folder.manifest())


def records_of(plan: Plan, folder: RunFolder, progress: Progress | None = None) -> pd.DataFrame:
    """The records of a plan, made in a folder that is there, without the files of a finished run.

    Args:
        plan: The plan.
        folder: The folder, which holds no parts of another run.
        progress: The function that is told of every finished batch.

    Raises:
        InputError: The network or an attack fails.
    """
    _judge_clean(plan, folder, progress or _silent)
    if plan.suite.cascade:
        return attack_survivors(plan, folder, progress or _silent).records()
    _attack_all(plan, folder, progress or _silent)
    return folder.merged(_parts(plan))[0]


def _parts(plan: Plan) -> list[tuple[str, int]]:
    batches = range(len(batches_of(plan)))
    parts = [CLEAN, *map(part_name, range(len(plan.tasks)))]
    return [(part, batch) for part in parts for batch in batches]


def activity_of(plan: Plan) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Spikes per neuron by layer and step, and the fields of the manifest about what they cost."""
    network = plan.subject.load()
    if not isinstance(network, Network):
        return _foreign_activity(plan, network)
    count = min(ACTIVITY_IMAGES, len(plan.images))
    images, _, ids = inputs_of(plan, slice(0, count))
    keys = torch.tensor(ids, dtype=torch.int64) if network.stochastic else None
    with tallied(network) as tally:
        recorded = record_activity(network, images, keys, batch_size=plan.batch_size)
    rows = [
        (layer.name, layer.neurons, step, spikes)
        for layer in recorded.layers
        for step, spikes in enumerate(layer.spikes_per_step)
    ]
    operations = tally.operations(network)
    joules = {**energy(network, recorded)._asdict(), **energies(operations)}
    measured = {
        "energy": {name: value for name, value in joules.items() if value == value},
        "counts": operations.counts(),
        "operations": [layer._asdict() for layer in operations.layers],
        "activity_images": count,
    }
    return pd.DataFrame(rows, columns=list(ACTIVITY)), measured


def _foreign_activity(plan: Plan, network: nn.Module) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The same for a network that is not ours; no energy where it cannot be counted."""
    count = min(ACTIVITY_IMAGES, len(plan.images))
    images, _, ids = inputs_of(plan, slice(0, count))
    stochastic = bool(getattr(network, "stochastic", False))
    keys = torch.tensor(ids, dtype=torch.int64) if stochastic else None
    found = count_activity(network, images, keys, batch_size=plan.batch_size)
    rows = [
        (layer.name, layer.neurons, step, spikes)
        for layer in found.layers
        for step, spikes in enumerate(layer.spikes_per_step)
    ]
    measured: dict[str, Any] = {"energy": found.energy, "activity_images": count}
    if found.operations is not None:
        measured["counts"] = found.operations.counts()
        measured["operations"] = [layer._asdict() for layer in found.operations.layers]
    else:
        measured["uncounted"] = found.uncounted
    return pd.DataFrame(rows, columns=list(ACTIVITY)), measured


def _read(folder: RunFolder, manifest: Manifest, reprinted: bool = False) -> Evaluation:
    return Evaluation(
        folder=folder.path,
        manifest=manifest,
        records=folder.records(),
        results=folder.results(),
        activity=folder.activity(),
        reprinted=reprinted,
    )


def _silent(what: str, done: int, total: int) -> None:
    """Do nothing; the progress of a run that nobody watches."""
