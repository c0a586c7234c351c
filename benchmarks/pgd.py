"""A whole PGD evaluation, by this package and by torchattacks on the network in SpikingJelly."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders.base import ModuleContender
from benchmarks.contenders.spikingjelly import SpikingJellyNetwork
from benchmarks.equality import GRADIENT_TOLERANCE
from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.data.datasets import load_dataset
from robustsnn.errors import InputError
from robustsnn.estimators.bptt import Bptt
from robustsnn.evaluation.batch import TOGETHER
from robustsnn.models.checkpoint import load_model, read_checkpoint
from robustsnn.models.scoring import judge, score
from robustsnn.models.zoo import zoo_names
from robustsnn.snn.network import Network

STEPS = 50
#: Sizes to try. The first is taken at which at most 8 % of some images survive, so that under a
#: tenth of all images do.
EPSILONS = ("8/255", "12/255", "16/255", "24/255", "32/255", "48/255")
#: The largest robust accuracy that the evaluation should end with.
MOST_ROBUST = 0.10
#: Models to take by default, in this order.
PREFERRED = ("cifar10/vgg5-snn", "fashion-mnist/vgg5-snn")
#: The number of images in one call of torchattacks, enough to keep its loop over time busy.
PEER_BATCH = 50


def key(model: str, samples: int, epsilon: str | None) -> str:
    """The name of its file, which contains a digest of the weights."""
    digest = read_checkpoint(model).sha256[:8]
    size = (epsilon or "chosen").replace("/", "-")
    return f"pgd-{model.replace('/', '-')}-{digest}-{samples}-{size}"


def default_model(data_root: Path | None) -> str:
    """The first of the preferred models that ships and whose data are there."""
    for name in PREFERRED:
        if name not in zoo_names():
            continue
        try:
            load_dataset(name.partition("/")[0], data_root, samples=1)
        except InputError:
            continue
        return name
    return PREFERRED[-1]


def measure(
    model: str,
    samples: int,
    data_root: Path | None = None,
    epsilon: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The seconds and the robust accuracy of both attacks, with the same judge.

    Both get the same steps, step size and ball. Ours does not attack an image that is wrong when
    clean, stops with an image once it is broken, and proposes the best iterate. Theirs attacks
    every image to the end and proposes the last iterate. Both times include the judge.

    Args:
        model: A zoo name or a checkpoint folder.
        samples: The number of images, taken from the first one on.
        data_root: The folder of the data; None for the data that ship.
        epsilon: The size of the Linf ball; by default the smallest size in `EPSILONS` that at most
            8 % of 200 images survive.
        say: A function that prints progress.

    Raises:
        InputError: The data or the model do not fit, or the two networks disagree.
    """
    data = _data(str(read_checkpoint(model).meta["data"]), data_root, samples)
    images = data.tensor(slice(0, len(data)))
    labels = torch.from_numpy(data.labels)
    ids = data.ids.tolist()
    if epsilon is None:
        epsilon = _epsilon(model, images[:200], labels[:200], ids[:200], say)
    threat = ThreatModel("Linf", epsilon)
    step_size = 2.5 * threat.radius / STEPS
    network = _load(model)
    difference = _check(network, images[:32], labels[:32])

    say(f"  ours: PGD-{STEPS}, {len(images)} images, epsilon {epsilon}")
    start = time.perf_counter()
    proposed, ours_passes = _ours(network, images, labels, ids, threat, step_size)
    ours_accuracy = _judged_accuracy(model, proposed, images, labels, ids, threat)
    ours_seconds = time.perf_counter() - start

    say("  torchattacks on the network in SpikingJelly")
    start = time.perf_counter()
    proposed = _theirs(network, images, labels, threat, step_size)
    their_accuracy = _judged_accuracy(model, proposed, images, labels, ids, threat)
    their_seconds = time.perf_counter() - start
    return {
        "model": model,
        "data": data.name,
        "samples": len(images),
        "epsilon": epsilon,
        "steps": STEPS,
        "clean_accuracy": _judged_accuracy(model, images, images, labels, ids, threat),
        "input_gradient_difference": difference,
        "ours": {
            "seconds": ours_seconds,
            "robust_accuracy": ours_accuracy,
            "gradients_per_image": ours_passes,
        },
        "theirs": {
            "seconds": their_seconds,
            "robust_accuracy": their_accuracy,
            "gradients_per_image": float(STEPS),
        },
    }


