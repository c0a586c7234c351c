"""Weights that are stored as float16, and when a trained network is stored like that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from robustsnn.models.checkpoint import load_network, read_checkpoint, save_checkpoint
from robustsnn.models.half_precision import rounded
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.training import run


def network(kind: Literal["ann", "snn"] = "snn") -> Network:
    torch.manual_seed(1)
    return Network(
        NetworkConfig(
            architecture="vgg5", kind=kind, classes=3, image=(1, 8, 8), widths=(8, 8, 8),
            classifier=(16,), mean=(0.4,), std=(0.3,), time_steps=1 if kind == "ann" else 4,
        )
    ).eval()  # fmt: skip


def saved(net: Network, folder: Path, half: bool) -> Path:
    save_checkpoint(net, folder, data="made", class_names=("a", "b", "c"), provenance={}, half=half)
    return folder


@pytest.mark.parametrize("sparse", [False, True])
def test_a_network_is_read_back_as_its_rounded_weights(tmp_path: Path, sparse: bool) -> None:
    net = network()
    if sparse:
        for parameter in net.parameters():
            if parameter.dim():
                parameter.data *= torch.rand_like(parameter) < 0.1
    whole, half = (saved(net, tmp_path / str(h), h) for h in (False, True))
    found = load_network(read_checkpoint(half)).state_dict()
    for name, value in net.state_dict().items():
        # Thresholds and leaks are scalars, of which there are few.
        expected = value.half().float() if value.dim() else value
        assert found[name].dtype == torch.float32 and torch.equal(found[name], expected), name
    sizes = [(f / "model.safetensors").stat().st_size for f in (whole, half)]
    assert sizes[1] < (0.9 if sparse else 0.75) * sizes[0]
    kinds = {t.dtype for n, t in load_file(half / "model.safetensors").items() if t.dim()}
    assert torch.float16 in kinds and torch.float32 not in kinds
    formats = [json.loads((f / "model.json").read_text())["format"] for f in (whole, half)]
    assert formats == [2, 2] if sparse else [1, 1]


def test_rounding_leaves_the_network_itself_alone() -> None:
    net = network()
    before = {n: v.clone() for n, v in net.state_dict().items()}
    after = rounded(net).state_dict()
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert any(not torch.equal(v, before[n]) for n, v in after.items())


@pytest.mark.parametrize(("flips", "stored"), [(0, True), (5, True), (6, False)])
def test_it_is_stored_like_that_if_few_predictions_change(monkeypatch, flips, stored) -> None:
    net = network()
    truth = torch.zeros(20, dtype=torch.int64)

    def predicted(one: Network, images: torch.Tensor) -> torch.Tensor:
        changed = truth.clone()
        changed[: 0 if one is net else flips] = 1
        return changed

    monkeypatch.setattr(run, "predictions", predicted)
    found, changed, classes = run.as_stored(net, torch.rand(20, 1, 8, 8))
    assert (found is not net) == stored
    assert changed == (flips if stored else None)
    assert int(classes.sum()) == (flips if stored else 0)


def test_a_weight_that_float16_cannot_hold_keeps_the_network_as_it_is() -> None:
    net = network("ann")
    net.state_dict()["features.0.weight"][0, 0, 0, 0] = 1e6
    found, changed, _ = run.as_stored(net, torch.rand(20, 1, 8, 8))
    assert found is net and changed is None
