"""The command line in a process forked off one that has imported everything: no start to wait for.

Run as a script it serves: a line of JSON in (arguments, folder, environment, files for the output),
the exit code out. Each call has a process of its own, so nothing is left over from the one before;
what it cannot show is what starting, importing and taking the interpreter down print or break.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

TIMEOUT = 300  # seconds a call may take
#: The file that a call writes what it executes to, if this variable names one.
AUDIT = "TRACER_AUDIT"
#: The events of the interpreter by which code or another program is run.
RUNS = ("import", "exec", "compile", "subprocess.Popen", "os.system", "os.exec", "os.spawn")
#: Elsewhere there is no fork, or none that the system's libraries are sure to survive.
AVAILABLE = sys.platform.startswith("linux")


class WarmCli:
    """Starts the serving process, which ends with `close`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def run(
        self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` of the real command line, one call at a time."""
        with tempfile.TemporaryDirectory() as kept, self._lock:
            files = [Path(kept) / name for name in ("stdout", "stderr")]
            call = {
                "arguments": list(arguments),
                "cwd": str(cwd),
                "environment": dict(environment),
                "files": [str(file) for file in files],
            }
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(call) + "\n")
            self._process.stdin.flush()
            code = int(self._answer())
            stdout, stderr = (file.read_text() for file in files)
        return subprocess.CompletedProcess(list(arguments), code, stdout, stderr)

    def close(self) -> None:
        """Let the process end; importing everything must not have printed anything."""
        _, stderr = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, stderr
        assert stderr == ""

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._process.stderr and self._process.stderr.read()
        return line


def serve() -> None:
    """Fork at every line of the standard input; the fork runs `main`, as `robustsnn` does."""
    main = importlib.import_module("robustsnn.cli.main").main
    for package in ("robustsnn", "robustsnn.attacks", "robustsnn.reports"):
        where = importlib.import_module(package).__path__
        for found in pkgutil.walk_packages(where, f"{package}."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
    rehearse()
    # How long something takes depends on the machine, and what is said in between with it.
    from robustsnn.common import telling

    telling.SILENCE = TIMEOUT
    gc.collect()
    gc.freeze()
    os.write(1, b"ready\n")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            leave(json.loads(line), main)
        _, status = os.waitpid(child, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def rehearse() -> None:
    """Load what is loaded at the first use: compiled kernels, and shapes without memory."""
    import torch

    from robustsnn.models.checkpoint import outline
    from robustsnn.snn.network import Network, NetworkConfig

    described = {
        "architecture": "vgg5", "kind": "snn", "classes": 2, "image": (1, 8, 8),
        "widths": (2, 2, 2), "classifier": (4,), "mean": (0.5,), "std": (0.5,), "time_steps": 2,
    }  # fmt: skip
    config = NetworkConfig.model_validate(described)
    outline(config, "the rehearsal")
    network, images = Network(config).eval(), torch.zeros(2, 1, 8, 8, requires_grad=True)
    network(images).sum().backward()
    with torch.no_grad():
        network(images)


def become(call: Mapping[str, Any]) -> None:
    """Take on the arguments, folder, environment and files of a call."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, file in enumerate(call["files"], start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(call["environment"])
    if AUDIT in os.environ:
        audit(Path(os.environ[AUDIT]))
    os.chdir(call["cwd"])
    sys.argv = ["robustsnn", *call["arguments"]]
    # That of this script; the command line looks nowhere else in its place.
    del sys.path[0]
    signal.alarm(TIMEOUT)


def audit(path: Path) -> None:
    """Write a line for every attempt of this process to import or run what is named a tracer.

    An attempt that fails is seen too, and so is a pickle that names a class or function.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def heard(event: str, arguments: tuple[object, ...]) -> None:
        if event in RUNS or event.startswith(("pickle.", "marshal.")):
            said = repr(arguments)
            # Running our own code is no event; the modules of a user's own files bear such names.
            if "robustsnn_tracer" in said or "robustsnn_user_" in said:
                os.write(descriptor, f"{event} {said[:500]}\n".encode(errors="replace"))

    sys.addaudithook(heard)


def leave(call: Mapping[str, Any], main: Callable[[], None]) -> NoReturn:
    """Carry out a call and end with its exit code: 1 and a traceback for what `main` lets out."""
    code: object = "main returned instead of exiting"
    try:
        become(call)
        main()
    except SystemExit as done:
        code = done.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Taking down what was imported takes a second, which is most of such a call.
    os._exit(code or 0)


if __name__ == "__main__":
    serve()
