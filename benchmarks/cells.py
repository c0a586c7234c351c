"""The cells of the benchmark: which task on which network, and the measurement of one."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.contenders import hire_loop, layers_alone, snntorch, spikingjelly
from benchmarks.contenders.base import TASKS, Contender, ModuleContender, Ours, run
from benchmarks.equality import agreeing_images, differences
from benchmarks.machine import ROOT
from benchmarks.networks import (
    benchmark_network,
    firing_rates,
    random_images,
    random_labels,
)
from benchmarks.timing import Spread, alternate, rounds_for
from robustsnn.snn.network import Network

#: The cell that the aims are about: architecture, time steps and batch size.
HEADLINE = ("vgg5", 8, 32)
#: The number of spare images, which replace images that must be drawn again.
SPARE = 256
COMPILED = "spikingjelly-compiled"


@dataclass(frozen=True)
class Cell:
    """One task on one network at one size."""

    task: str
    architecture: str
    steps: int
    batch: int

    @property
    def key(self) -> str:
        """The name of its file."""
        return f"{self.task}-{self.architecture}-t{self.steps}-b{self.batch}"


def all_cells(quick: bool) -> list[Cell]:
    """Every cell, with the cells of the aims first.

    Args:
        quick: Whether to take only a few cells.
    """
    sizes = [(steps, batch) for steps in (4, 8, 16, 32) for batch in (1, 8, 32)]
    if quick:
        sizes = [(4, 8), (8, 1), (8, 8), (16, 8)]
    found = [Cell(task, *HEADLINE) for task in TASKS]
    for task in TASKS:
        if quick and task != "input-gradient":
            continue
        found += [Cell(task, "vgg5", steps, batch) for steps, batch in sizes]
    if not quick:
        found += [Cell("input-gradient", "vgg5", 64, batch) for batch in (1, 8)]
        for architecture in ("vgg11", "resnet12"):
            found += [Cell("input-gradient", architecture, 8, batch) for batch in (1, 8)]
    return list(dict.fromkeys(found))


def contenders(network: Network) -> list[Contender]:
    """Every library with a network, ours first; their modules describe the settings."""
    return [
        Ours(network),
        ModuleContender(snntorch.NAME, snntorch.SnnTorchNetwork(network)),
        ModuleContender(
            spikingjelly.NAME,
            spikingjelly.SpikingJellyNetwork(network, channels_last=True),
        ),
        ModuleContender(hire_loop.NAME, hire_loop.HireLoop(network)),
    ]


def compiled_peer(network: Network) -> ModuleContender:
    """SpikingJelly under `torch.compile`, its fastest form on a CPU with a C++ compiler.

    It compiles again for every shape, which takes half a minute or more. So it runs only in the
    cells of the aims.
    """
    import torch

    torch._dynamo.reset()
    module = spikingjelly.SpikingJellyNetwork(network, channels_last=True)
    module.compile(dynamic=False)
    return ModuleContender(COMPILED, module)


def yardstick(network: Network) -> ModuleContender:
    """The layers without neurons; their results are not compared, since they are different."""
    return ModuleContender(layers_alone.NAME, layers_alone.LayersAlone(network))


def measure(
    cell: Cell,
    quick: bool = False,
    network: Network | None = None,
    rounds: int | None = None,
    compiled: bool = True,
) -> dict[str, Any]:
    """Check that all libraries agree, then time them.

    Args:
        cell: The cell to measure.
        quick: Whether to take three rounds, whatever they cost.
        network: A network that replaces that of the architecture.
        rounds: A number of rounds that replaces the one for the cost of the cell.
        compiled: Whether to add the compiled peer in the cells of the aims.

    Returns:
        `cell`, `rates` by layer, `differences` by library, the number of `redrawn` images,
        `refused` for a peer that could not be compiled, and `seconds`, a list for each library.

    Raises:
        UnequalError: The libraries do not compute the same.
    """
    if network is None:
        network = copy.deepcopy(benchmark_network(cell.architecture))
    network.time_steps = cell.steps
    shape = network.input_shape
    images = random_images(cell.batch, shape)
    labels = random_labels(cell.batch)
    others = contenders(network)
    for contender in others:
        contender.prepare(cell.task)
    spare = random_images(SPARE, shape, seed=1)
    images, redrawn = agreeing_images(others, images, spare, network)
    rates = firing_rates(network, images[:8])
    found = differences(others, cell.task, images, labels)
    refused = ""
    if (cell.architecture, cell.steps, cell.batch) == HEADLINE and compiled and not quick:
        try:
            peer = compiled_peer(network)
            peer.prepare(cell.task)
            found |= differences([others[0], peer], cell.task, images, labels)
            others.append(peer)
        except Exception as error:
            # The other libraries can be timed even if the compilation of this one fails.
            refused = f"{cell.key}: no {COMPILED}, {type(error).__name__}"
    floor = yardstick(network)
    floor.prepare(cell.task)
    runs: dict[str, Callable[[], object]] = {
        contender.name: run(contender, cell.task, images, labels) for contender in (*others, floor)
    }
    start = time.perf_counter()
    for once in runs.values():
        once()
    if rounds is None:
        rounds = rounds_for(time.perf_counter() - start, quick)
    return {
        "cell": asdict(cell),
        "rates": rates,
        "differences": {name: asdict(value) for name, value in found.items()},
        "redrawn": redrawn,
        "refused": refused,
        "seconds": alternate(runs, rounds),
    }


def in_default_process(task: str, threads: int | None) -> dict[str, Any]:
    """A cell of the aims in a fresh process without this package's process settings.

    Raises:
        RuntimeError: The process failed.
    """
    command = [sys.executable, "-m", "benchmarks", "measure-cell", task, "--process", "default"]
    command += [] if threads is None else ["--threads", str(threads)]
    # This process set it for itself; a default process does not have it.
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{task} in a default process could not be measured: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_settings(steps: int, batch: int, rounds: int, compiled: bool) -> dict[str, float]:
    """Median seconds of an input gradient of VGG5, in each setting of the peers in turn."""
    network = copy.deepcopy(benchmark_network("vgg5"))
    network.time_steps = steps
    jelly, torch_ = spikingjelly.SpikingJellyNetwork, snntorch.SnnTorchNetwork
    made = [
        ModuleContender("snntorch, reset in the loop", torch_(network)),
        ModuleContender("snntorch, built-in reset (other dynamics)", torch_(network, True)),
        ModuleContender("spikingjelly, contiguous", jelly(network)),
        ModuleContender("spikingjelly, channels last", jelly(network, channels_last=True)),
    ]
    if compiled:
        made.append(compiled_peer(network))
    images, labels = random_images(batch), random_labels(batch)
    runs: dict[str, Callable[[], object]] = {}
    for contender in made:
        contender.prepare("input-gradient")
        runs[contender.name] = run(contender, "input-gradient", images, labels)
        runs[contender.name]()
    return {name: Spread.of(seconds).median for name, seconds in alternate(runs, rounds).items()}


def notes(measured: Sequence[dict[str, Any]]) -> list[str]:
    """How the libraries were set, and what was omitted."""
    return [
        "snnTorch: its loop over time with `Leaky`; the reset is written in the loop, since the "
        "built-in one has other dynamics (`benchmarks/contenders/snntorch.py`) at the same cost.",
        "SpikingJelly: multi-step `LIFNode` with a built-in surrogate, so with its kernel's "
        "hand-written backward; channels last; neurons in training mode. Compiled is the same "
        "under `torch.compile`, timed where the aims are, without the time to compile.",
        "A training step of ours and of HIRE's loop also learns thresholds and leaks; the other "
        "libraries' steps learn weights only.",
        "Ours runs the batch in the micro-batches that its victims choose: 32 images at T = 8, "
        "fewer on longer sequences. The others, and the layers alone, repeat the first "
        "convolution at every step, as their tutorials write it.",
        "`python -m benchmarks settings` times the peers' settings against each other.",
        *(m["refused"] for m in measured if m.get("refused")),
    ]
