"""Networks as users hand them over: they are judged as they are, and told what is not reached."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import robustsnn
from robustsnn.data.datasets import load_dataset
from robustsnn.errors import InputError
from robustsnn.evaluation.plan import prepare
from robustsnn.evaluation.request import Request
from robustsnn.foreign.original import compare_with_original
from robustsnn.foreign.wrap import adapted, wrap
from robustsnn.foreign.wrapped import Wrapped
from robustsnn.models.checkpoint import load_model
from robustsnn.models.subject import subject_of
from robustsnn.records.runs import load_runs
from robustsnn.reporting.terminal import comparison_tables
from robustsnn.snn.copying import copy_of
from tests.foreign.networks import (
    Norse,
    Sinabs,
    SnnTorch,
    SpikingJelly,
    forget,
    images,
    lively,
    needs,
    quiet,
    trained,
)

SAMPLES = 16


def variant(name: str, make: Callable[[], nn.Module], package: str) -> Any:
    return pytest.param(quiet(make), id=name, marks=needs(package))


VARIANTS = [
    variant("spikingjelly-multi-step", lambda: SpikingJelly("m"), "spikingjelly"),
    variant("spikingjelly-single-step", lambda: SpikingJelly("s"), "spikingjelly"),
    variant("spikingjelly-reset-inside", lambda: SpikingJelly("m", inside=True), "spikingjelly"),
    variant("spikingjelly-no-norm", lambda: SpikingJelly("s", norm=False), "spikingjelly"),
    variant("snntorch-state-in-forward", lambda: SnnTorch(), "snntorch"),
    variant("snntorch-hidden", lambda: SnnTorch(hidden=True), "snntorch"),
    variant("snntorch-hidden-tutorial", lambda: SnnTorch(hidden=True, reset=False), "snntorch"),
    variant("snntorch-membranes", lambda: SnnTorch(read="membranes"), "snntorch"),
    variant("norse-cells", lambda: Norse(), "norse"),
    variant("norse-layers", lambda: Norse(layers=True), "norse"),
    variant("sinabs-squeezed", lambda: Sinabs(), "sinabs"),
    variant("sinabs-time", lambda: Sinabs("LIF", False, tau_mem=3.0, min_v_mem=-1.0), "sinabs"),
]
#: Flags that say that a network is not what it seems; none of these networks is such a one.
FALSE = {
    "repeatable", "randomised", "alone-as-in-batch", "state-leak", "batch-statistics",
    "neuron-modes", "attack-mode", "zero-gradient", "neurons-not-reached",
}  # fmt: skip


@pytest.mark.parametrize("make", VARIANTS)
def test_predictions_are_those_of_the_library_right_after_a_training_step(
    make: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    network = trained(make())
    data = load_dataset("fashion-mnist", None, samples=SAMPLES)
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    done = robustsnn.evaluate(network, data, attack=["fgsm"], epsilon="4/255")
    said = done.records[done.records["attack"] == "clean"].sort_values("image_id")
    with torch.no_grad():
        expected = []
        for image in data.tensor():
            # The loop of the library, an image at a time: a spike may flip with a batch's shape.
            forget(network)
            expected.append(int(network(image[None].repeat(32, 1, 1, 1)).argmax(1)[0]))
    assert said["prediction"].tolist() == expected
    flags = {flag["flag"] for flag in done.manifest.flags}
    assert flags & FALSE == set(), done.manifest.flags
    found = done.manifest.foreign
    assert found is not None and found["reached"] == 2
    assert "estimators reach 2 of 2 layers" in found["sentence"]
    assert done.manifest.spiking and done.manifest.time_steps in (4, 5, 10)
    assert {row["step"] for row in done.activity.to_dict("records")} == set(
        range(done.manifest.time_steps)
    )
    assert {"ann_uj", "snn_input_uj", "compute_fp32_uj"} <= set(done.manifest.energy)
    # The user's own network is as it was, to the last state that is saved.
    forget(network)
    now = network.state_dict()
    assert all(torch.equal(kept[n], now[n]) for n in kept if not n.endswith("v_mem"))


@needs("snntorch")
@quiet
def test_a_network_keeps_its_state_and_its_place_in_the_list_of_the_library() -> None:
    import snntorch

    network = trained(SnnTorch(hidden=True), 2)
    before = network.get_submodule("lif1").mem
    listed = snntorch.SpikingNeuron.instances
    count = len(listed)
    robustsnn.evaluate(network, (images(4), torch.arange(4)), attack=["fgsm"])
    assert network.get_submodule("lif1").mem is before
    assert snntorch.SpikingNeuron.instances is listed and len(listed) == count


@needs("snntorch")
@quiet
def test_copies_are_reset_although_the_library_does_not_know_them() -> None:
    """`utils.reset` walks a list of the process, which copies are not in: 21 % clean for 80 %."""
    network = trained(SnnTorch(hidden=True), 5)
    wrapped = copy_of(wrap(network))
    x = images()
    with torch.no_grad():
        first = wrapped(x)
        assert torch.equal(wrapped(x), first)
        forget(network)
        assert torch.equal(network(x), first)


@needs("sinabs")
@quiet
def test_copies_of_sinabs_stay_in_evaluation_mode() -> None:
    wrapped = wrap(Sinabs().eval())
    assert all(not module.training for module in copy_of(wrapped).modules())
    other = copy.deepcopy(wrapped)
    assert other.inner.one is not wrapped.inner.one
    assert other.reach is wrapped.reach


@needs("snntorch")
@quiet
def test_a_copy_that_says_something_else_is_refused() -> None:
    torch.manual_seed(0)
    # A network that never spikes would say the same whatever its weights are.
    network = lively(SnnTorch(), 3).eval()
    wrapped = adapted(network)
    copied = copy_of(wrapped)
    assert isinstance(copied, Wrapped)
    nn.init.zeros_(network.get_parameter("fc.weight"))
    with pytest.raises(InputError, match="says something else than the network itself"):
        compare_with_original(copied, images())


# --- what is reached, and what is not ------------------------------------------------------------


@needs("snntorch")
@quiet
def test_a_subclass_with_other_dynamics_keeps_the_gradient_of_its_library() -> None:
    import snntorch

    class Renamed(snntorch.Leaky):  # type: ignore[misc]
        pass

    class Doubled(snntorch.Leaky):  # type: ignore[misc]
        def _base_state_function(self, input_: Tensor) -> Tensor:
            found: Tensor = super()._base_state_function(2 * input_)
            return found

    torch.manual_seed(0)
    assert wrap(lively(SnnTorch(kind=Renamed), 3), images()).reach.complete
    wrapped = wrap(lively(SnnTorch(kind=Doubled), 3), images())
    assert not wrapped.reach.reached and not wrapped.spiking_layers()
    assert "are not those of the dynamics known of its kind" in wrapped.reach.caution


@needs("spikingjelly")
@quiet
def test_a_changed_attribute_is_read_as_it_is() -> None:
    torch.manual_seed(0)
    network = lively(SpikingJelly("s"), 3).eval()
    neuron: Any = network.get_submodule("net.2")
    neuron.v_threshold, neuron.tau, neuron.v_reset = 0.4, 5.0, None
    wrapped = wrap(network, images())
    assert wrapped.reach.complete
    assert wrapped.reach.layers["net.2"].leak == "0.8"
    assert float(wrapped.spiking_layers()["net.2"].threshold) == pytest.approx(0.4)


@needs("snntorch")
@quiet
def test_unknown_neurons_are_cautioned_and_never_level_a() -> None:
    import snntorch

    class Mixed(SnnTorch):
        def __init__(self) -> None:
            super().__init__()
            self.lif2 = snntorch.Alpha(alpha=0.9, beta=0.8)

        def forward(self, x: Tensor) -> Tensor:
            mem, found = self.lif1.reset_mem(), []
            states = self.lif2.reset_mem()
            for _ in range(self.steps):
                spikes, mem = self.lif1(self.conv(x), mem)
                last, *states = self.lif2(self.fc(self.pool(spikes).flatten(1)), *states)
                found.append(last)
            return torch.stack(found).sum(0)

    torch.manual_seed(0)
    network = lively(Mixed(), 3)
    done = robustsnn.evaluate(network, (images(), torch.zeros(8).long()), attack=["fgsm"])
    (flag,) = [f for f in done.manifest.flags if f["flag"] == "neurons-not-reached"]
    assert flag["severity"] == "caution"
    assert "1 of 2 layers" in flag["sentence"] and "Alpha" in flag["sentence"]
    assert done.manifest.level != "A"


@needs("snntorch")
@quiet
def test_recurrence_makes_rules_unavailable() -> None:
    import snntorch

    class Feedback(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.back = nn.Linear(784, 20), nn.Linear(20, 10), nn.Linear(10, 20)
            self.one, self.two = snntorch.Leaky(beta=0.9), snntorch.Leaky(beta=0.9)

        def forward(self, x: Tensor) -> Tensor:
            a, b, last, total = self.one.reset_mem(), self.two.reset_mem(), None, x.new_zeros(1)
            for _ in range(4):
                current = self.fc1(x.flatten(1))
                if last is not None:
                    current = current + self.back(last)
                spikes, a = self.one(current, a)
                last, b = self.two(self.fc2(spikes), b)
                total = total + last
            return total

    torch.manual_seed(0)
    wrapped = wrap(lively(Feedback(), 3), images())
    assert not wrapped.reach.complete
    assert "a layer feeds one that runs before it" in wrapped.reach.caution


@needs("norse")
@quiet
def test_one_cell_may_run_several_layers() -> None:
    import norse.torch as norse

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.cell = nn.Linear(784, 20), nn.Linear(20, 10), norse.LIFCell()

        def forward(self, x: Tensor) -> Tensor:
            a = b = None
            total = x.new_zeros(1)
            for _ in range(8):
                spikes, a = self.cell(self.fc1(x.flatten(1)), a)
                last, b = self.cell(self.fc2(spikes), b)
                total = total + last
            return total

    torch.manual_seed(0)
    wrapped = wrap(lively(Shared(), 6), images())
    assert list(wrapped.spiking_layers()) == ["cell", "cell#2"]
    assert wrapped.reach.complete and wrapped.reach.checks["gradients apart"] < 1e-4


@needs("spikingjelly")
@quiet
def test_none_leaves_neurons_alone_with_a_caution_and_another_identity() -> None:
    torch.manual_seed(0)
    network = lively(SpikingJelly("s", "ParametricLIFNode"), 3)
    data = (images(), torch.zeros(8).long())
    alone = robustsnn.evaluate(network, data, attack=["fgsm"], source="none")
    (flag,) = [f for f in alone.manifest.flags if f["flag"] == "neurons-not-reached"]
    assert "--from none" in flag["sentence"]
    assert not alone.manifest.spiking
    reached = robustsnn.evaluate(network, data, attack=["fgsm"])
    assert alone.manifest.identity != reached.manifest.identity
    again = robustsnn.evaluate(network, data, attack=["fgsm"])
    assert again.manifest.identity == reached.manifest.identity
    with pytest.raises(InputError, match="--from snntorch: choose auto or none"):
        robustsnn.evaluate(network, data, attack=["fgsm"], source="snntorch")


@needs("snntorch")
@quiet
def test_what_was_left_out_is_named(tmp_path: Path) -> None:
    """A suite for spiking networks keeps few entries for one whose neurons are left alone."""
    torch.manual_seed(0)
    network = lively(SnnTorch(), 3)
    data = (images(), torch.zeros(8).long())
    robustsnn.evaluate(network, data, "light", source="none", output=tmp_path / "run")
    runs = load_runs([tmp_path / "run"])
    manifest = runs.runs[0].manifest
    assert manifest.left_out
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: PTH123
    console.print(comparison_tables(runs))
    text = " ".join(console.export_text().split())
    assert "estimators reach 0 of 2 layers" in text
    assert all(label in text for label in manifest.left_out)


# --- networks of ours, files, and refusals -------------------------------------------------------


class Outer(nn.Module):
    """Three lines around a network of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.net = load_model("fashion-mnist/vgg5-snn-at")

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x)
        return found


