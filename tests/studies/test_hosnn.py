"""The study of HoSNN: its network spikes as it says, and its page says what its table holds."""

from __future__ import annotations

from pathlib import Path

import torch

from studies.hosnn.network import STEPS, SYNAPSE, HoSNN, filtered, load, save
from studies.hosnn.page import write


def test_the_network_keeps_its_signatures_and_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = HoSNN().eval().requires_grad_(False)
    images = torch.rand(6, 1, 28, 28)
    plain = network(images)
    network.sign(images, batch=4)
    first = next(iter(network.spiking_layers().values()))
    current = network.synapses[0]((images - 0.2860) / 0.3530)[None]
    mean = torch.stack(list(first.trace(current, STEPS).membranes)).mean(1)
    assert torch.allclose(first.signature, mean, atol=1e-5)
    # Signatures alone change nothing while no threshold follows.
    assert torch.equal(network(images), plain)
    first.follows.data.fill_(0.5)
    save(network, tmp_path / "w.safetensors")
    assert torch.equal(load(tmp_path / "w.safetensors")(images), network(images))
    assert not torch.equal(network(images), plain)


def test_synapses_remember_spikes() -> None:
    spikes = torch.tensor([[1.0], [0.0], [1.0]])
    kept = 1 - 1 / SYNAPSE
    assert torch.allclose(filtered(spikes), torch.tensor([[1.0], [kept], [kept**2 + 1]]))


def test_the_page_says_what_is_left_of_the_gain(tmp_path: Path) -> None:
    rows = [
        {"network": name, "attack": attack, "samples": 100, "accuracy": accuracy,
         "level": "B" if attack == "standard" else "", "seconds": "",
         "flags": "surrogate-misplaced" if (name, attack) == ("hosnn", "standard") else ""}
        for name, numbers in {"hosnn": (0.8, 0.6, 0.4, 0.1), "plain": (0.8, 0.3, 0.3, 0.1)}.items()
        for attack, accuracy in zip(
            ("clean", "pgd-7-published", "pgd-7-live", "standard"), numbers, strict=True
        )
    ]  # fmt: skip
    write(rows, tmp_path, "python -m studies hosnn")
    text = (tmp_path / "hosnn.md").read_text(encoding="utf-8")
    assert "| PGD-7 where spikes flip | 40.0 | 30.0 |" in text
    assert "| `standard` | 10.0 (B) | 10.0 (B) |" in text
    assert "keeps +30.0 points" in text and "keeps +0.0 points" in text
    assert "surrogate-misplaced" in text
    before = (tmp_path / "hosnn.csv").read_bytes()
    write([], tmp_path, "python -m studies hosnn")
    assert (tmp_path / "hosnn.csv").read_bytes() == before
