"""The machine, versions and settings of a measurement; only where they agree can it be compared."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import robustsnn
from robustsnn.snn.neuron import kernel

PACKAGES = ("torch", "numba", "numpy", "snntorch", "spikingjelly", "torchattacks")
FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")
ROOT = Path(__file__).parents[1]
#: Files that turn measurements into tables, pages and figures, and change no measurement.
NOT_MEASURING = (
    *("__main__.py", "aims.py", "figures.py", "machine.py", "page.py", "store.py", "tables.py"),
)


def describe(process: str) -> dict[str, Any]:
    """The machine, the versions and the settings.

    Args:
        process: The process settings, `product` or `default`; see `apply_process_settings`.
    """
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "caches": _caches(),
        "flags": [flag for flag in FLAGS if flag in _cpu_flags()],
        "memory_gib": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "process_settings": process,
        "lif_kernel": kernel("cpu"),
        "commit": _commit(),
        "source": source_digest(),
    }


def identity(machine: dict[str, Any]) -> str:
    """A digest of everything that a measurement depends on, which the commit name is not."""
    relevant = {name: value for name, value in machine.items() if name != "commit"}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]


def source_digest() -> str:
    """A digest of the source of the package and of the measuring code."""
    digest = hashlib.sha256()
    assert robustsnn.__file__ is not None
    files = [
        *sorted(Path(robustsnn.__file__).parent.rglob("*.py")),
        *sorted((ROOT / "attacks").rglob("*.py")),
        *sorted(f for f in (ROOT / "benchmarks").rglob("*.py") if f.name not in NOT_MEASURING),
    ]
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def apply_process_settings(process: str) -> None:
    """Apply settings to the whole process, and so to every library in it.

    They have their full effect only before torch is imported.

    Args:
        process: `product` for the settings of this package's command line, `default` for none.
    """
    if process == "product":
        from robustsnn.common.process import keep_freed_memory

        keep_freed_memory()


def as_markdown(machine: dict[str, Any], command: str) -> str:
    """A short list of the machine, the versions and the settings."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"- CPU: {machine['cpu']}, {machine['cores']} cores used, {machine['threads']} threads",
        f"- caches: {', '.join(machine['caches']) or 'unknown'}",
        f"- memory: {machine['memory_gib']} GiB",
        f"- instructions: {', '.join(machine['flags']) or 'none of ' + ', '.join(FLAGS)}",
        f"- {machine['system']}, Python {machine['python']}, {versions}",
        f"- process settings: {machine['process_settings']}, alike for every library; LIF kernel: "
        f"{machine['lif_kernel']}",
        f"- commit {machine['commit']}",
        f"- command: `{command}`",
    ]
    return "\n".join(lines) + "\n"


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _cpu() -> str:
    found = re.search(r"model name\s*:\s*(.+)", _cpuinfo())
    return found[1].strip() if found else platform.processor() or "unknown"


def _cpu_flags() -> set[str]:
    found = re.search(r"flags\s*:\s*(.+)", _cpuinfo())
    return set(found[1].split()) if found else set()


def _caches() -> list[str]:
    found = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / n).read_text().strip() for n in ("level", "type", "size"))
        found.append(f"L{level} {kind.lower()} {size}")
    return found


def _memory() -> float:
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return float("nan")
    return round(pages / 2**30, 1)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + (" with changes" if changed else "")
