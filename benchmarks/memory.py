"""The peak memory of an input gradient, measured for each library in a process of its own."""

from __future__ import annotations

import copy
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.cells import contenders, yardstick
from benchmarks.contenders.base import Ours
from benchmarks.machine import ROOT
from benchmarks.networks import benchmark_network, random_images, random_labels

#: Pairs of time steps and batch size, for VGG5.
SIZES = ((8, 32), (32, 32), (64, 32))
QUICK_SIZES = ((8, 32),)
STATUS = Path("/proc/self/status")
LIBRARIES = (
    "robustsnn",
    "robustsnn-whole",
    "snntorch",
    "spikingjelly",
    "hire-loop",
    "layers-alone",
)


#: A sequence that is too long to keep whole: architecture, time steps, batch size, segment.
LONG = ("vgg11", 256, 16, 16)
LONG_KEY = "memory-robustsnn-vgg11-t256-b16-recompute16"


def key(library: str, steps: int, batch: int) -> str:
    """The name of its file."""
    return f"memory-{library}-vgg5-t{steps}-b{batch}"


def in_fresh_process(
    library: str, steps: int, batch: int, process: str, threads: int | None
) -> dict[str, Any]:
    """The result of `measure` for VGG5 in a fresh process.

    Raises:
        RuntimeError: The process failed.
    """
    return _ask(threads, library, "vgg5", str(steps), str(batch), "--process", process)


def long_in_fresh_process(process: str, threads: int | None) -> dict[str, Any]:
    """The result of `measure` for us on the long sequence, which is recomputed in segments.

    Raises:
        RuntimeError: The process failed.
    """
    architecture, steps, batch, segment = LONG
    return _ask(
        threads,
        *("robustsnn-whole", architecture, str(steps), str(batch)),
        *("--recompute", str(segment), "--process", process),
    )


def _ask(threads: int | None, library: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks", "measure-memory", library, *arguments]
    command += [] if threads is None else ["--threads", str(threads)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the memory of {library} could not be measured: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(
    library: str, architecture: str, steps: int, batch: int, recompute: int | None = None
) -> dict[str, Any]:
    """The bytes that one input gradient needs beyond what was resident before, and its seconds.

    The process first computes the gradient of one image over a few steps, so that everything that
    is compiled, loaded or cached only once does not count.
    """
    network = copy.deepcopy(benchmark_network(architecture))
    network.time_steps = steps
    network.recompute = recompute
    everyone = (*contenders(network), Ours(network, whole=True), yardstick(network))
    contender = next(c for c in everyone if c.name == library)
    contender.prepare("input-gradient")
    if isinstance(contender, Ours):
        contender.network.time_steps = min(steps, 2 * (recompute or steps))
    contender.gradient(random_images(1), random_labels(1))
    if isinstance(contender, Ours):
        contender.network.time_steps = steps
    images, labels = random_images(batch), random_labels(batch)
    before = _resident_and_restart()
    start = time.perf_counter()
    contender.gradient(images, labels)
    return {
        "library": library,
        "architecture": architecture,
        "steps": steps,
        "batch": batch,
        "recompute": recompute,
        "seconds": time.perf_counter() - start,
        "bytes": max(0, _peak() - before),
        "whole_process": _peak(),
    }


def _status(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in {STATUS}")


def _resident_and_restart() -> int:
    """The resident bytes; the peak is set back to them where the system allows it."""
    if not STATUS.exists():
        return _peak()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        # Then the peak is that of the whole process, and only a gradient above it is seen.
        pass
    return _status("VmRSS")


def _peak() -> int:
    if STATUS.exists():
        return _status("VmHWM")
    # The unit is bytes on a Mac and KiB on other systems.
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
