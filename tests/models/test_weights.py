"""Weights as people save them, through the real command line and the public API."""

from __future__ import annotations

import argparse
import collections
import datetime
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import robustsnn
from robustsnn.errors import InputError
from robustsnn.models.weights import load_weights, read_state_dict

NET = """
import torch
from torch import nn

def build():
    torch.manual_seed(9)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.BatchNorm1d(12), nn.Linear(12, 10))

class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = build()

    def forward(self, images):
        return self.net(images)
"""


def build() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.BatchNorm1d(12), nn.Linear(12, 10))


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = build()


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: tensor.clone() for name, tensor in build().state_dict().items()}


def loads(state: dict[str, torch.Tensor], path: Path, network: nn.Module | None = None) -> None:
    """The file gives these very weights."""
    network = build() if network is None else network
    load_weights(network, path, "'net:build'")
    found = network.state_dict()
    found = {k.removeprefix("net."): v for k, v in found.items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "_orig_mod.module."),
        *("model.module.", "backbone.", "model.net."),
    ],
)
def test_a_prefix_that_all_keys_share_is_taken_off(state, tmp_path, prefix):
    torch.save({f"{prefix}{k}": v for k, v in state.items()}, tmp_path / "w.pt")
    loads(state, tmp_path / "w.pt")
    save_file({f"{prefix}{k}": v for k, v in state.items()}, tmp_path / "w.safetensors")
    loads(state, tmp_path / "w.safetensors")


def test_a_prefix_of_the_network_is_put_before_the_keys_of_a_file(state, tmp_path):
    torch.save(state, tmp_path / "w.pt")
    loads(state, tmp_path / "w.pt", Holder())
    torch.save({f"module.{k}": v for k, v in state.items()}, tmp_path / "w.pt")
    loads(state, tmp_path / "w.pt", Holder())


def test_a_part_that_was_compiled_or_parallel_is_found(state, tmp_path):
    torch.save({f"net._orig_mod.{k}": v for k, v in state.items()}, tmp_path / "w.pt")
    loads(state, tmp_path / "w.pt", Holder())
    torch.save({f"net.module.{k}": v for k, v in state.items()}, tmp_path / "w.pt")
    loads(state, tmp_path / "w.pt", Holder())


def test_keys_of_a_loss_beside_the_model_are_not_weights_of_it(state, tmp_path):
    held = {**{f"model.{k}": v for k, v in state.items()}, "criterion.weight": torch.ones(10)}
    torch.save({"state_dict": held, "epoch": 3}, tmp_path / "w.ckpt")
    loads(state, tmp_path / "w.ckpt")


def test_two_networks_under_two_prefixes_are_not_guessed_at(state, tmp_path):
    held = {f"{head}{k}": v for head in ("model.", "net.") for k, v in state.items()}
    torch.save(held, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"several times .*model.*net"):
        load_weights(build(), tmp_path / "w.pt", "'net:build'")


