"""Spikes, operations and energy of networks that are not ours, next to other counters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustsnn
from robustsnn.foreign.activity import count
from robustsnn.foreign.check import check
from robustsnn.foreign.wrap import adapted, wrap
from robustsnn.foreign.wrapped import Wrapped
from robustsnn.models.checkpoint import load_model
from robustsnn.snn.activity import record_activity
from robustsnn.snn.energy import energies, energy
from robustsnn.snn.network import Network
from robustsnn.snn.operations import count_operations
from tests.foreign.networks import Norse, SnnTorch, SpikingJelly, images, lively, needs, quiet
from tests.foreign.zoo_in_spikingjelly import Rewritten

IMAGES = 16


@needs("spikingjelly")
@quiet
def test_a_network_of_the_zoo_in_spikingjelly_takes_what_it_takes_here() -> None:
    ours = load_model("fashion-mnist/vgg5-snn-at")
    assert isinstance(ours, Network)
    x = images(IMAGES)
    there = wrap(Rewritten(ours).eval().requires_grad_(False), x[:8])
    found, expected = count(there, x, batch_size=8), count_operations(ours, x)
    assert found.operations is not None and found.uncounted == ""
    assert [layer.inputs for layer in found.operations.layers] == [
        layer.inputs for layer in expected.layers
    ]
    for a, b in zip(found.operations.layers, expected.layers, strict=True):
        # A spike may fall on the other side of the threshold by rounding.
        assert a.synaptic == pytest.approx(b.synaptic, rel=1e-3)
        assert a[2:6] == b[2:6] and a.bias_reads == b.bias_reads == 0
    recorded = record_activity(ours, x)
    for name, value in {**energy(ours, recorded)._asdict(), **energies(expected)}.items():
        if name != "snn_same_layer_uj":
            assert found.energy[name] == pytest.approx(value, rel=1e-3), name
    mine, theirs = found.operations.counts(), expected.counts()
    for name in set(theirs) - {"footprint_bytes"}:
        assert mine[name] == pytest.approx(theirs[name], rel=1e-3), name
    for here, said in zip(found.layers, recorded.layers, strict=True):
        assert here.neurons == said.neurons
        assert here.spikes_per_step == pytest.approx(said.spikes_per_step, abs=1e-4)


@needs("spikingjelly")
@quiet
@pytest.mark.parametrize("mode", ["s", "m"])
def test_operations_are_those_of_the_counter_of_spikingjelly(mode: str) -> None:
    counters = pytest.importorskip("spikingjelly.activation_based.op_counter")
    from spikingjelly.activation_based import functional

    torch.manual_seed(0)
    network: Any = lively(SpikingJelly(mode, "IFNode", v_reset=None, norm=False), 3)
    # Without the pool, whose means are not spikes.
    network.net[2], network.net[4] = nn.Identity(), _wider(network.net[4])
    network.eval().requires_grad_(False)
    x = images(IMAGES)
    found = count(wrap(network, x[:8]), x, batch_size=IMAGES)
    assert found.operations is not None
    macs, synaptic = counters.MACCounter(), counters.SynOpCounter()
    functional.reset_net(network)
    with torch.no_grad(), counters.DispatchCounterMode([macs, synaptic]):
        network(x)
    assert found.operations.effective_acs > 0
    assert synaptic.get_total() / IMAGES == pytest.approx(found.operations.effective_acs)
    # There the static image is convolved at every step, and counts as dense.
    first = found.operations.layers[0]
    assert first.inputs == "analog" and first.passes == 1
    assert macs.get_total() / IMAGES == pytest.approx(4 * first.dense)


def _wider(linear: Any) -> Any:
    from spikingjelly.activation_based import layer

    made = layer.Linear(4 * linear.in_features, linear.out_features, bias=False)
    made.step_mode = linear.step_mode
    return lively(made, 3).requires_grad_(False)


@needs("snntorch")
@quiet
def test_counts_are_those_of_a_loop_by_hand() -> None:
    torch.manual_seed(0)
    network: Any = lively(SnnTorch(), 3).eval().requires_grad_(False)
    nn.utils.prune.random_unstructured(network.fc, "weight", 0.5)
    x = images(IMAGES)
    found = count(wrap(network, x[:8]), x, batch_size=5)
    # Each weight that is not zero meets each spike that enters it, average pools included.
    spikes: list[Tensor] = []
    handle = network.lif1.register_forward_hook(lambda m, a, o: spikes.append(o[0]))
    with torch.no_grad():
        network(x)
    handle.remove()
    entering = torch.stack([network.pool(s).flatten(1) for s in spikes])
    by_hand = ((entering != 0).double() @ (network.fc.weight != 0).double().T).sum()
    assert found.operations is not None
    conv, fc = found.operations.layers
    assert fc.inputs == "pooled" and fc.passes == 5
    assert fc.synaptic == pytest.approx(float(by_hand) / IMAGES)
    assert fc.kept == int((network.fc.weight != 0).sum())
    assert fc.bias_reads == 5 * 10 and conv.bias_reads == 4 * 24 * 24
    # Each output of a convolution without padding meets all 25 pixels.
    with torch.no_grad():
        patches = nn.functional.conv2d((x != 0).double(), torch.ones(1, 1, 5, 5).double())
    assert conv.inputs == "analog" and conv.passes == 1
    assert conv.synaptic == pytest.approx(4 * float(patches.sum()) / IMAGES)
    assert found.layers[0].spikes_per_step == pytest.approx(
        [float(s.double().mean()) for s in spikes]
    )
    assert found.operations.membrane_updates == 5 * (4 * 24 * 24 + 10)


@needs("norse")
@quiet
def test_what_cannot_be_counted_is_told(tmp_path: Path) -> None:
    import norse.torch as norse

    class WithMatmul(Norse):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) @ torch.eye(10)

    class WithRecurrence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.cell = nn.Linear(784, 10), norse.LIFRecurrentCell(10, 10)

        def forward(self, x: Tensor) -> Tensor:
            first, state = self.cell(self.fc(x.flatten(1)))
            second, _ = self.cell(self.fc(x.flatten(1)), state)
            return first + second  # type: ignore[no-any-return]

    torch.manual_seed(0)
    for network in (WithMatmul(), WithRecurrence()):
        wrapped = adapted(lively(network, 6).eval().requires_grad_(False))
        assert isinstance(wrapped, Wrapped)
        check(wrapped, images())
        found = count(wrapped, images())
        assert found.operations is None and found.energy == {}
        assert "multiplies outside of convolutional and linear layers" in found.uncounted
        # The spikes are known all the same.
        assert found.layers and all(sum(layer.spikes_per_step) >= 0 for layer in found.layers)
    data = (images(), torch.arange(8))
    robustsnn.evaluate(WithMatmul(), data, attack="fgsm", output=tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert "(matmul)" in manifest["uncounted"] and not manifest["energy"]
    page = robustsnn.report([tmp_path / "run"], output=tmp_path / "page")
    assert "its operations and energy are not known" in " ".join(Path(page).read_text().split())


@needs("snntorch")
@quiet
def test_a_comparison_with_any_ann_shows_energy(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 576, 10))
    models: dict[str, Any] = {"ann": ann, "snn": lively(SnnTorch(), 3)}
    found = robustsnn.compare(
        models, (images(), torch.arange(8)), attack="fgsm", output=tmp_path / "both"
    )
    joules = {name: found[name].manifest.energy for name in models}
    # 5 x 5 weights for each output of the convolution, 10 for each of its outputs in turn.
    macs = 25 * 4 * 576 + 4 * 576 * 10
    assert joules["ann"]["ann_uj"] == pytest.approx(4.6e-6 * macs)
    assert "snn_input_uj" not in joules["ann"]
    assert joules["snn"]["snn_input_uj"] > 0 and joules["snn"]["compute_fp32_uj"] > 0
    zeros = found["ann"].manifest.counts["synaptic_operations"]
    assert 0 < zeros < macs
    text = " ".join(found.page.read_text().split())
    assert "Compute, exact" in text and "Energy" in text


def test_layers_are_counted_however_they_are_called() -> None:
    class Odd(nn.Module):
        """A keyword, one image at a time, tokens, and half precision in between."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc, self.read = nn.Conv2d(1, 2, 28), nn.Linear(1, 3), nn.Linear(6, 10)

        def forward(self, x: Tensor) -> Tensor:
            found = torch.stack([self.conv(image) for image in x]).flatten(2)
            logits: Tensor = self.read(input=self.fc(found).flatten(1))
            return logits

    found = count(Odd().eval(), images(4))
    # The tokens pass the second layer as a second axis, which is not the time axis of its neurons.
    assert "computes fc several times for an image" in found.uncounted

    class Plain(Odd):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.read(
                input=torch.stack([self.conv(one) for one in x])[:, [0] * 6, 0, 0]
            )
            return logits

    plain = Plain()
    plain.fc = nn.Identity()  # type: ignore[assignment]
    told = count(plain.eval(), images(4))
    assert told.operations is not None
    assert [layer.dense for layer in told.operations.layers] == [2 * 784, 60]


