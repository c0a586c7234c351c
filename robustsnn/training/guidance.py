"""Attention-guided training: a trained network shows a sparse one where to look.

An attention map is the mean square of a layer's activations over its channels, one number a
position. The student's maps are drawn to the teacher's, and its logits too if asked; the gradients
that this adds are also those that sparse learning grows weights by. Sources: Kundu et al.,
Spike-Thrift, WACV 2021; the loss is that of Zagoruyko and Komodakis, ICLR 2017, equation 2, since
weights and layers of Spike-Thrift are not published.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsnn.snn.network import Network
from robustsnn.training.recipe import Guidance
from robustsnn.training.step import BatchOutcome, optimizer_step, outcome

#: Avoids 0 / 0 where a layer is silent.
TINY = 1e-12


def guided_update(
    network: Network,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    settings: Guidance,
    teacher: Network,
) -> BatchOutcome:
    """One optimizer step on the cross-entropy and on the distance from the teacher.

    The loss is `(1 - a) CE + a t^2 KL(teacher || student) + b / 2 sum_j D_j`, with a the
    distillation, t the temperature, b the attention, and `D_j` the mean over images of the squared
    distance of the normalised attention maps of layer j.

    Args:
        network: The ANN that learns, in training mode.
        optimizer: The optimizer of its weights.
        images: Images `[batch, channel, height, width]`, in pixel units of [0, 1].
        labels: True classes, int64 `[batch]`.
        settings: The weights of the terms.
        teacher: A trained ANN of the same architecture, in evaluation mode.

    Returns:
        The cross-entropy and the accuracy before the step.

    Raises:
        InputError: The loss is not finite.
    """
    with torch.no_grad(), attention_maps(teacher) as theirs:
        taught = teacher(images)
    with attention_maps(network) as ours:
        logits = network(images)
    plain = F.cross_entropy(logits, labels)
    loss = (1 - settings.distillation) * plain
    if settings.distillation:
        loss = loss + settings.distillation * distilled(logits, taught, settings.temperature)
    for name, map_ in ours.items():
        loss = loss + settings.attention / 2 * distance(map_, theirs[name])
    optimizer_step(network, optimizer, loss)
    return outcome(plain.detach(), logits.detach(), labels)


def guided_layers(network: Network) -> dict[str, nn.Module]:
    """The layers whose maps are compared: the last one before each pool, and the last of all.

    They are the activations of the convolutional part, by name.
    """
    chosen: dict[str, nn.Module] = {}
    last: tuple[str, nn.Module] | None = None
    for name, module in network.features.named_modules(prefix="features"):
        if isinstance(module, nn.ReLU):
            last = (name, module)
        elif isinstance(module, nn.AvgPool2d) and last is not None:
            chosen[last[0]] = last[1]
    if last is not None:
        chosen[last[0]] = last[1]
    return chosen


@contextmanager
def attention_maps(network: Network) -> Iterator[dict[str, Tensor]]:
    """The normalised attention maps `[batch, position]` of the passes inside, by layer."""
    maps: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            maps[name] = attention(output)

        return keep

    handles = [m.register_forward_hook(hook(n)) for n, m in guided_layers(network).items()]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def attention(activations: Tensor) -> Tensor:
    """The attention map of each image, of length 1 as a vector, `[batch, position]`.

    Args:
        activations: `[batch, channel, height, width]`.

    >>> attention(torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]]))
    tensor([[1., 0.]])
    """
    raw = activations.square().mean(1).flatten(1)
    length: Tensor = raw.norm(dim=1, keepdim=True)
    return raw / (length + TINY)


def distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """The mean over images of the squared distance of two sets of maps `[batch, position]`."""
    return (ours - theirs).square().sum(1).mean()


def distilled(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """`t^2 KL(teacher || student)` at temperature t, the mean over images.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015.
    """
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(taught / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