@pytest.mark.parametrize(
    "wrapper",
    ["net", "model", "state_dict", "model_state_dict", "network", "weights", "my_own_name"],
)
def test_a_wrapper_is_taken_off_with_what_lies_beside_the_weights(state, tmp_path, wrapper):
    momentum = {"state": {0: {"momentum": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    beside = {
        "optimizer": momentum,
        "epoch": 7,
        "acc": np.float64(0.91),
        "best": np.float32(0.92),
        "step": np.int64(5),
        "args": argparse.Namespace(lr=1e-3, out=Path("runs")),
        "when": datetime.datetime(2024, 1, 1),
        "took": datetime.timedelta(seconds=3),
        "losses": collections.deque([1.0, 2.0], maxlen=5),
        "history": np.arange(3),
        "seen": {1, 2},
        "by_name": collections.defaultdict(list, a=[1]),
        "config": {"widths": (4, 6), "path": Path("here")},
    }
    torch.save({**beside, wrapper: state}, tmp_path / "w.pt")
    loads(state, tmp_path / "w.pt")
    torch.save({wrapper: {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pt")
    loads(state, tmp_path / "w.pt")


def test_a_safetensors_file_may_have_any_name(state, tmp_path):
    save_file(state, tmp_path / "w.pt")
    loads(state, tmp_path / "w.pt")


def test_a_wrapper_within_a_wrapper_and_arrays_are_read(state, tmp_path):
    torch.save({"state_dict": {"model": state, "ema_decay": 0.9}}, tmp_path / "w.pt")
    loads(state, tmp_path / "w.pt")
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    torch.save(arrays, tmp_path / "w.pt")
    loads(state, tmp_path / "w.pt")
    np.savez(tmp_path / "w.npz", **arrays)
    loads(state, tmp_path / "w.npz")


def test_the_home_folder_may_be_written_as_a_tilde(state, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(state, tmp_path / "w.pt")
    loads(state, Path("~/w.pt"))


def test_two_sets_of_weights_under_unknown_names_are_not_guessed_at(state, tmp_path):
    torch.save({"generator": state, "critic": state}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"several sets of weights \('generator' and 'critic'\)"):
        read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("1.bias"), r"lacks '1.bias'; keys found: '1.weight', .*network"),
        (lambda s: s.update({"9.bias": torch.ones(1)}), r"also holds '9.bias'; keys found"),
        (lambda s: s.update({"1.bias": torch.ones(3)}), r"'1.bias' has shape \[3\].*\[12\]"),
    ],
)
def test_what_does_not_fit_is_named_with_the_keys_found(state, tmp_path, change, says):
    change(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match=says) as refused:
        load_weights(build(), tmp_path / "w.pt", "'net:build'")
    assert "\n" not in str(refused.value)


def test_what_holds_no_weights_lists_what_it_holds(tmp_path):
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"no tensors by name; keys found: 'epoch', 'lr'"):
        read_state_dict(tmp_path / "w.pt")
    torch.save(torch.zeros(3), tmp_path / "w.pt")
    with pytest.raises(InputError, match="Tensor, not tensors by name"):
        read_state_dict(tmp_path / "w.pt")


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_code_beside_the_weights_is_refused_by_name_and_not_run(state, tmp_path):
    torch.save({"state_dict": state, "args": Trap(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="run code"):
        read_state_dict(tmp_path / "w.pt")
    torch.save(Holder(), tmp_path / "whole.pt")
    with pytest.raises(InputError, match=r"Holder.*state_dict"):
        read_state_dict(tmp_path / "whole.pt")
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(InputError, match="run code"):
        read_state_dict(tmp_path / "w.pkl")
    np.savez(tmp_path / "w.npz", a=np.array([Trap(tmp_path / "ran")], dtype=object))
    with pytest.raises(InputError, match="npz"):
        read_state_dict(tmp_path / "w.npz")
    assert not (tmp_path / "ran").exists()


def test_no_type_stays_allowed_after_a_file_was_read(state, tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save({"net": state, "args": argparse.Namespace(a=1)}, tmp_path / "w.pt")
    read_state_dict(tmp_path / "w.pt")
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.slow
def test_a_file_of_a_training_script_is_evaluated(state, tmp_path, cli):
    (tmp_path / "net.py").write_text(NET)
    held = {"net": {f"module.{k}": v for k, v in state.items()}, "acc": np.float64(1)}
    torch.save({**held, "args": argparse.Namespace(lr=1)}, tmp_path / "w.pth")
    asked = ["--data", "fashion-mnist", "--samples", "4", "--attack", "fgsm"]
    done = cli("evaluate", "net:build", "--weights", "w.pth", *asked, "--json")
    assert done.returncode == 0, done.stderr
    torch.save({"net": {"a.weight": torch.ones(2)}}, tmp_path / "w.pth")
    done = cli("evaluate", "net:build", "--weights", "w.pth", *asked)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "keys found: 'a.weight'" in line and "'1.weight'" in line


def test_load_model_takes_such_a_file(state, tmp_path, monkeypatch):
    (tmp_path / "net_of_ours.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save({"model_state_dict": state}, tmp_path / "w.pt")
    network = robustsnn.load_model("net_of_ours:Holder", tmp_path / "w.pt")
    assert torch.equal(network.state_dict()["net.1.bias"], state["1.bias"])
