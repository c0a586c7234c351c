"""The parts of the time of one input gradient."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.contenders.base import Ours
from benchmarks.networks import benchmark_network, random_images, random_labels
from benchmarks.timing import Spread
from robustsnn.snn.network import Network

REPEATS = 3
MATMUL = 2048

PARTS = (
    "convolution forward",
    "convolution backward",
    "linear forward",
    "linear backward",
    "LIF forward",
    "LIF backward",
    "pooling",
    "layout copies",
    "rest",
)


def measure(
    steps: int = 8, batch: int = 32, network: Network | None = None, size: int = MATMUL
) -> dict[str, Any]:
    """The milliseconds of each part of an input gradient of VGG5, and the arithmetic reached.

    Args:
        steps: The number of time steps.
        batch: The number of images.
        network: A network to measure instead of VGG5.
        size: The size of the square matrices whose product shows the arithmetic that is possible.

    Returns:
        `milliseconds` by part, their `total`, the milliseconds `wall` without the profiler, the
        `gflop` of the convolutions in one direction, and `gflop_per_second` of `convolution
        forward`, `convolution backward` and `matmul`.
    """
    network = copy.deepcopy(benchmark_network("vgg5") if network is None else network)
    network.time_steps = steps
    ours = Ours(network)
    ours.prepare("input-gradient")
    images, labels = random_images(batch, network.input_shape), random_labels(batch)
    operations = _convolution_flop(ours.network, images)
    walls = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        ours.gradient(images, labels)
        walls.append(time.perf_counter() - start)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(REPEATS):
            ours.gradient(images, labels)
    spent = dict.fromkeys(PARTS, 0.0)
    for event in profiler.events() or []:
        spent[part(event.name, _ancestors(event))] += event.self_cpu_time_total / 1e3 / REPEATS
    return {
        "architecture": network.config.architecture,
        "steps": steps,
        "batch": batch,
        "milliseconds": spent,
        "total": sum(spent.values()),
        "wall": Spread.of(walls).median * 1e3,
        "gflop": operations / 1e9,
        "gflop_per_second": {
            "convolution forward": operations / 1e6 / max(spent["convolution forward"], 1e-9),
            "convolution backward": operations / 1e6 / max(spent["convolution backward"], 1e-9),
            "matmul": _matmul_gflop_per_second(size),
        },
    }


def part(name: str, ancestors: list[str]) -> str:
    """The part of an operation, by its name and the names of the operations that called it."""
    family = [name, *ancestors]
    way = "backward" if any(n.startswith("autograd::engine") for n in family) else "forward"

    def has(*words: str) -> bool:
        return any(word in n for n in family for word in words)

    if has("LIF"):
        return f"LIF {way}"
    if has("conv", "Conv"):
        return f"convolution {way}"
    if has("aten::linear", "aten::mm", "aten::addmm", "aten::matmul", "MmBackward"):
        return f"linear {way}"
    if has("avg_pool2d", "AvgPool2D"):
        return "pooling"
    if has("aten::copy_", "aten::clone", "aten::contiguous", "aten::cat"):
        return "layout copies"
    return "rest"


def _ancestors(event: Any) -> list[str]:
    found = []
    while (event := event.cpu_parent) is not None:
        found.append(event.name)
    return found


@torch.no_grad()
def _convolution_flop(network: Network, images: Tensor) -> float:
    """The floating-point operations of all convolutions in one forward pass."""
    total = 0.0

    def count(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d)
        total += 2.0 * output.numel() * module.weight[0].numel()

    handles = [
        module.register_forward_hook(count)
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return total


def _matmul_gflop_per_second(size: int) -> float:
    a, b = torch.rand(size, size), torch.rand(size, size)
    torch.mm(a, b)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / Spread.of(seconds).median / 1e9
