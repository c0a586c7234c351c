from __future__ import annotations

import json

import pytest
import torch

from robustsnn.errors import InputError
from robustsnn.models import checkpoint
from robustsnn.models.checkpoint import (
    load_network,
    read_checkpoint,
    save_checkpoint,
)
from robustsnn.models.hire_snn import from_official
from robustsnn.models.weights import read_state_dict
from robustsnn.snn.network import Network, NetworkConfig

NAMES = tuple("abc")


def network() -> Network:
    torch.manual_seed(0)
    return Network(
        NetworkConfig(
            architecture="vgg5",
            kind="snn",
            classes=3,
            image=(3, 8, 8),
            widths=(4, 4, 4),
            classifier=(6,),
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            time_steps=3,
        )
    )


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(network(), tmp_path / "m", data="cifar10", class_names=NAMES, provenance={})
    return tmp_path / "m"


def test_what_is_loaded_is_what_was_saved_frozen(folder):
    ours, theirs = network(), load_network(read_checkpoint(folder))
    assert theirs.config == ours.config
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())
    assert not any(m.training for m in theirs.modules())
    assert not any(p.requires_grad for p in theirs.parameters())
    assert {p.name for p in folder.iterdir()} == {"model.json", "model.safetensors"}


def test_one_changed_byte_is_noticed(folder):
    path = folder / "model.safetensors"
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)
    with pytest.raises(InputError, match="sha256"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 9}, "format 1"),
        ({"class_names": ["a"]}, "class_names"),
        ({"network": {"architecture": "vgg5"}}, r"network\.kind"),
        ({"network": None}, "network"),
    ],
)
def test_a_malformed_description_names_the_field(folder, change, says):
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=says):
        read_checkpoint(folder)


def test_weights_that_do_not_fit_are_named(folder):
    path = folder / "model.json"
    description = json.loads(path.read_text())
    description["network"]["classifier"] = [7]
    path.write_text(json.dumps(description))
    with pytest.raises(InputError, match=r"classifier\.0\.weight.*\[6, 16\].*\[7, 16\]"):
        load_network(read_checkpoint(folder))


def official() -> dict[str, torch.Tensor]:
    """A state dict as the official code writes it, for vgg5 with one hidden linear layer."""
    tensors: dict[str, torch.Tensor] = {}
    for name, value in network().state_dict().items():
        part, index, kind = name.split(".")
        n = int(index) - 1 + (9 if part == "classifier" else 0)
        key = {"weight": name, "threshold": f"threshold.t{n}", "leak": f"leak.l{n}"}[kind]
        tensors[key] = value.clone()
    return tensors


def test_an_official_state_dict_is_read_whole():
    got = from_official(official(), "vgg5", 3, "none")
    assert got.config.widths == (4, 4, 4) and got.config.classifier == (6,)
    assert all(torch.equal(v, got.state_dict()[k]) for k, v in network().state_dict().items())


@pytest.mark.parametrize("missing", ["threshold.t0", "leak.l3", "threshold.t9", "leak.l9"])
def test_a_missing_threshold_or_leak_is_an_error_not_a_default(missing):
    tensors = official()
    del tensors[missing]
    with pytest.raises(InputError, match=f"lacks '{missing}'"):
        from_official(tensors, "vgg5", 3, "none")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("features.99.weight", torch.zeros(4, 2, 3, 3), "widths"),
        ("something", torch.zeros(1), "'something'"),
        ("threshold.t0", torch.tensor(-1.0), "positive"),
        ("leak.l0", torch.tensor(float("nan")), "NaN"),
        ("classifier.0.weight", torch.zeros(6, 17), "square image"),
    ],
)
def test_a_foreign_state_dict_is_refused(key, value, says):
    with pytest.raises(InputError, match=says):
        from_official({**official(), key: value}, "vgg5", 3, "none")


class Payload:
    def __reduce__(self):
        return (open, ("ran", "w"))


def test_a_pickle_that_would_run_code_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="run code"):
        read_state_dict(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_weights_that_change_after_they_were_checked_are_noticed(folder):
    checkpoint = read_checkpoint(folder)
    torch.manual_seed(1)
    other = network()
    other.classifier[0].weight.data.add_(1)
    save_checkpoint(other, folder, data="cifar10", class_names=NAMES, provenance={})
    with pytest.raises(InputError, match="changed while it was in use"):
        load_network(checkpoint)


def test_a_disk_that_fills_between_the_two_files_leaves_neither(tmp_path, monkeypatch):
    write = checkpoint.write_atomically

    def full(path, content):
        if path.name == "model.json":
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    about = {"data": "", "class_names": NAMES, "provenance": {}}
    with pytest.raises(InputError, match="No space left on device"):
        checkpoint.save_checkpoint(network(), tmp_path / "new", **about)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    checkpoint.save_checkpoint(network(), tmp_path / "held", **about)
    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(InputError, match="No space left on device"):
        checkpoint.save_checkpoint(network(), tmp_path / "held", **about)
    # The same weights again, so that the description of before still holds.
    assert checkpoint.read_checkpoint(tmp_path / "held").sha256
