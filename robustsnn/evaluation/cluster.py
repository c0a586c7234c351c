"""Workers on other machines: cells as tasks of Ray, whose results come back through its store.

No shared disk is needed: networks, images and results travel. The machines need RobustSNN of the
same version; the user's own modules travel by content.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

from robustsnn.errors import InputError, installing
from robustsnn.evaluation.cells import Cell
from robustsnn.evaluation.workers import RETRIES, Gone, Sent, compute, moved

#: The seconds to wait for a cluster to answer.
PATIENCE = 30.0


class RayWorkers:
    """Workers of a Ray cluster.

    A node that dies costs the cells that it was computing; Ray computes them elsewhere.

    Args:
        address: `auto` for the cluster of this machine, or `HOST:PORT`; `local` starts one on this
            machine alone.
        gpus: The share of a GPU that a worker has; 0 for workers on CPUs.

    Raises:
        InputError: Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str, gpus: float = 0.0) -> None:
        self._ray = _connected(address)
        self._gpus = gpus
        options: dict[str, Any] = {"num_cpus": 1, "max_retries": RETRIES}
        if gpus:
            options["num_gpus"] = gpus
        self._compute = self._ray.remote(**options)(_on_node)
        self._plans: dict[bytes, Any] = {}

    @property
    def places(self) -> int:
        """The number of cells that the cluster can compute at a time now."""
        found = self._ray.cluster_resources()
        if self._gpus:
            return max(1, int(found.get("GPU", 0) / self._gpus))
        return max(1, int(found.get("CPU", 0)))

    def submit(self, plan: Sent, cell: Cell) -> Future[Any]:
        """Begin to compute a cell of a plan."""
        if plan.pickled not in self._plans:
            self._plans[plan.pickled] = self._ray.put(plan)
        given = moved(cell.gather(), "cpu")
        # Another machine does not have the run folder, so a probe there keeps no pieces.
        given.pop("store", None)
        reference = self._compute.remote(self._plans[plan.pickled], cell.asked, given)
        found: Future[Any] = Future()
        reference.future().add_done_callback(lambda done: self._settle(found, done))
        return found

    def close(self) -> None:
        """Leave the cluster; tasks that are not finished are cancelled."""
        if self._ray.is_initialized():
            self._ray.shutdown()

    def _settle(self, found: Future[Any], done: Future[Any]) -> None:
        error = done.exception()
        if error is None:
            found.set_result(done.result())
        elif isinstance(error, self._ray.exceptions.RayTaskError):
            found.set_exception(error.cause if isinstance(error.cause, Exception) else error)
        else:
            found.set_exception(Gone(str(error).splitlines()[0]))


def _on_node(plan: Sent, asked: tuple[str, int | None, str, Any], given: Any) -> Any:
    """Compute a cell on a node, with one thread."""
    import torch

    torch.set_num_threads(1)
    return compute(plan, asked, given)


def _connected(address: str) -> Any:
    """Ray, connected to a cluster.

    Raises:
        InputError: Ray is not installed, or no cluster answers.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError(f"--ray needs Ray: {installing('cluster')}.")
    import cloudpickle
    import ray

    for module in users_modules():
        cloudpickle.register_pickle_by_value(module)
    settings: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    try:
        ray.init(address=address, **settings)
    except (ConnectionError, ValueError, RuntimeError, OSError, TimeoutError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"no Ray cluster answers at {address!r} ({reason}): start one with `ray start --head`, "
            "or give the address that it prints."
        ) from None
    return ray


def users_modules() -> list[ModuleType]:
    """The modules that are neither installed nor part of Python: those of the user."""
    stdlib = Path(sysconfig.get_paths()["stdlib"]).resolve()
    ours = Path(__file__).resolve().parents[2]
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file or name == "__main__" or name.split(".")[0] == "robustsnn":
            continue
        path = Path(file).resolve()
        if path.suffix != ".py" or {"site-packages", "dist-packages"} & set(path.parts):
            continue
        if not any(path.is_relative_to(one) for one in (stdlib, ours)):
            found.append(module)
    return found
