"""Our counts next to those of SpikingJelly and NeuroBench on the same networks and images.

Where two conventions differ, the number of the peer is worked out from ours and the difference, so
that each difference is known exactly. `docs/energy.md` says the same in words.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

import robustsnn
from robustsnn.data.datasets import load_dataset
from robustsnn.snn.activity import record_activity
from robustsnn.snn.energy import COSTS, Traffic, cost
from robustsnn.snn.network import Network
from robustsnn.snn.neuron import KERNEL_VARIABLE, LIFOutput
from robustsnn.snn.operations import Operations, count_operations

IMAGES = 16
WITHIN = 0.01


@pytest.fixture(scope="module", params=["fashion-mnist/vgg5-snn", "fashion-mnist/vgg5-ann"])
def zoo(request) -> tuple[Network, torch.Tensor, Operations, dict[str, int]]:
    """A network, its images, our counts, and the dense operations with borders by layer."""
    made = robustsnn.load_model(request.param)
    assert isinstance(made, Network)
    made.eval()
    some = load_dataset("fashion-mnist", None, samples=IMAGES).tensor(slice(0, IMAGES))
    bordered = {s.name: s.macs for s in record_activity(made, some).synapses}
    return made, some, count_operations(made, some), bordered


def spikingjelly_macs(found: Operations, bordered: dict[str, int], analog_passes: int = 1) -> float:
    """The multiply-accumulates as SpikingJelly counts them.

    A layer whose input is not binary is dense there: inputs that are zero and the zeros around a
    padded image count too. A static image is convolved at every step, if a network repeats it.
    """
    return sum(
        bordered[layer.name] * (analog_passes if layer.inputs == "analog" else layer.passes)
        for layer in found.layers
        if layer.inputs != "spikes"
    )


def test_operations_are_those_of_spikingjelly(zoo, monkeypatch):
    counters = pytest.importorskip("spikingjelly.activation_based.op_counter")
    made, some, found, bordered = zoo
    # The compiled kernel computes pools and neurons where no operation is dispatched.
    monkeypatch.setenv(KERNEL_VARIABLE, "reference")
    macs, acs, synaptic = counters.MACCounter(), counters.ACCounter(), counters.SynOpCounter()
    with torch.no_grad(), counters.DispatchCounterMode([macs, acs, synaptic]):
        made(some)
    # A SynOp there is one whose input is a spike: our accumulates.
    assert synaptic.get_total() / IMAGES == pytest.approx(found.effective_acs, rel=WITHIN)
    assert macs.get_total() / IMAGES == pytest.approx(
        spikingjelly_macs(found, bordered), rel=WITHIN
    )
    # An AC there may also stand in a pool, a neuron or the read-out, which are not synapses.
    layers = {name for name in acs.get_counts() if name.removeprefix("Network.") in bordered}
    of_synapses = sum(sum(acs.get_counts()[name].values()) for name in layers)
    assert of_synapses / IMAGES == pytest.approx(found.effective_acs, rel=WITHIN)
    assert acs.get_total() / IMAGES > found.effective_acs


def test_energy_is_that_of_spikingjelly(zoo):
    counters = pytest.importorskip("spikingjelly.activation_based.op_counter")
    made, some, found, bordered = zoo
    if made.kind == "ann":
        pytest.skip("an ANN has no neurons of SpikingJelly")
    from benchmarks.contenders.spikingjelly import SpikingJellyNetwork

    theirs = SpikingJellyNetwork(made).eval()
    torch.testing.assert_close(theirs(some), made(some))
    profiler = counters.SimpleEnergyProfiler()
    profiler.bind_model(theirs)
    with profiler, torch.no_grad():
        theirs(some)
    report = profiler.get_report()
    counts = {name: count / IMAGES for name, count in report.counts.items()}
    macs = spikingjelly_macs(found, bordered, analog_passes=made.time_steps)
    assert counts["mac"] == pytest.approx(macs, rel=WITHIN)
    assert counts["synop"] == pytest.approx(found.effective_acs, rel=WITHIN)
    traffic, width = Traffic.of(found), COSTS["fp32"].width
    assert counts["neuron_state_read_bytes"] == pytest.approx(width * traffic.state_reads)
    assert counts["neuron_state_write_bytes"] == pytest.approx(width * traffic.state_writes)
    assert counts["bias_read_bytes"] == width * traffic.bias_reads == 0
    # There a weight is read once for every operation of a dense layer; we read it where an input
    # that is not zero needs it, and one that is zero never.
    assert counts["weight_read_bytes"] == pytest.approx(
        width * (macs + found.effective_acs), rel=WITHIN
    )
    fp32 = COSTS["fp32"]
    said = report.breakdown_pj
    assert said["mac_pj"] / IMAGES == pytest.approx(fp32.mac_pj * macs, rel=WITHIN)
    memory = fp32.memory_pj_per_byte * counts["memory_access_bytes"]
    assert report.energy_memory_pj / IMAGES == pytest.approx(memory)
    # The same operations at our prices are their compute energy without pools and neurons.
    ours = cost(found, fp32).compute_uj * 1e6 + fp32.mac_pj * (macs - found.effective_macs)
    outside = fp32.ac_pj * (counts["ac"] - counts["synop"])
    assert report.energy_compute_pj / IMAGES - outside == pytest.approx(ours, rel=WITHIN)


class Seen(nn.Module):
    """The outputs of a layer of neurons, as NeuroBench's hook wants them: one tensor."""

    def forward(self, spikes: torch.Tensor) -> torch.Tensor:
        return spikes


@pytest.mark.exhaustive
def test_operations_are_those_of_neurobench(zoo):
    if importlib.util.find_spec("neurobench") is None:
        pytest.skip("neurobench is not installed: `pip install --no-deps neurobench`")
    from neurobench.hooks.neuron import NeuronHook
    from neurobench.metrics.static import ConnectionSparsity, Footprint
    from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
    from neurobench.models import TorchModel

    made, some, found, _ = zoo
    model = TorchModel(made)
    model.register_hooks()
    seen = Seen()
    model.activation_hooks.append(NeuronHook(seen, "spikes"))

    def fires(module: nn.Module, args: object, output: LIFOutput) -> None:
        seen(output.spikes)

    handles = [layer.register_forward_hook(fires) for layer in made.spiking_layers().values()]
    with torch.no_grad():
        model(some)
    said = SynapticOperations()(model, None, (some, None))
    # A pooled input is not spiking there either; all its operations are multiply-accumulates.
    assert said["Effective_MACs"] == pytest.approx(found.effective_macs, rel=WITHIN)
    assert said["Effective_ACs"] == pytest.approx(found.effective_acs, rel=WITHIN)
    assert said["Dense"] == pytest.approx(found.dense, rel=WITHIN)
    assert Footprint()(model) == found.footprint_bytes
    assert ConnectionSparsity()(model) == pytest.approx(found.connection_sparsity, abs=1e-4)
    sparsity = ActivationSparsity()(model, None, (some, None))
    assert sparsity == pytest.approx(found.activation_sparsity, rel=WITHIN)
    for handle in handles:
        handle.remove()
    model.cleanup_hooks()