def test_a_layer_that_cannot_be_counted_costs_no_number() -> None:
    class Strange(nn.Linear):
        def forward(self, *images: Any) -> Any:
            return super().forward(images[1].flatten(1)), "a text"

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = Strange(784, 10)

        def forward(self, x: Tensor) -> Any:
            return self.fc("no tensor", x)[0]

    done = robustsnn.evaluate(Net(), (images(), torch.arange(8)), attack="fgsm")
    assert not done.manifest.energy and len(done.results) == 3
    assert "counting them failed (AttributeError" in count(Net().eval(), images()).uncounted


def test_a_network_that_draws_its_steps_by_itself_is_not_taken_for_an_ann() -> None:
    class Own(nn.Module):
        """Neurons that nobody knows."""

        def __init__(self) -> None:
            super().__init__()
            self.fc, self.read = nn.Linear(784, 20), nn.Linear(20, 10)

        def forward(self, x: Tensor) -> Any:
            return sum(self.read((self.fc(x.flatten(1)) > t).float()) for t in range(3))

    found = count(Own().eval(), images())
    assert found.operations is None and found.energy == {}
    assert "computes fc and read several times for an image, and no neurons" in found.uncounted


class Attending(nn.Module):
    """A transformer of one block, by a layer of torch and by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.read = nn.Linear(28, 8), nn.Linear(8, 10)
        self.block = nn.ModuleDict({"torch": nn.MultiheadAttention(8, 2), "hand": ByHand()})
        self.up = nn.ConvTranspose1d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(x[:, 0])
        rows = rows + self.block["torch"](rows, rows, rows, need_weights=False)[0]
        rows = self.up(self.block["hand"](rows).mT).mT
        logits: Tensor = self.read(rows.mean(1))
        return logits


class ByHand(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return torch.softmax(rows @ rows.mT, 2) @ rows


def test_layers_of_an_ann_that_cannot_be_counted_are_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = (images(), torch.arange(8))
    found = robustsnn.evaluate(Attending(), data, attack="fgsm", output=tmp_path / "run")
    said = found.manifest.uncounted
    assert "MultiheadAttention block.torch" in said and "ConvTranspose1d up" in said
    assert "matmul in block.hand" in said and not found.manifest.energy
    text = Path(robustsnn.report([tmp_path / "run"], output=tmp_path / "page")).read_text()
    page = " ".join(text.split())
    assert "its operations and energy are not known" in page and "block.torch" in page


@needs("snntorch")
@quiet
def test_neurons_that_are_left_alone_are_no_ann() -> None:
    torch.manual_seed(0)
    wrapped = adapted(lively(SnnTorch(), 3).eval(), "none")
    found = count(wrapped, images())
    assert found.operations is not None and "ann_uj" not in found.energy
    assert found.energy["snn_input_uj"] > 0 and len(found.layers) == 2
