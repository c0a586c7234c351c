"""Workers: processes that compute cells of several runs, each with one thread.

Sums depend on the number of threads, so a worker always has one, and so has a run that is to give
the same bytes without workers.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from robustsnn.common.users_code import is_users_file
from robustsnn.data.images import Images
from robustsnn.errors import InputError
from robustsnn.evaluation.batch import Batch
from robustsnn.evaluation.cells import Bench, Cell
from robustsnn.evaluation.plan import Plan

#: How often a cell is computed again whose worker died.
RETRIES = 2


class Gone(Exception):
    """The worker of a cell died before the cell was computed."""


class Computes(Protocol):
    """Where cells are computed, several at a time."""

    @property
    def places(self) -> int:
        """The number of cells that are computed at a time."""

    def submit(self, plan: Sent, cell: Cell) -> Future[Any]:
        """Begin to compute a cell of a plan.

        The future holds the seconds that it took and what was computed, an `InputError`, or
        `Gone`.
        """

    def close(self) -> None:
        """Stop, without waiting for cells that are not finished."""


@dataclass(frozen=True)
class Sent:
    """A plan as it travels: pickled, without its images."""

    name: str
    pickled: bytes


def sent(plan: Plan) -> Sent:
    """A plan as it is sent to a worker.

    The files of attacks and estimators of the user's own travel by content.

    Raises:
        InputError: The network is one that cannot be sent.
    """
    import cloudpickle

    for name, module in list(sys.modules.items()):
        if is_users_file(name):
            cloudpickle.register_pickle_by_value(module)
    try:
        light = replace(plan, images=cast(Images, None))
        return Sent(plan.subject.name, cloudpickle.dumps(light))
    except (TypeError, AttributeError, ValueError, pickle.PicklingError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{plan.subject.name} cannot be sent to another process ({reason}): run it with "
            "--workers 1."
        ) from None


class Processes:
    """Worker processes on this machine.

    A worker that dies takes the cells with it that were being computed; others take its place, and
    the cells can be submitted again.

    Args:
        count: The number of processes.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None

    @property
    def places(self) -> int:
        """The number of processes."""
        return self._count

    def submit(self, plan: Sent, cell: Cell) -> Future[Any]:
        """Begin to compute a cell of a plan."""
        asked = (plan, cell.asked, moved(cell.gather(), "cpu"))
        for _ in range(2):
            try:
                return self._running().submit(compute, *asked)
            except BrokenProcessPool:
                self.close()
        failed: Future[Any] = Future()
        failed.set_exception(Gone("no worker process can be started"))
        return failed

    def close(self) -> None:
        """Stop all processes."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        alive = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in alive:
            process.terminate()

    def _running(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._count,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(list(sys.path),),
            )
        return self._pool


def outcome(future: Future[Any]) -> tuple[float, Any]:
    """What a finished future holds: the seconds that the cell took, and what was computed.

    Raises:
        InputError: The network or an attack of the user's own cannot be used.
        Gone: The worker died.
    """
    try:
        seconds, found = future.result()
        return seconds, found
    except BrokenProcessPool as error:
        raise Gone(str(error)) from None


_bench: tuple[bytes, Bench] | None = None


def _begin(path: Sequence[str]) -> None:
    """Make ready a worker process."""
    # The process that started it stops it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path[:] = list(path)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)


def compute(
    plan: Sent, asked: tuple[str, int | None, str, Any], given: Mapping[str, Any]
) -> tuple[float, Any]:
    """Compute a cell in a worker process; the seconds that it took, and what was computed.

    The networks of the last plan stay.

    Args:
        plan: The plan.
        asked: The cell's own `asked`.
        given: What the work takes.
    """
    global _bench
    if _bench is None or _bench[0] != plan.pickled:
        _bench = (plan.pickled, Bench(pickle.loads(plan.pickled)))
    began = time.perf_counter()
    bench = _bench[1]
    found = moved(bench.compute(*asked, moved(given, bench.device)), "cpu")
    return time.perf_counter() - began, found


def moved(value: Any, device: str) -> Any:
    """What a cell takes or gives, with its tensors on a device; they travel on the CPU.

    Examples:
        >>> import torch
        >>> moved({"images": torch.zeros(2), "ids": [0, 1]}, "cpu")["ids"]
        [0, 1]
    """
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Batch):
        tensors = (moved(one, device) for one in (value.images, value.labels, value.clean))
        images, labels, clean = tensors
        return Batch(images, labels, value.ids, clean)
    if isinstance(value, dict):
        return {name: moved(one, device) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(moved(one, device) for one in value)
    return value
