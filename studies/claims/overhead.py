"""How long an update of each way of training takes, against traditional training."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustsnn.models.checkpoint import load_network, read_checkpoint
from robustsnn.snn.network import Network
from robustsnn.training.adversarial import adversarial_update
from robustsnn.training.gaussian import gaussian_update
from robustsnn.training.hire import hire_update
from robustsnn.training.recipe import Adversarial, Gaussian, Hire
from robustsnn.training.step import plain_update
from studies.claims.members import GAUSSIAN, HIRE, L2, LINF, PERIODS, SNN_AT, TRADITIONAL
from studies.claims.study import OVERHEAD, Bench, Row

#: The network, the images of a batch, the rounds, and those at the start that are not counted.
NETWORK, BATCH, ROUNDS, WARM_UP = "fashion-mnist/vgg5-snn", 64, 12, 2
UPDATES: dict[str, Callable[..., Any]] = {
    TRADITIONAL: plain_update,
    HIRE: partial(hire_update, settings=Hire(periods=2)),
    "HIRE, 4 periods": partial(hire_update, settings=Hire(periods=4)),
    PERIODS: partial(hire_update, settings=Hire(periods=2, noise="none")),
    LINF: partial(hire_update, settings=Hire(periods=2, noise="gaussian-linf")),
    L2: partial(hire_update, settings=Hire(periods=2, noise="gaussian-l2")),
    GAUSSIAN: partial(gaussian_update, settings=Gaussian(deviation="8/255")),
    SNN_AT: partial(adversarial_update, settings=Adversarial(epsilon="8/255")),
}


def overhead_rows(bench: Bench, rounds: int = ROUNDS) -> list[Row]:
    """The time of a batch of each way of training, as a multiple of traditional training."""
    known = bench.known(OVERHEAD, NETWORK)
    if bench.finished_only or known:
        return known
    bench.say(f"{NETWORK}, time of an update")
    network = load_network(read_checkpoint(NETWORK))
    images, labels = torch.rand(BATCH, *network.input_shape), torch.arange(BATCH) % network.classes
    found = []
    for kind, (low, middle, high) in ratios(network, images, labels, rounds).items():
        found.append(
            {
                "part": OVERHEAD, "model": NETWORK, "data": "fashion-mnist", "kind": kind,
                "architecture": network.config.architecture, "seed": 1, "suite": "training",
                "attack": "time", "value": middle, "low": low, "high": high, "samples": rounds,
            }
        )  # fmt: skip
    return found


def ratios(
    network: Network, images: Tensor, labels: Tensor, rounds: int = ROUNDS
) -> dict[str, tuple[float, float, float]]:
    """The quartiles of the time of an update over that of traditional training, by kind.

    The ways take turns in one process, with one thread, so that what else the machine does falls on
    all of them.

    Args:
        network: A trained SNN, which stays as it is.
        images: A batch of images, in pixel units of [0, 1].
        labels: Their classes.
        rounds: The number of rounds that count.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = {kind: deepcopy(network).train().requires_grad_(True) for kind in UPDATES}
    optimizers = {k: torch.optim.Adam(n.parameters(), lr=1e-4) for k, n in made.items()}
    taken: dict[str, list[float]] = {kind: [] for kind in UPDATES}
    try:
        for _ in range(rounds + WARM_UP):
            for kind, update in UPDATES.items():
                began = time.perf_counter()
                update(made[kind], optimizers[kind], images, labels)
                taken[kind].append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    plain = np.array(taken[TRADITIONAL][WARM_UP:])
    found = {}
    for kind, seconds in taken.items():
        low, middle, high = np.quantile(np.array(seconds[WARM_UP:]) / plain, [0.25, 0.5, 0.75])
        found[kind] = (float(low), float(middle), float(high))
    return found
