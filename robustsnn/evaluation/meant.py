"""Which entries of a suite are meant for a network: its kind, its classes, whether it draws."""

from __future__ import annotations

from torch import nn

from robustsnn.data.images import Images
from robustsnn.evaluation.entry import Entry
from robustsnn.evaluation.suites import Suite
from robustsnn.models.scoring import finite_logits
from robustsnn.snn.backward_rule import spiking_layers


def entries_for(suite: Suite, network: nn.Module, images: Images, device: str) -> list[Entry]:
    """The entries of a suite that are meant for such a network.

    Args:
        suite: The suite.
        network: The network.
        images: The images, one of which tells the number of classes if nothing else does.
        device: The device that computes.

    Raises:
        InputError: The network does not take the images.
    """
    kind, classes = kind_of(network), max(entry.least_classes for entry in suite.entries)
    if classes > 2:
        classes = classes_of(network, images, device)
    stochastic = bool(getattr(network, "stochastic", False))
    return [entry for entry in suite.entries if entry.runs_on(kind, classes, stochastic)]


def kind_of(network: nn.Module) -> str:
    """`snn` if a network names spiking layers, `ann` if not."""
    return "snn" if spiking_layers(network) else "ann"


def classes_of(network: nn.Module, images: Images, device: str) -> int:
    """The number of classes of a network.

    Raises:
        InputError: The network does not take the images.
    """
    known = getattr(network, "classes", None) or len(images.class_names)
    if known:
        return int(known)
    one = images.tensor(slice(0, 1)).to(device)
    return finite_logits(network, one, images.ids[:1].tolist(), 1, 0).shape[1]
