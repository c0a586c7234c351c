"""Small checkpoints that are right about real images, and the command line as users run it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.cli import warm_cli

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
CLI = [sys.executable, "-m", "robustsnn"]


def cli_environment() -> dict[str, str]:
    """As a user's shell has it, but for what would change how numbers are computed."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ROBUSTSNN")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


def run_cli(arguments: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """The real command line in a process of its own."""
    return subprocess.run(
        [*CLI, *arguments],
        cwd=cwd,
        env=cli_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run the command line in an empty folder: `cli("evaluate", model)`."""

    def run(*arguments: str | Path, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        return run_cli([str(a) for a in arguments], cwd)

    return run


@pytest.fixture(scope="session")
def run_warm() -> Iterator[Cli]:
    """`run_cli` without the seconds of starting; `tests.cli.warm_cli` says what that leaves out."""
    if not warm_cli.AVAILABLE:
        yield run_cli
        return
    warm = warm_cli.WarmCli(cli_environment())
    yield lambda arguments, cwd: warm.run(arguments, cwd, cli_environment())
    warm.close()


@pytest.fixture
def warm(tmp_path: Path, run_warm: Cli) -> Cli:
    """As `cli`, without the seconds of starting."""

    def run(*arguments: str | Path, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        return run_warm([str(a) for a in arguments], cwd)

    return run


def make_checkpoint(
    folder: Path, kind: str, seed: int = 0, substitute: str | None = None, **changes: object
) -> Path:
    """A VGG5 with random convolutions whose last layer is fitted by ridge regression."""
    import torch

    from robustsnn.data.catalogue import DATASETS
    from robustsnn.data.datasets import load_dataset
    from robustsnn.models.checkpoint import save_checkpoint
    from robustsnn.snn.network import Network, NetworkConfig

    known = DATASETS["fashion-mnist"]
    torch.manual_seed(seed)
    settings: dict[str, object] = {
        "architecture": "vgg5",
        "kind": kind,
        "classes": 10,
        "image": known.shape,
        "widths": (4, 6, 6),
        "classifier": (64,),
        "mean": known.mean,
        "std": known.std,
        "time_steps": 1 if kind == "ann" else 3,
        "dropout": 0.0,
    }
    network = Network(NetworkConfig.model_validate({**settings, **changes})).eval()
    data = load_dataset("fashion-mnist", None, samples=600)
    linear = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
    for module in linear:
        torch.nn.init.kaiming_normal_(module.weight)
    for layer in network.spiking_layers().values():
        torch.nn.init.constant_(layer.threshold, 0.4)
    if network.classes == 10 and network.input_shape == known.shape:
        seen: list[torch.Tensor] = []
        handle = linear[-1].register_forward_hook(
            lambda module, args, output: seen.append(args[0].unflatten(0, (-1, 600)).sum(0))
        )
        with torch.no_grad():
            network(data.tensor())
        handle.remove()
        features = seen[0].double()
        targets = torch.nn.functional.one_hot(data.targets(), 10).double() - 0.1
        gram = features.T @ features + torch.eye(features.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(gram, features.T @ targets).T
        linear[-1].weight.data = (8 * weight).float()
    save_checkpoint(
        network,
        folder,
        data="fashion-mnist",
        class_names=tuple(map(str, range(network.classes))),
        provenance={"method": "ann" if kind == "ann" else "hybrid"},
        substitute=substitute,
    )
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints `ann`, `snn` and `snn-b`; `snn-b` is the others' substitute."""
    root = tmp_path_factory.mktemp("checkpoints")
    make_checkpoint(root / "snn-b", "snn", seed=1)
    make_checkpoint(root / "ann", "ann", substitute=str(root / "snn-b"))
    make_checkpoint(root / "snn", "snn", substitute=str(root / "snn-b"))
    return root
