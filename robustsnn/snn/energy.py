"""Estimated energy from counts of operations and named tables of what an operation costs.

Two ways of counting stand next to each other.

- The literature of HIRE-SNN (`energy`): a dense layer costs one multiply-accumulate per synapse, a
  spiking one an accumulate per spike and synapse. A mean of spikes that an average pool leaves
  counts as one spike, every input of a layer as equally busy, and memory is left out.
- Peers (`energies`, on the exact counts of `robustsnn.snn.operations`): a mean of spikes is not a
  spike, so it costs a multiply-accumulate, as in NeuroBench and SpikingJelly; borders and zero
  weights are exact; memory traffic is priced apart from arithmetic.

Neither is a measurement.
Sources: Horowitz, ISSCC 2014 (45 nm); Kundu et al., HIRE-SNN, ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from robustsnn.snn.activity import Activity
from robustsnn.snn.network import Network
from robustsnn.snn.operations import Operations
from robustsnn.snn.sparsity import densities


@dataclass(frozen=True)
class CostTable:
    """What operations cost in one number format and technology.

    Args:
        name: The name of the table.
        mac_pj: The energy of a multiply-accumulate, in picojoule.
        ac_pj: The energy of an accumulate, in picojoule.
        memory_pj_per_byte: The energy of moving one byte from or to memory, in picojoule.
        width: The size of a weight, bias or membrane in bytes.

    Examples:
        >>> COSTS["fp32"].mac_pj
        4.6
    """

    name: str
    mac_pj: float
    ac_pj: float
    memory_pj_per_byte: float
    width: int


#: 3.12 pJ a bit, the value of the benchmark STEP (Shen et al., NeurIPS 2025), which SpikingJelly
#: 2.0 takes too; in picojoule a byte.
MEMORY_PJ_PER_BYTE = 24.96

#: At 45 nm and 0.9 V, by Horowitz, "Computing's energy problem", ISSCC 2014: the sum of his
#: multiplication and addition for a multiply-accumulate, his addition for an accumulate.
COSTS: Mapping[str, CostTable] = MappingProxyType(
    {
        table.name: table
        for table in (
            # 3.7 + 0.9 pJ.
            CostTable("fp32", 4.6, 0.9, MEMORY_PJ_PER_BYTE, 4),
            # 1.1 + 0.4 pJ.
            CostTable("fp16", 1.5, 0.4, MEMORY_PJ_PER_BYTE, 2),
            # 3.1 + 0.1 pJ; Spike-Thrift (Kundu et al., WACV 2021) counts with it.
            CostTable("int32", 3.2, 0.1, MEMORY_PJ_PER_BYTE, 4),
            # 0.2 + 0.03 pJ.
            CostTable("int8", 0.23, 0.03, MEMORY_PJ_PER_BYTE, 1),
        )
    }
)

MAC_PJ = COSTS["fp32"].mac_pj
AC_PJ = COSTS["fp32"].ac_pj


class Energy(NamedTuple):
    """Energies in microjoule per image, as the literature counts them.

    `ann_uj` counts every synapse of the same architecture once, as a multiply-accumulate.
    `snn_input_uj` counts accumulates from the spikes that enter a layer.
    `snn_same_layer_uj` counts them from the spikes that the layer itself emits, as HIRE-SNN does.
    Weights that are zero cost nothing. Both figures of an SNN are NaN for an ANN.
    """

    ann_uj: float
    snn_input_uj: float
    snn_same_layer_uj: float


def energy_from_counts(macs: Sequence[float], spikes: Sequence[float], analog_first: bool) -> float:
    """The energy of a spiking network, in microjoule per image.

    Args:
        macs: The multiply-accumulates of one dense pass, one number for each layer.
        spikes: The spikes per neuron, over all steps, that drive each layer.
        analog_first: Whether the first layer sees an analog static image, which costs
            multiply-accumulates, once.

    >>> energy_from_counts([1e6, 1e6], [1.0, 0.5], analog_first=True)  # 4.6 + 0.9 / 2
    5.05
    """
    total = 0.0
    for position, (cost, rate) in enumerate(zip(macs, spikes, strict=True)):
        total += MAC_PJ * cost if position == 0 and analog_first else AC_PJ * cost * rate
    return total * 1e-6


def energy(network: Network, activity: Activity) -> Energy:
    """The energy per image, from the activity recorded on real images; `Energy` has the units."""
    density = {layer.name: layer.density for layer in densities(network)}
    macs = [s.macs * density[s.name] for s in activity.synapses]
    ann = MAC_PJ * sum(macs) * 1e-6
    if network.kind == "ann":
        return Energy(ann, float("nan"), float("nan"))
    entering = [sum(s.input_per_step) for s in activity.synapses]
    emitted = {layer.name: sum(layer.spikes_per_step) for layer in activity.layers}
    same = [
        entering[i] if s.feeds is None else emitted[s.feeds]
        for i, s in enumerate(activity.synapses)
    ]
    analog = network.config.encoding != "poisson"
    if network.config.encoding == "quantised":
        # The image is another one at every step, so that the first layer is computed for each.
        macs[0] *= network.time_steps
    later = 0.0
    if network.config.encoding == "single-spike":
        # After the analog image of the first step, the first layer sees spikes.
        later = AC_PJ * macs[0] * sum(activity.synapses[0].input_per_step[1:]) * 1e-6
    return Energy(
        ann,
        energy_from_counts(macs, entering, analog) + later,
        energy_from_counts(macs, same, analog) + later,
    )


class Traffic(NamedTuple):
    """The numbers that are moved between memory and arithmetic for one image.

    A weight is read once for each synaptic operation that uses it, a bias once for each output that
    it is added to, and a membrane is read and written once for each neuron and step. Images,
    spikes, addresses and caches are not counted.
    Source: the convention of `SimpleEnergyProfiler` of SpikingJelly 2.0.
    """

    weight_reads: float
    bias_reads: float
    state_reads: float
    state_writes: float

    @classmethod
    def of(cls, operations: Operations) -> Traffic:
        """The traffic that goes with some operations.

        Examples:
            >>> Traffic.of(Operations(1, (), 80.0, 0.9, 0)).total
            160.0
        """
        updates = operations.membrane_updates
        return cls(operations.synaptic_operations, operations.bias_reads, updates, updates)

    @property
    def total(self) -> float:
        """All numbers that are moved."""
        return sum(self)


class Cost(NamedTuple):
    """The energy of one image in microjoule, arithmetic and memory apart."""

    compute_uj: float
    memory_uj: float


def cost(operations: Operations, table: CostTable, pooled_as_spikes: bool = False) -> Cost:
    """The energy of one image.

    Args:
        operations: The operations of the network per image.
        table: What they cost.
        pooled_as_spikes: Whether a mean of spikes costs one accumulate, as in the literature, and
            not one multiply-accumulate, as in NeuroBench. A pool that adds its four spikes one by
            one lies between these two.

    Examples:
        >>> cost(Operations(1, (), 0.0, 0.0, 0), COSTS["fp32"])
        Cost(compute_uj=0.0, memory_uj=0.0)
    """
    macs, acs = operations.effective_macs, operations.effective_acs
    if pooled_as_spikes:
        macs -= operations.pooled_operations
        acs += operations.pooled_operations
    compute = table.mac_pj * macs + table.ac_pj * acs
    memory = table.memory_pj_per_byte * table.width * Traffic.of(operations).total
    return Cost(compute * 1e-6, memory * 1e-6)


def energies(operations: Operations) -> dict[str, float]:
    """The energies of one image by every table of `COSTS`, in microjoule, by name.

    `compute_fp32_uj` and `memory_fp32_uj` are those of the table `fp32`, and so on;
    `compute_fp32_pooled_as_spikes_uj` is the first of them in the literature's counting of pools.

    Examples:
        >>> list(energies(Operations(1, (), 0.0, 0.0, 0)))[:2]
        ['compute_fp32_uj', 'memory_fp32_uj']
    """
    found: dict[str, float] = {}
    for name, table in COSTS.items():
        for part, value in cost(operations, table)._asdict().items():
            found[f"{part.removesuffix('_uj')}_{name}_uj"] = value
    literature = cost(operations, COSTS["fp32"], pooled_as_spikes=True)
    found["compute_fp32_pooled_as_spikes_uj"] = literature.compute_uj
    return found
