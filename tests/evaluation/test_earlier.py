"""A run that was begun before: by another version, on another machine, or with another network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import robustsnn
from robustsnn.errors import InputError

IMAGES = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(3))
LABELS = torch.arange(24) % 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def evaluated(output: Path, **settings: Any) -> robustsnn.Evaluation:
    return robustsnn.evaluate(
        network(), (IMAGES, LABELS), attack=("fgsm", "pgd:steps=2"), output=output, **settings
    )


class Stop(BaseException):
    """As an interrupt."""


def stopped(output: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        evaluated(output, progress=stop)


def change(folder: Path, of: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    of(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("package", ["torch", "robustsnn"])
def test_another_version_does_not_go_on_with_a_run(tmp_path: Path, package: str) -> None:
    stopped(tmp_path / "run")
    here = json.loads((tmp_path / "run" / "manifest.json").read_text())["versions"][package]

    def older(manifest: dict[str, Any]) -> None:
        manifest["versions"][package] = "0.0.9"

    change(tmp_path / "run", older)
    parts = sorted(p.name for p in (tmp_path / "run" / "parts").iterdir())
    with pytest.raises(InputError, match=rf"{package} 0\.0\.9, here {here}.*another --output"):
        evaluated(tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run" / "parts").iterdir()) == parts
    change(tmp_path / "run", lambda manifest: manifest["versions"].update({package: here}))
    assert not evaluated(tmp_path / "run").reprinted


def test_versions_that_do_not_round_may_change(tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    change(tmp_path / "run", lambda manifest: manifest["versions"].update({"foolbox": "0.0.9"}))
    assert not evaluated(tmp_path / "run").reprinted


def test_a_finished_run_of_another_version_is_read(tmp_path: Path) -> None:
    evaluated(tmp_path / "run")
    change(tmp_path / "run", lambda manifest: manifest["versions"].update({"torch": "0.0.9"}))
    again = evaluated(tmp_path / "run")
    assert again.reprinted and again.manifest.made.endswith("with torch 0.0.9")


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(("off", "same"), [(1 + 1e-5, True), (1.1, False)])
def test_another_machine_may_round_otherwise(
    tmp_path: Path, finished: bool, off: float, same: bool
) -> None:
    if finished:
        evaluated(tmp_path / "run")
    else:
        stopped(tmp_path / "run")

    def elsewhere(manifest: dict[str, Any]) -> None:
        function = manifest["function"]
        function["numbers"] = [number * off for number in function["numbers"]]
        function["logits"] = "0" * 64
        manifest["identity"] = "f" * 64

    change(tmp_path / "run", elsewhere)
    if same:
        assert evaluated(tmp_path / "run").reprinted is finished
        return
    with pytest.raises(InputError, match=r"holds another run.*had other weights or other code"):
        evaluated(tmp_path / "run")


def test_other_images_are_another_run_and_not_another_network(tmp_path: Path) -> None:
    evaluated(tmp_path / "run")
    with pytest.raises(InputError, match=r"holds another run \(Sequential, memory, suite custom"):
        robustsnn.evaluate(network(), (1 - IMAGES, LABELS), attack="fgsm", output=tmp_path / "run")
