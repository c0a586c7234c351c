"""HIRE-SNN: crafted noise between the periods of the time steps, at no extra passes.

The T steps are split into N periods of T/N. The first period sees the clean image; after each,
the gradient at its input crafts the noise of the next. Every period ends in an update of
weights, thresholds and leaks. Source: Kundu et al., HIRE-SNN, ICCV 2021, figure 6b; the
training code is unpublished, and what the paper leaves open is a setting here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsnn.adversary.threat import parse_epsilon
from robustsnn.snn.network import Network, State
from robustsnn.training.recipe import Hire
from robustsnn.training.step import Progress, progress, step


def hire_update(
    network: Network,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    settings: Hire,
) -> Progress:
    """N optimizer steps on one batch: clean in the first period, perturbed in the later ones.

    With `order="free"` the noise comes from the gradient of the pass that trained the period;
    with `"updated"` from a second pass with the new weights, over the same period from the same
    initial membranes (its dropout mask is drawn afresh). With `carry="reset"` every period starts
    from zero membranes; with `"detach"` hidden membranes carry over, cut from the graph, while
    the read-out restarts.

    Args:
        network: In training mode; an SNN whose time steps the periods divide.
        optimizer: Over its weights, thresholds and leaks.
        images: `[batch, channel, height, width]`, pixel units of [0, 1].
        labels: int64 `[batch]`.
        settings: Periods, noise step and bound, order, carry.

    Returns:
        Loss and accuracy of the first, clean period.
    """
    steps = network.time_steps // settings.periods
    size, bound = parse_epsilon(settings.step), parse_epsilon(settings.bound)
    noise = torch.zeros_like(images)
    state: State | None = None
    first: Progress | None = None
    for period in range(settings.periods):
        last = period == settings.periods - 1
        noise.requires_grad_(not last)
        logits, final = network.run((images + noise).clamp(0, 1), steps=steps, state=state)
        loss = F.cross_entropy(logits, labels)
        step(network, optimizer, loss)
        if first is None:
            first = progress(loss.detach(), logits.detach(), labels)
        if last:
            break
        gradient = noise.grad
        if settings.order == "updated":
            logits, _ = network.run((images + noise).clamp(0, 1), steps=steps, state=state)
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), noise)
        assert gradient is not None
        noise = (noise.detach() + size * gradient.sign()).clamp(-bound, bound)
        if settings.carry == "detach":
            state = {name: membrane.detach() for name, membrane in final.items()}
    assert first is not None
    return first
