"""HIRE-SNN: noise that is crafted between periods of the time steps, without extra passes.

The T time steps are split into N periods of T/N steps. The first period sees the clean image;
after each period, the gradient at its input crafts the noise of the next one. Every period ends
in an update of weights, thresholds and leaks. Source: Kundu et al., HIRE-SNN, ICCV 2021, figure
6b; the training code is unpublished, and what the paper leaves open is a setting here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsnn.common.epsilon import parse_epsilon
from robustsnn.snn.network import Network, State
from robustsnn.training.recipe import Hire
from robustsnn.training.step import BatchOutcome, optimizer_step, outcome


def hire_update(
    network: Network,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    settings: Hire,
) -> BatchOutcome:
    """N optimizer steps on one batch: clean in the first period, perturbed in the later ones.

    With `order="free"` the noise comes from the gradient of the pass that trained the period;
    with `"updated"` it comes from a second pass with the new weights, over the same period from
    the same initial membranes (with a dropout mask that is drawn anew). With `carry="reset"`
    every period starts from zero membranes; with `"detach"` the hidden membranes carry over, cut
    from the graph, while the read-out starts again. With another `noise` than `"crafted"` the
    update is a control: the same periods and updates, without noise or with Gaussian noise.

    Args:
        network: An SNN in training mode, with a number of time steps that the periods divide.
        optimizer: The optimizer of its weights, thresholds and leaks.
        images: Images `[batch, channel, height, width]`, in pixel units of [0, 1].
        labels: True classes, int64 `[batch]`.
        settings: Number of periods; kind, step and bound of the noise; order and carry.

    Returns:
        The loss and the accuracy of the first, clean period.

    Raises:
        InputError: The loss is not finite.
    """
    steps = network.time_steps // settings.periods
    size, bound = parse_epsilon(settings.step), parse_epsilon(settings.bound)
    noise = torch.zeros_like(images)
    state: State | None = None
    first: BatchOutcome | None = None
    for period in range(settings.periods):
        last = period == settings.periods - 1
        noise.requires_grad_(not last)
        shown = noise if period == 0 else _shown(noise, settings.noise)
        logits, final = network.run((images + shown).clamp(0, 1), steps=steps, state=state)
        loss = F.cross_entropy(logits, labels)
        optimizer_step(network, optimizer, loss)
        if first is None:
            first = outcome(loss.detach(), logits.detach(), labels)
        if last:
            break
        gradient = noise.grad
        if settings.order == "updated":
            logits, _ = network.run((images + shown).clamp(0, 1), steps=steps, state=state)
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), noise)
        assert gradient is not None
        noise = (noise.detach() + size * gradient.sign()).clamp(-bound, bound)
        if settings.carry == "detach":
            state = {name: membrane.detach() for name, membrane in final.items()}
    assert first is not None
    return first


def _shown(crafted: Tensor, kind: str) -> Tensor:
    """The noise that a period after the first one sees, `[batch, ...]`.

    Its derivative by the crafted noise is one, whatever it is, so that noise goes on to be crafted
    at what the network saw, and a control has as much noise as the method would have given it.

    Args:
        crafted: The noise that was crafted so far.
        kind: `crafted`; `none`; or `gaussian-linf` or `gaussian-l2`, normal noise that is as large
            in that norm as the crafted noise of the same image.
    """
    if kind == "crafted":
        return crafted
    if kind == "none":
        return crafted - crafted.detach()
    normal = torch.randn_like(crafted)
    order = float("inf") if kind == "gaussian-linf" else 2.0
    sizes = [
        torch.linalg.vector_norm(v.flatten(1), order, dim=1) for v in (crafted.detach(), normal)
    ]
    scale = (sizes[0] / sizes[1]).reshape(-1, *[1] * (crafted.dim() - 1))
    shown: Tensor = scale * normal + (crafted - crafted.detach())
    return shown