@pytest.mark.slow
def test_a_module_around_a_network_of_ours_is_reached_like_ours() -> None:
    data = load_dataset("fashion-mnist", None, samples=SAMPLES // 2)
    outside = robustsnn.evaluate(Outer(), data, "light", batch_size=8)
    inside = robustsnn.evaluate("fashion-mnist/vgg5-snn-at", data, "light", batch_size=8)
    assert outside.manifest.left_out == inside.manifest.left_out
    assert outside.manifest.foreign is not None
    assert outside.manifest.foreign["reached"] == 4
    assert outside.results["accuracy"].tolist() == inside.results["accuracy"].tolist()
    assert outside.manifest.level == inside.manifest.level


def test_a_network_without_neurons_is_left_as_it_is() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    assert adapted(plain) is plain
    with pytest.raises(InputError, match="holds no neurons"):
        wrap(plain)
    ours = load_model("fashion-mnist/vgg5-snn")
    assert adapted(ours) is ours


@needs("sinabs")
@quiet
def test_states_in_a_file_of_weights_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "factory_with_states.py").write_text(
        "from tests.foreign.networks import Sinabs\n\ndef build():\n    return Sinabs()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    network = trained(Sinabs(), 3)
    state = {n: v.detach().clone() for n, v in network.state_dict().items()}
    assert state["one.v_mem"].numel() > 0
    save_file(state, tmp_path / "weights.safetensors")
    loaded = load_model("factory_with_states:build", tmp_path / "weights.safetensors")
    forget(network)
    with torch.no_grad():
        assert torch.equal(loaded(images()), network(images()))


def test_a_graph_of_nir_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "network.nir"
    path.write_bytes(b"")
    with pytest.raises(InputError, match="went through NIR is one for another network"):
        robustsnn.evaluate(str(path), "fashion-mnist", attack=["fgsm"])
    with pytest.raises(InputError, match="went through NIR is one for another network"):
        load_model("module:build", path)


@needs("snntorch")
@quiet
def test_a_copy_of_the_plan_is_checked_once() -> None:
    network = lively(SnnTorch(), 3)
    plan = prepare(Request.of(network, (images(), torch.zeros(8).long()), attack=["fgsm"]))
    first, second = plan.subject.load(), plan.subject.load()
    assert isinstance(first, Wrapped) and isinstance(second, Wrapped)
    assert first.reach is second.reach and first.reach.checked
    assert first.inner is not second.inner is not network
    assert subject_of(network, adapt=adapted).identity == plan.subject.identity


@needs("spikingjelly")
@quiet
def test_what_it_returns_has_to_be_logits() -> None:
    class Spikes(SpikingJelly):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1))  # type: ignore[no-any-return]

    with pytest.raises(InputError, match=r"Spikes returns \[4, 8, 10\], not logits"):
        wrap(Spikes("m").eval(), images())

    class Counts(SpikingJelly):
        def forward(self, x: Tensor) -> Tensor:
            return (4 * super().forward(x)).long()

    with pytest.raises(InputError, match=r"Counts returns \[8, 10\] of type int64, not logits"):
        wrap(Counts().eval(), images())
