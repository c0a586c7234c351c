"""How many images fit into memory: in a forward pass, and in an estimator that remembers them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustsnn.adversary.victim import Victim
from robustsnn.common.users_code import out_of_memory
from robustsnn.diagnosis.finding import Finding
from robustsnn.diagnosis.preflight import IMAGES, preflight
from robustsnn.errors import InputError
from robustsnn.estimators.make import make_estimator
from robustsnn.evaluation.batch import Batch, Networks, inputs_of
from robustsnn.evaluation.inputs import check_classes
from robustsnn.evaluation.plan import Plan, Task, follows_gradient
from robustsnn.foreign.check import IMAGES as CHECKED
from robustsnn.foreign.elsewhere import spiking_elsewhere
from robustsnn.foreign.reach import Reach
from robustsnn.foreign.wrapped import Wrapped
from robustsnn.models.batching import padding
from robustsnn.models.scoring import finite_logits, score
from robustsnn.snn.backward_rule import spiking_layers

#: The bytes that an estimator that remembers every neuron may hold in one call of an attack.
MEMORY_BYTES = 2**30


def calls(
    task: Task, networks: Networks, batch: Batch, where: Tensor, micro_batch: int
) -> Sequence[Tensor]:
    """The positions to attack, split into as many calls of the attack as memory requires.

    Args:
        task: The task.
        networks: Its networks.
        batch: The images.
        where: The positions of those to attack.
        micro_batch: The number of images in a forward pass.
    """
    crafting = networks.attacked if networks.substitute is None else networks.substitute
    if not (follows_gradient(task.attack) and make_estimator(task.estimator, crafting).remembers):
        return [where]
    one = membranes(crafting, batch.images[:1], batch.ids[:1])
    fitting = max(1, MEMORY_BYTES // max(1, 8 * one))
    # Whole micro-batches if possible, so that few of them are padded.
    size = max(fitting // micro_batch * micro_batch, min(fitting, micro_batch))
    return [where[i : i + size] for i in range(0, len(where), size)]


@torch.no_grad()
def membranes(network: nn.Module, image: Tensor, ids: Sequence[int] = (0,)) -> int:
    """The number of neurons times time steps of a network's spiking layers; 0 without any.

    Args:
        network: The network, in evaluation mode.
        image: One image, `[1, channel, height, width]`.
        ids: The id of that image.
    """
    found = 0

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal found
        spikes, *membrane = output if isinstance(output, tuple) else (output,)
        # Spikes may have been pooled already; the membrane never is.
        found += len(spikes) * membrane[0].numel() if membrane else spikes.numel()

    layers = spiking_layers(network).values()
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        score(network, image, ids, 1)
    finally:
        for handle in handles:
            handle.remove()
    # A pass of one image is padded with a copy of it, which must not count.
    return found // (1 + padding(1, 1))


def fit_to_memory(plan: Plan) -> tuple[Plan, list[Finding]]:
    """The plan at a batch size that fits into memory, and the findings of the preflight.

    The batch size is halved until the preflight fits.

    Raises:
        InputError: Not even a single image fits, or the network cannot be evaluated.
    """
    while True:
        try:
            return plan, preflight_of(plan)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if plan.batch_size == 1:
                raise InputError(
                    f"memory ran out on a single image of {plan.subject.name}: "
                    "recompute long sequences in segments with --recompute, such as 16."
                ) from error
        plan = dataclasses.replace(plan, batch_size=plan.batch_size // 2)


def preflight_of(plan: Plan) -> list[Finding]:
    """The findings of the preflight of a plan at its batch size.

    Raises:
        InputError: The network cannot be evaluated.
    """
    images, labels, ids = inputs_of(plan, slice(0, min(IMAGES, len(plan.images))))
    network = plan.subject.load()
    logits = finite_logits(network, images, ids, plan.batch_size, plan.seed)
    check_classes(logits.shape[1], plan.subject.name, plan.images)
    if plan.substitute is not None:
        # Attacks craft on the substitute at the same batch size, so it has to fit too.
        second = plan.substitute.load()
        estimator = make_estimator("bptt", second)
        Victim(second, estimator, ids, plan.batch_size, plan.seed).gradient(images, labels)
    found = preflight(network, images, labels, ids, plan.batch_size, plan.seed)
    reach = network.reach if isinstance(network, Wrapped) else None
    others = spiking_elsewhere(network, images[: min(CHECKED, plan.batch_size)])
    if reach is not None or others:
        found.append(reached(reach, others))
    if not plan.subject.weighted:
        found.append(unnamed(plan.subject.name))
    return found


def unnamed(name: str) -> Finding:
    """That nothing names the weights of a factory's network, as a check.

    It leaves the level as it is, since many factories read their weights themselves.

    Args:
        name: The name of the model.
    """
    return Finding(
        "D1",
        "weights-not-named",
        True,
        "caution",
        f"No file of weights was named with {name}: unless the factory reads one itself, its "
        f"weights are random. Write {name}@WEIGHTS or --weights.",
        float("nan"),
    )


def reached(reach: Reach | None, others: Sequence[str] = ()) -> Finding:
    """Whether estimators reach every layer of neurons, as a check.

    Args:
        reach: What was found in the network; None if no layer was.
        others: What spikes in a pass without being one of those layers, in words.
    """
    parts = []
    if reach is not None:
        parts.append(reach.caution or f"{reach.sentence}.")
    if others:
        parts.append(
            "Estimators do not reach what spikes outside of the layers that were found "
            f"({'; '.join(others)}); it keeps the gradient of its own code."
        )
    share = len(reach.reached) / max(len(reach.layers), 1) if reach is not None else 0.0
    missed = bool(others) or (reach is not None and not reach.complete)
    return Finding("D1", "neurons-not-reached", missed, "caution", " ".join(parts), share)
