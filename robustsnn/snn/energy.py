"""Estimated compute energy, from operation counts at 45 nm.

A dense layer costs one multiply-accumulate per synapse, a spiking one an accumulate per spike and
synapse. Pooling, neurons and memory traffic are not counted, as in the literature.
Source: Horowitz, ISSCC 2014 (32-bit float, 45 nm); Kundu et al., HIRE-SNN, ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from robustsnn.snn.activity import Activity
from robustsnn.snn.network import Network

MAC_PJ = 4.6
AC_PJ = 0.9


class Energy(NamedTuple):
    """Energies in microjoule per image.

    `ann_uj` counts every synapse of the same architecture once, as a multiply-accumulate.
    `snn_input_uj` counts accumulates from the spikes that enter a layer, which is exact.
    `snn_same_layer_uj` counts them from the spikes that the layer itself emits, as HIRE-SNN does.
    Both figures of an SNN are NaN for an ANN.
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
    macs = [float(s.macs) for s in activity.synapses]
    ann = MAC_PJ * sum(macs) * 1e-6
    if network.kind == "ann":
        return Energy(ann, float("nan"), float("nan"))
    entering = [sum(s.input_per_step) for s in activity.synapses]
    emitted = {layer.name: sum(layer.spikes_per_step) for layer in activity.layers}
    same = [
        entering[i] if s.feeds is None else emitted[s.feeds]
        for i, s in enumerate(activity.synapses)
    ]
    analog = network.config.encoding == "direct"
    return Energy(
        ann, energy_from_counts(macs, entering, analog), energy_from_counts(macs, same, analog)
    )
