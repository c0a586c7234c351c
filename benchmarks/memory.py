"""Peak memory of an input gradient, each library in a process of its own."""

from __future__ import annotations

import copy
import json
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.cells import contenders, yardstick
from benchmarks.machine import ROOT
from benchmarks.networks import benchmark_network, random_images, random_labels

#: (time steps, batch) of VGG5.
SIZES = ((8, 32), (32, 32), (64, 32))
QUICK_SIZES = ((8, 32),)
STATUS = Path("/proc/self/status")
LIBRARIES = ("robustsnn", "snntorch", "spikingjelly", "hire-loop", "layers-alone")


def key(library: str, steps: int, batch: int) -> str:
    """Names its file."""
    return f"memory-{library}-vgg5-t{steps}-b{batch}"


def in_fresh_process(library: str, steps: int, batch: int, process: str) -> dict[str, Any]:
    """What `measure` finds, there.

    Raises:
        RuntimeError: The process failed.
    """
    command = [
        *(sys.executable, "-m", "benchmarks", "measure-memory"),
        *(library, str(steps), str(batch), "--process", process),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the memory of {library} could not be measured: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(library: str, steps: int, batch: int) -> dict[str, Any]:
    """Bytes that one input gradient needs beyond what was resident before it.

    The process has computed a gradient of one image before, so that what is compiled, loaded or
    cached once does not count.
    """
    network = copy.deepcopy(benchmark_network("vgg5"))
    network.time_steps = steps
    contender = next(c for c in (*contenders(network), yardstick(network)) if c.name == library)
    contender.prepare("input-gradient")
    contender.gradient(random_images(1), random_labels(1))
    images, labels = random_images(batch), random_labels(batch)
    before = _resident_and_restart()
    contender.gradient(images, labels)
    return {
        "library": library,
        "architecture": "vgg5",
        "steps": steps,
        "batch": batch,
        "bytes": max(0, _peak() - before),
    }


def _status(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in {STATUS}")


def _resident_and_restart() -> int:
    """Resident bytes; from here on the peak counts anew, where the system lets it."""
    if not STATUS.exists():
        return _peak()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        # Without it the peak is that of the whole process, which the gradient must exceed.
        pass
    return _status("VmRSS")


def _peak() -> int:
    if STATUS.exists():
        return _status("VmHWM")
    # In bytes on a Mac, in KiB elsewhere.
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