def _load(model: str) -> Network:
    network = load_model(model)
    if not isinstance(network, Network) or network.kind != "snn":
        raise InputError(
            f"{model} is not a spiking network of this package: choose another --model."
        )
    return network


def _data(name: str, root: Path | None, samples: int) -> Any:
    try:
        return load_dataset(name, root, samples=samples)
    except InputError:
        if root is None or name != "fashion-mnist":
            raise
        return load_dataset(name, None, samples=samples)


def _ours(
    network: Network,
    images: Tensor,
    labels: Tensor,
    ids: list[int],
    threat: ThreatModel,
    step_size: float,
    steps: int = STEPS,
) -> tuple[Tensor, float]:
    """The proposals, and the mean number of gradients of an image."""
    attack = load_attack(f"pgd:steps={steps},step_size={step_size!r}")
    victim = Victim(network, Bptt(), ids)
    right = judge(victim.logits(images), labels)[0] == labels
    proposed = images.clone()
    chosen = right.nonzero().flatten()
    rng = Rng(0, ids, "benchmark")
    size = max(1, TOGETHER // victim.micro_batch) * victim.micro_batch
    for start in range(0, len(chosen), size):
        some = chosen[start : start + size]
        proposed[some] = attack(
            victim.select(some), images[some], labels[some], threat, rng.select(some)
        )
    return proposed, victim.backward_passes.double().mean().item()


def _theirs(
    network: Network, images: Tensor, labels: Tensor, threat: ThreatModel, step_size: float
) -> Tensor:
    import torchattacks

    module = SpikingJellyNetwork(network, channels_last=True)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    module.train()
    attack = torchattacks.PGD(module, eps=threat.radius, alpha=step_size, steps=STEPS)
    attack.set_model_training_mode(model_training=True)
    torch.manual_seed(0)
    return torch.cat(
        [
            attack(images[start : start + PEER_BATCH], labels[start : start + PEER_BATCH])
            for start in range(0, len(images), PEER_BATCH)
        ]
    )


def _judged_accuracy(
    model: str,
    proposed: Tensor,
    images: Tensor,
    labels: Tensor,
    ids: list[int],
    threat: ThreatModel,
) -> float:
    """The accuracy of a newly loaded network on the proposals, projected if outside the ball."""
    network = _load(model)
    outside = ~threat.admits(proposed, images)
    proposed = proposed.clone()
    proposed[outside] = threat.project(proposed[outside], images[outside])
    predictions, margins = judge(score(network, proposed, ids, 32), labels)
    return ((predictions == labels) & (margins < 0)).double().mean().item()


def _epsilon(
    model: str,
    images: Tensor,
    labels: Tensor,
    ids: list[int],
    say: Callable[[str], None],
) -> str:
    for epsilon in EPSILONS:
        threat = ThreatModel("Linf", epsilon)
        proposed, _ = _ours(_load(model), images, labels, ids, threat, threat.radius / 8, steps=20)
        accuracy = _judged_accuracy(model, proposed, images, labels, ids, threat)
        say(f"  epsilon {epsilon}: {accuracy:.1%} of {len(images)} images survive PGD-20")
        if accuracy <= 0.8 * MOST_ROBUST:
            return epsilon
    return EPSILONS[-1]


def _check(network: Network, images: Tensor, labels: Tensor) -> float:
    """The relative difference of the two networks' input gradients on the median image.

    The sums in a trained network are not exact. On a few images a membrane near the threshold can
    end on the other side, and the gradients differ. On the other images they must agree.

    Raises:
        InputError: The gradients differ on most images.
    """
    ours = Victim(network, Bptt(), range(len(images))).gradient(images, labels).gradient
    peer = ModuleContender("spikingjelly", SpikingJellyNetwork(network, channels_last=True))
    peer.prepare("input-gradient")
    theirs = peer.gradient(images, labels)
    size = ours.flatten(1).abs().amax(1)
    moving = size > 0
    if not moving.any():
        raise InputError("the network's input gradients are all zero: nothing to attack.")
    difference = (ours - theirs).flatten(1).abs().amax(1)[moving] / size[moving]
    found = difference.median().item()
    if found > GRADIENT_TOLERANCE:
        raise InputError(
            f"the network in SpikingJelly differs: input gradients by {found:.2g} of the largest."
        )
    return found
