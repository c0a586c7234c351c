"""How much faster a network without some channels is than its dense parent."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn

#: The images of a pass, the passes of each network, and those at the start that are not counted.
BATCH, REPEATS, WARM_UP = 64, 40, 5


@torch.no_grad()
def faster(network: nn.Module, parent: nn.Module, images: Tensor) -> tuple[float, float, float]:
    """How many times faster a network is than its parent: the median and the two quartiles.

    The two take turns in one process, with one thread, and each turn gives a ratio, so that what
    else the machine does falls on both.

    Args:
        network: The network.
        parent: Its dense parent.
        images: Images, of which the first 64 are taken.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        some = images[:BATCH]
        ratios = []
        for _ in range(REPEATS + WARM_UP):
            slow = _seconds(parent, some)
            ratios.append(slow / _seconds(network, some))
    finally:
        torch.set_num_threads(threads)
    low, middle, high = np.quantile(ratios[WARM_UP:], [0.25, 0.5, 0.75])
    return float(middle), float(low), float(high)


def _seconds(network: nn.Module, images: Tensor) -> float:
    began = time.perf_counter()
    network(images)
    return time.perf_counter() - began
