"""The benchmark of a GPU: input gradients, `light` and `standard`, against the usual tools.

Everything runs in turns on the same device with the same network, and the whole takes less than ten
minutes: after the first round of everything, further rounds are made while there is time. A dry run
goes through all of it on the CPU, with a tiny network and a few steps, and measures nothing.
"""

from __future__ import annotations

import copy
import os
import re
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import robustsnn
from benchmarks.contenders.base import ModuleContender, Ours
from benchmarks.contenders.spikingjelly import SpikingJellyNetwork
from benchmarks.equality import GRADIENT_TOLERANCE
from benchmarks.networks import random_images, random_network
from benchmarks.timing import Spread, alternate, paired_ratios
from robustsnn.adversary.threat import ThreatModel
from robustsnn.data.datasets import load_dataset
from robustsnn.errors import InputError
from robustsnn.evaluation.suites import Suite, load_suite
from robustsnn.models.checkpoint import load_model, read_checkpoint
from robustsnn.snn.network import Network
from robustsnn.snn.neuron import KERNEL_VARIABLE, kernel

SUITES = ("light", "standard")
#: The images of an input gradient, and those of an evaluation.
BATCHES, IMAGES = (32, 256), 64
#: The seconds after which no further round begins, and the most rounds of anything.
ENOUGH_SECONDS, MOST_ROUNDS, GRADIENT_ROUNDS = 360, 5, 7
OURS, LOOP, PEER, ATTACKS = (
    *("RobustSNN", "RobustSNN, loop over time"),
    *("SpikingJelly", "torchattacks on SpikingJelly"),
)
NOTHING = "Nothing was measured: this is a dry run on the CPU."


@dataclass
class Row:
    """One measure: the seconds of each contender, one for each round; ours is the first."""

    measure: str
    seconds: dict[str, list[float]]
    notes: list[str] = field(default_factory=list)


def measure(model: str, dry: bool, say: Callable[[str], None]) -> tuple[list[Row], list[str]]:
    """All rows, and what has to be known about them.

    Args:
        model: A spiking network of the zoo, or a checkpoint; a dry run takes a tiny one instead.
        dry: Whether to run on the CPU and to measure nothing.
        say: A function that prints progress.

    Raises:
        InputError: The model cannot be measured, or the libraries disagree.
    """
    began = time.perf_counter()
    device = torch.device("cpu" if dry else "cuda")
    network, images, labels = _subject(model, dry)
    network, images, labels = network.to(device), images.to(device), labels.to(device)
    suites = [_short(load_suite(name)) if dry else load_suite(name) for name in SUITES]
    peer = _peer(network, device)
    notes = [
        f"network: {'a tiny random VGG5' if dry else model}, T = {network.time_steps}",
        f"device: {'cpu' if dry else torch.cuda.get_device_name()}; LIF kernel: {kernel(device)}",
        f"TF32 in convolutions: {torch.backends.cudnn.allow_tf32}, in linear layers: "
        f"{torch.backends.cuda.matmul.allow_tf32}, alike for all",
        f"SpikingJelly: multi-step, channels last, its back end: {_back_end(device)}",
        f"input gradients of the two networks differ by {_difference(network, peer, images):.1e} "
        "of the largest, on the median image",
    ]
    rows = []
    for batch in (2,) if dry else BATCHES:
        say(f"input gradients of {batch} images")
        rows.append(_gradients(network, peer, images[:batch], labels[:batch], device, dry))
    runs = []
    for suite in suites:
        some = slice(0, 2 if dry else IMAGES)
        row = Row(f"`{suite.name}`, {len(images[some])} images", {OURS: [], ATTACKS: []})
        rows.append(row)
        runs.append((row, _evaluations(suite, network, peer, images[some], labels[some], row)))
    for turn in range(1 if dry else MOST_ROUNDS):
        for row, contenders in runs:
            names = list(contenders)
            for name in names if turn % 2 == 0 else names[::-1]:
                say(f"{row.measure}: {name}, round {turn + 1}")
                row.seconds[name].append(_timed(contenders[name], device))
        spent = time.perf_counter() - began
        if spent + spent / (turn + 1) > ENOUGH_SECONDS:
            break
    return rows, notes


def _subject(model: str, dry: bool) -> tuple[Network, Tensor, Tensor]:
    """The network, images in [0, 1] and their labels."""
    if dry:
        network = random_network("vgg5", (4, 6, 6), (8,), (3, 8, 8), time_steps=2)
        images = random_images(4, (3, 8, 8))
        with torch.no_grad():
            # What is right at the start is attacked.
            return network, images, network(images).argmax(1)
    found = load_model(model)
    if not isinstance(found, Network) or found.kind != "snn":
        raise InputError(f"{model} is not a spiking network of this package: choose another one.")
    data = load_dataset(str(read_checkpoint(model).meta["data"]), None, samples=max(BATCHES))
    return found, data.tensor(slice(0, len(data))), torch.from_numpy(data.labels)


def _short(suite: Suite) -> Suite:
    """The same entries with hardly a step."""
    entries = [
        entry.model_copy(update={"attack": re.sub(r"(steps|queries)=\d+", r"\1=2", entry.attack)})
        for entry in suite.entries
    ]
    return suite.model_copy(update={"entries": entries})


