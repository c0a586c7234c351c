"""Spikes of a network, and what they cost."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from robustsnn.evaluation.batch import Networks, inputs_of
from robustsnn.evaluation.plan import Plan
from robustsnn.foreign.activity import count as count_activity
from robustsnn.records.schema import ACTIVITY
from robustsnn.snn.activity import record_activity
from robustsnn.snn.energy import energies, energy
from robustsnn.snn.network import Network
from robustsnn.snn.operations import tallied

#: The number of images whose spikes are counted.
IMAGES = 1000


def counted_images(plan: Plan) -> int:
    """The number of images whose spikes are counted."""
    return min(IMAGES, len(plan.images))


def activity_of(plan: Plan) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The same as `activity`, of the first images of a plan."""
    images, _, ids = inputs_of(plan, slice(0, counted_images(plan)))
    network = plan.subject.load()
    return activity(plan, Networks(network, None, network), images, ids)


def activity(
    plan: Plan, networks: Networks, images: Tensor, ids: list[int]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Spikes per neuron by layer and step, and the fields of the manifest about what they cost.

    Args:
        plan: The plan that is carried out.
        networks: The networks of the cell; spikes are counted in a new copy.
        images: The images whose spikes are counted, `[batch, channel, height, width]`.
        ids: The id of each image.
    """
    del networks
    network = plan.subject.load()
    if not isinstance(network, Network):
        return _foreign(plan, network, images, ids)
    keys = torch.tensor(ids, dtype=torch.int64) if network.stochastic else None
    with tallied(network) as tally:
        recorded = record_activity(network, images, keys, batch_size=plan.batch_size)
    rows = [
        (layer.name, layer.neurons, step, spikes)
        for layer in recorded.layers
        for step, spikes in enumerate(layer.spikes_per_step)
    ]
    operations = tally.operations(network)
    joules = {**energy(network, recorded)._asdict(), **energies(operations)}
    measured = {
        "energy": {name: value for name, value in joules.items() if value == value},
        "counts": operations.counts(),
        "operations": [layer._asdict() for layer in operations.layers],
        "activity_images": len(ids),
    }
    return pd.DataFrame(rows, columns=list(ACTIVITY)), measured


def _foreign(
    plan: Plan, network: nn.Module, images: Tensor, ids: list[int]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The same for a network that is not ours; no energy where it cannot be counted."""
    stochastic = bool(getattr(network, "stochastic", False))
    keys = torch.tensor(ids, dtype=torch.int64) if stochastic else None
    found = count_activity(network, images, keys, batch_size=plan.batch_size)
    rows = [
        (layer.name, layer.neurons, step, spikes)
        for layer in found.layers
        for step, spikes in enumerate(layer.spikes_per_step)
    ]
    measured: dict[str, Any] = {"energy": found.energy, "activity_images": len(ids)}
    if found.operations is not None:
        measured["counts"] = found.operations.counts()
        measured["operations"] = [layer._asdict() for layer in found.operations.layers]
    else:
        measured["uncounted"] = found.uncounted
    return pd.DataFrame(rows, columns=list(ACTIVITY)), measured
