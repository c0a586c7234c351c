"""Runs of every sparse network and of its dense parent, and a row of the table for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from robustsnn.common.statistics import wilson
from robustsnn.evaluation.plan import Plan, prepare
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.run import run
from robustsnn.models.checkpoint import load_network, read_checkpoint
from robustsnn.models.subject import Subject, subject_of
from robustsnn.models.zoo import zoo_names
from robustsnn.records.runs import Run, load_runs
from robustsnn.records.schema import CLEAN, OPERATIONS, WORST_CASE
from robustsnn.records.summary import survivors
from robustsnn.snn.sparsity import densities
from studies.shared import first_images, is_finished, survivors_in, written_ids
from studies.sparsity.latency import faster

#: The number of images of each network.
SAMPLES = 500
#: The suites: the published attack, the strongest, and the attack on energy.
PUBLISHED, STRONGEST, ENERGY = "hire-iccv21", "standard", "energy"
SUITES = (PUBLISHED, STRONGEST, ENERGY)
#: The attacks of the published suite that get a column each, by their names in records.
ATTACKS = ("fgsm", "pgd-7", "bb-fgsm", "bb-pgd-7", "gaussian-linf")


@dataclass(frozen=True)
class Member:
    """A network of the study: how it was made sparse, and the seed of its training."""

    method: str
    seed: int = 1


DENSE, AGC, MAGNITUDE, PSC = "dense", "AGC", "magnitude", "pSC"
CHANNEL, DNR, CONVERTED, HIRE = "AGC, channels", "DNR", "robust conversion", "HIRE on AGC"
ADVERSARIAL = "dense, adversarial"
#: The networks of the study, by their names in the zoo.
NETWORKS: Mapping[str, Member] = {
    "fashion-mnist/vgg5-ann": Member(DENSE),
    "fashion-mnist/vgg5-ann-agc-2.5x": Member(AGC),
    "fashion-mnist/vgg5-ann-agc-4x-channel": Member(CHANNEL),
    "fashion-mnist/vgg5-ann-agc-10x": Member(AGC),
    "fashion-mnist/vgg5-ann-agc-33x": Member(AGC),
    "fashion-mnist/vgg5-ann-psc-10x": Member(PSC),
    "fashion-mnist/vgg5-ann-at": Member(ADVERSARIAL),
    "fashion-mnist/vgg5-ann-dnr-10x": Member(DNR),
    "fashion-mnist/vgg5-snn": Member(DENSE),
    "fashion-mnist/vgg5-snn-b": Member(DENSE, 2),
    "fashion-mnist/vgg5-snn-agc-2.5x": Member(AGC),
    "fashion-mnist/vgg5-snn-agc-4x-channel": Member(CHANNEL),
    "fashion-mnist/vgg5-snn-agc-10x": Member(AGC),
    "fashion-mnist/vgg5-snn-agc-10x-b": Member(AGC, 2),
    "fashion-mnist/vgg5-snn-agc-33x": Member(AGC),
    "fashion-mnist/vgg5-snn-agc-33x-b": Member(AGC, 2),
    "fashion-mnist/vgg5-snn-magnitude-10x": Member(MAGNITUDE),
    "fashion-mnist/vgg5-snn-magnitude-10x-b": Member(MAGNITUDE, 2),
    "fashion-mnist/vgg5-snn-magnitude-33x": Member(MAGNITUDE),
    "fashion-mnist/vgg5-snn-magnitude-33x-b": Member(MAGNITUDE, 2),
    "fashion-mnist/vgg5-snn-psc-10x": Member(PSC),
    "fashion-mnist/vgg5-snn-hire": Member("dense, HIRE"),
    "fashion-mnist/vgg5-snn-hire-agc-10x": Member(HIRE),
    "fashion-mnist/vgg5-snn-at": Member(ADVERSARIAL),
    "fashion-mnist/vgg5-snn-dnr-10x": Member(DNR),
    "fashion-mnist/vgg5-snn-robust-conversion-10x": Member(CONVERTED),
    "cifar10/vgg5-ann": Member(DENSE),
    "cifar10/vgg5-ann-agc-2.5x": Member(AGC),
    "cifar10/vgg5-ann-agc-10x": Member(AGC),
    "cifar10/vgg5-ann-agc-33x": Member(AGC),
    "cifar10/vgg5-ann-dnr-10x": Member(DNR),
    "cifar10/vgg5-snn": Member(DENSE),
    "cifar10/vgg5-snn-agc-2.5x": Member(AGC),
    "cifar10/vgg5-snn-agc-10x": Member(AGC),
    "cifar10/vgg5-snn-agc-33x": Member(AGC),
}
#: The network that makes the black-box images of all networks of a kind: one for all, so that they
#: can be compared. None is one of the networks that are compared with the sparse ones of its seed.
SUBSTITUTES: Mapping[tuple[str, str], str] = {
    ("fashion-mnist", "ann"): "fashion-mnist/vgg5-ann-b",
    ("fashion-mnist", "snn"): "fashion-mnist/vgg5-ann-b",
    ("cifar10", "ann"): "cifar10/vgg5-snn",
    ("cifar10", "snn"): "cifar10/vgg5-ann",
}


def study(
    name: str,
    samples: int,
    folder: Path,
    *,
    suites: Sequence[str] = SUITES,
    data_root: Path | None = None,
    earlier: pd.DataFrame | None = None,
    say: Callable[[str], None] = print,
    finished_only: bool = False,
) -> dict[str, object]:
    """The row of one network: what its weights are, and what its runs found.

    Args:
        name: A zoo name.
        samples: The number of images, taken from the first one on.
        folder: The folder of the run folders of all networks.
        suites: The suites to run.
        data_root: The folder of the data sets' folders.
        earlier: The table as it was; columns of runs that are not repeated are taken from it.
        say: A function that prints progress.
        finished_only: Whether to read what is finished and run nothing.
    """
    subject = subject_of(name)
    row = {**about(name), "samples": samples}
    before = _earlier(earlier, name, samples)
    images = first_images(subject, samples, data_root, say, finished_only)
    for suite in suites:
        kept = {key: value for key, value in before.items() if key.startswith(f"{suite}:")}
        if images is None:
            row |= kept
            continue
        plan = prepare(
            Request.of(subject, images, suite, substitute=_substitute(subject, suite, row))
        )
        if kept.get(f"{suite}:identity") == plan.identity:
            row |= kept
            continue
        output = folder / name.replace("/", "-") / f"{suite}-{samples}"
        if finished_only and not is_finished(output):
            continue
        say(f"{name}, {samples} images, {suite}")
        row |= {f"{suite}:{key}": value for key, value in _found(plan, output, suite).items()}
    if row["method"] == CHANNEL:
        row |= {key: value for key, value in before.items() if key.startswith("latency:")}
        if images is not None and not finished_only:
            parent = subject_of(f"{row['data']}/vgg5-{row['kind']}").load()
            found = faster(subject.load(), parent, images.tensor())
            row |= dict(zip(("latency:ratio", "latency:low", "latency:high"), found, strict=True))
    return row


def about(name: str) -> dict[str, object]:
    """What a network is, as far as its checkpoint says."""
    checkpoint = read_checkpoint(name)
    layers = densities(load_network(checkpoint))
    kept = sum(layer.kept for layer in layers)
    dense = checkpoint.meta.get("dense_weights") or sum(layer.weights for layer in layers)
    member = NETWORKS[name]
    return {
        "model": name,
        "data": name.partition("/")[0],
        "kind": checkpoint.config.kind,
        "method": member.method,
        "seed": member.seed,
        "dense_weights": int(dense),
        "kept": kept,
        "compression": int(dense) / kept,
        "bytes": (checkpoint.folder / "model.safetensors").stat().st_size,
    }


def _substitute(subject: Subject, suite: str, row: Mapping[str, object]) -> str | None:
    """The network that black-box images are made on, for the suite that has some."""
    if suite != PUBLISHED:
        return None
    return SUBSTITUTES[str(row["data"]), str(row["kind"])]


def _found(plan: Plan, output: Path, suite: str) -> dict[str, object]:
    """The columns of one run."""
    done = run(plan, output, command=["studies", "sparsity"])
    (read,) = load_runs([output]).runs
    accuracy = dict(zip(done.results["attack"], done.results["accuracy"], strict=True))
    found: dict[str, object] = {
        "identity": plan.identity,
        "clean": float(accuracy[CLEAN]),
        "level": read.level,
        "flags": " ".join(sorted({str(flag["flag"]) for flag in read.flags})),
    }
    if suite == PUBLISHED:
        for attack in ATTACKS:
            found[attack] = float(accuracy[attack])
    elif suite == STRONGEST:
        left = float(accuracy[WORST_CASE])
        low, high = wilson(round(left * read.samples), read.samples)
        found |= {"robust": left, "low": low, "high": high}
        found["standing"] = written_ids(survivors(done.records))
    return found | (_spent(read, done.results) if suite == ENERGY else {})


def _spent(found: Run, results: pd.DataFrame) -> dict[str, object]:
    """Spikes, operations and energies of the run of the attack on energy."""
    operations = dict(zip(results["attack"], results[OPERATIONS], strict=True))
    return {
        "spikes": found.spikes_per_neuron_and_step,
        "operations": float(operations[CLEAN]),
        "worst_operations": float(operations[WORST_CASE]),
        "same_label_operations": float(operations.get("energy-same-label", float("nan"))),
        "noise_operations": float(operations["gaussian"]),
        **found.energy,
    }


def _earlier(table: pd.DataFrame | None, name: str, samples: int) -> dict[str, object]:
    """The row of a network in an earlier table; empty if there is none."""
    if table is None or table.empty:
        return {}
    rows = table[(table["model"] == name) & (table["samples"] == samples)]
    return {} if rows.empty else {str(k): v for k, v in rows.iloc[0].items() if pd.notna(v)}


def trained() -> list[str]:
    """The networks of the study that the zoo holds."""
    there = set(zoo_names())
    return [name for name in NETWORKS if name in there]


def survivors_of(row: pd.Series) -> set[int]:
    """The ids of the images of a row that are right when clean and under all of `standard`."""
    return survivors_in({"standing": row[f"{STRONGEST}:standing"]})