def _peer(network: Network, device: torch.device) -> ModuleContender:
    from spikingjelly.activation_based import functional

    module = SpikingJellyNetwork(copy.deepcopy(network).cpu(), channels_last=True).to(device)
    # Version 2 takes the fastest back end by itself; before, one had to ask for it.
    if hasattr(functional, "set_backend") and device.type == "cuda":
        functional.set_backend(module, "cupy")
    made = ModuleContender(PEER, module)
    made.prepare("input-gradient")
    return made


def _back_end(device: torch.device) -> str:
    """What the other library says about itself."""
    from importlib.metadata import version

    from spikingjelly.activation_based import functional

    if hasattr(functional, "set_backend"):
        return f"{'cupy' if device.type == 'cuda' else 'torch'} (version {version('spikingjelly')})"
    return f"chosen by itself for {device.type} (version {version('spikingjelly')})"


def _difference(network: Network, peer: ModuleContender, images: Tensor) -> float:
    """How far the two input gradients are apart on the median image.

    Raises:
        InputError: They differ on most images.
    """
    some = images[:32]
    with torch.no_grad():
        labels = network(some).argmax(1)
    ours = Ours(network, whole=True)
    ours.prepare("input-gradient")
    mine, theirs = ours.gradient(some, labels), peer.gradient(some, labels)
    size = mine.flatten(1).abs().amax(1).clamp_min(1e-30)
    found = ((mine - theirs).flatten(1).abs().amax(1) / size).median().item()
    # Convolutions of another shape round differently, with TF32 by more.
    if found > max(GRADIENT_TOLERANCE, 1e-2):
        raise InputError(f"the network in SpikingJelly differs: input gradients by {found:.2g}.")
    return found


def _gradients(
    network: Network,
    peer: ModuleContender,
    images: Tensor,
    labels: Tensor,
    device: torch.device,
    dry: bool,
) -> Row:
    ours = Ours(network, whole=True)
    ours.prepare("input-gradient")

    def by_loop() -> None:
        with _asked_for("reference"):
            ours.gradient(images, labels)

    runs: dict[str, Callable[[], object]] = {
        OURS: lambda: ours.gradient(images, labels),
        LOOP: by_loop,
        PEER: lambda: peer.gradient(images, labels),
    }
    waited = {name: _waiting(run, device) for name, run in runs.items()}
    for run in waited.values():
        # Kernels are compiled and memory is reserved at the first call.
        run()
    seconds = alternate(waited, 1 if dry else GRADIENT_ROUNDS)
    return Row(f"input gradient, {len(images)} images", seconds)


def _evaluations(
    suite: Suite,
    network: Network,
    peer: ModuleContender,
    images: Tensor,
    labels: Tensor,
    row: Row,
) -> dict[str, Callable[[], object]]:
    """The whole evaluation here, and there as many steps and queries, on every image."""
    import torchattacks

    kept = [e for e in suite.entries if "snn" in (e.kinds or ("snn",))]
    steps = sum(int(n) for e in kept for n in re.findall(r"steps=(\d+)", e.attack))
    queries = sum(int(n) for e in kept for n in re.findall(r"queries=(\d+)", e.attack))
    row.notes.append(
        f"{row.measure}: there PGD with {steps} steps and Square with {queries} queries, as many "
        "as the entries have; here broken images leave, and every proposal is judged again"
    )
    radius = ThreatModel(suite.norm, suite.epsilon[0]).radius
    module = peer.module
    module.train()

    def ours() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            robustsnn.evaluate(
                network, (images.cpu(), labels.cpu()), suite, device=str(images.device)
            )

    def theirs() -> None:
        pgd = torchattacks.PGD(module, eps=radius, alpha=radius / 8, steps=steps)
        square = torchattacks.Square(module, norm="Linf", eps=radius, n_queries=queries)
        for attack in (pgd, square):
            # Its neurons cut the gradient in evaluation mode.
            attack.set_model_training_mode(model_training=True)
            attack(images, labels)

    return {OURS: ours, ATTACKS: theirs}


@contextmanager
def _asked_for(name: str) -> Any:
    before = os.environ.get(KERNEL_VARIABLE)
    os.environ[KERNEL_VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[KERNEL_VARIABLE]
        else:
            os.environ[KERNEL_VARIABLE] = before


def _waiting(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The same call, until the device is done."""

    def whole() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return whole


def _timed(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    _waiting(run, device)()
    return time.perf_counter() - start


def page(rows: list[Row], notes: list[str], dry: bool, command: str) -> str:
    """The table in Markdown; that of a dry run has no numbers."""
    lines = [
        "# Speed on a GPU",
        "",
        *([f"**{NOTHING}**", ""] if dry else []),
        "Medians of seconds, least to most in brackets; the ratio is that of the medians, with the "
        "least and the most of the rounds.",
        "",
        "| measure | rounds | contender | seconds | times RobustSNN |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        ours = row.seconds[OURS]
        for name, seconds in row.seconds.items():
            spread, ratios = Spread.of(seconds), paired_ratios(seconds, ours)
            shown = f"{spread.median:.3g} ({spread.least:.3g} to {spread.most:.3g})"
            ratio = spread.median / Spread.of(ours).median
            times = f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            cells = ("-", "-") if dry else (shown, "1" if name == OURS else times)
            lines.append(
                f"| {row.measure} | {0 if dry else len(seconds)} | {name} | {' | '.join(cells)} |"
            )
    told = [*notes, *(note for row in rows for note in row.notes), f"command: `{command}`"]
    return "\n".join([*lines, "", *(f"- {note}" for note in told), ""])
