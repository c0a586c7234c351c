"""The traps are traps: a naive attack leaves much of them, a plain attack on the truth does not."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.estimators.make import make_estimator
from robustsnn.snn.network import Network
from tests.traps.networks import (
    EPSILON,
    IMAGES,
    NARROW_WIDTH,
    NORM,
    SUPPORT,
    TRAPS,
    Trap,
    honest,
    trap_images,
)

THREAT = ThreatModel(NORM, EPSILON)
CHUNK = 32
DRAWING = ("poisson", "hidden-draws")
#: Whose truth is the honest network.
BUILT_ON_HONEST = sorted(set(TRAPS) - {*DRAWING, "constant"})


@cache
def trap(name: str) -> Trap:
    return TRAPS[name]()


def fresh(name: str) -> Any:
    """A network that no other test has used."""
    return copy.deepcopy(trap(name).network)


def in_chunks(network: nn.Module, images: Tensor) -> Tensor:
    """Logits, every chunk by a new copy: nothing that a network remembers counts."""
    with torch.no_grad():
        return torch.cat([copy.deepcopy(network)(part) for part in images.split(CHUNK)])


def right(logits: Tensor) -> float:
    """Accuracy on the first images, a tie at the top counted as an error."""
    labels = trap_images()[1][: len(logits)]
    not_less = logits >= logits.gather(1, labels[:, None])
    return float((not_less.sum(1) == 1).double().mean())


def tied(logits: Tensor) -> float:
    top = logits.topk(2, dim=1).values
    return float((top[:, 0] == top[:, 1]).double().mean())


def input_gradient(network: nn.Module, images: Tensor, **options: Any) -> Tensor:
    """Of the summed cross-entropy, by torch alone."""
    labels = trap_images()[1][: len(images)]
    leaf = images.clone().requires_grad_()
    loss = F.cross_entropy(network(leaf, **options), labels, reduction="sum")
    gradient: Tensor = torch.autograd.grad(loss, leaf)[0]
    return gradient


@cache
def made_on_the_truth(steps: int = 12) -> Tensor:
    """Sign steps along the honest network's gradient, by torch alone."""
    images, _ = trap_images()
    network, x = honest(), images.clone()
    for _ in range(steps):
        x = x + THREAT.radius / 4 * input_gradient(network, x).sign()
        x = (images + (x - images).clamp(-THREAT.radius, THREAT.radius)).clamp(0, 1)
    return x


@cache
def made_naively(name: str) -> tuple[Tensor, float]:
    """What PGD proposes that follows the trap's own gradient, and how many were all zero."""
    images, labels = trap_images()
    network, ids = fresh(name), range(IMAGES)
    victim = Victim(network, make_estimator("bptt", network), ids, micro_batch=CHUNK)
    proposals = load_attack("pgd:steps=12")(victim, images, labels, THREAT, Rng(0, ids))
    return proposals, float(victim.zero_grad.sum() / victim.backward_passes.sum())


@pytest.mark.parametrize("name", TRAPS)
def test_is_ready_for_evaluation(name):
    images, labels = trap_images()
    made = trap(name)
    assert made.name == name
    assert made.sentence.endswith(".") and made.expected_flags
    assert not any(p.requires_grad for p in made.network.parameters())
    assert not any(m.training for m in made.network.modules())
    logits = in_chunks(made.network, images)
    assert logits.shape == (IMAGES, 10) and bool(logits.isfinite().all())
    if name == "constant":
        assert right(logits) == float((labels == 3).double().mean())
    else:
        assert right(logits) >= 0.75


@pytest.mark.parametrize("name", sorted(set(BUILT_ON_HONEST) - {"tied", "batch-statistics"}))
def test_classifies_as_the_honest_network(name):
    images, _ = trap_images()
    ours, truth = in_chunks(trap(name).network, images), in_chunks(honest(), images)
    assert torch.equal(ours.argmax(1), truth.argmax(1))


@pytest.mark.parametrize("name", BUILT_ON_HONEST)
def test_looks_more_robust_than_it_is(name):
    made = trap(name)
    left = right(in_chunks(made.network, made_on_the_truth()))
    seems = right(in_chunks(made.network, made_naively(name)[0]))
    assert left <= made.robust_accuracy_at_most
    assert seems >= made.robust_accuracy_at_most + 0.2


def test_attacks_on_the_truth_stay_in_the_ball():
    images, _ = trap_images()
    assert bool(THREAT.admits(made_on_the_truth(), images).all())


@pytest.mark.parametrize("name", ["narrow", "eval-swap", "constant"])
def test_has_no_gradient_at_all(name):
    assert made_naively(name)[1] == 1


@pytest.mark.parametrize("name", ["saturated", "tied"])
def test_has_often_no_gradient(name):
    assert made_naively(name)[1] > 0.2


@pytest.mark.parametrize("name", ["wrong-encoder", "out-of-support", "batch-statistics"])
def test_has_gradients_that_seem_sound(name):
    assert made_naively(name)[1] < 0.05


@pytest.mark.parametrize("name", ["narrow", "out-of-support"])
def test_membranes_lie_outside_the_support(name):
    images, _ = trap_images()
    network: Network = fresh(name)
    inside: dict[str, float] = {}

    def watch(module: Any, args: tuple[Any, ...]) -> None:
        z = torch.stack(list(module.trace(*args[:3]).membranes)) / module.threshold - 1
        inside[str(id(module))] = float((z.abs() < module.surrogate.width).double().mean())

    for layer in network.spiking_layers().values():
        layer.register_forward_pre_hook(watch)
    network(images)
    assert len(inside) == 4
    if name == "narrow":
        assert max(inside.values()) < 2 * NARROW_WIDTH
    else:
        assert all(SUPPORT / 2 < share < 2 * SUPPORT for share in inside.values())


def test_eval_swap_has_gradients_in_training_mode():
    images, _ = trap_images()
    network = fresh("eval-swap")
    network.train()
    few = images[:8]
    assert bool(input_gradient(network, few).flatten(1).any(1).all())
    assert torch.equal(network(few).argmax(1), network.eval()(few).argmax(1))


def test_leaky_state_depends_on_what_came_before():
    images, _ = trap_images()
    network, few = fresh("leaky-state"), images[:8]
    first, second = network(few), network(few)
    assert torch.equal(first, honest()(few))
    assert bool((first != second).any(1).all())
    other = fresh("leaky-state")
    other(images[8:16])
    assert bool((other(few) != second).any(1).all())
    # A batch of another size takes up what is there.
    assert network(images[:3]).shape == (3, 10)


@pytest.mark.slow
def test_poisson_needs_averages_over_draws():
    images, _ = trap_images()
    network: Network = fresh("poisson")
    assert network.stochastic
    draws = iter(range(10**6, 10**9, IMAGES))

    def keys() -> Tensor:
        first = next(draws)
        return torch.arange(first, first + IMAGES)

    def left(proposals: Tensor) -> float:
        with torch.no_grad():
            return sum(right(network(proposals, keys())) for _ in range(8)) / 8

    x = images.clone()
    for _ in range(8):
        gradient = torch.stack([input_gradient(network, x, keys=keys()) for _ in range(4)]).sum(0)
        x = x + THREAT.radius / 4 * gradient.sign()
        x = (images + (x - images).clamp(-THREAT.radius, THREAT.radius)).clamp(0, 1)
    averaged = left(x)
    assert averaged <= trap("poisson").robust_accuracy_at_most
    assert left(made_naively("poisson")[0]) >= averaged + 0.03
    # They fool the one that keeps quiet about its draws as well.
    assert right(fresh("hidden-draws")(x)) <= trap("hidden-draws").robust_accuracy_at_most


def test_hidden_draws_differ_and_are_not_declared():
    images, _ = trap_images()
    network = fresh("hidden-draws")
    assert not getattr(network, "stochastic", False)
    assert bool((network(images[:8]) != network(images[:8])).any(1).all())


def test_wrong_encoder_has_the_gradient_of_another_function():
    images, _ = trap_images()
    network = fresh("wrong-encoder")
    leaf = images[:16].clone().requires_grad_()
    assert torch.equal(network(leaf), honest()(images[:16]))
    one, other = (input_gradient(network, images).flatten(1) for _ in range(2))
    true = input_gradient(honest(), images).flatten(1)
    assert bool((one != other).any(1).all())
    assert float(F.cosine_similarity(one, true).mean()) < 0.3


def test_saturated_hides_from_the_cross_entropy_only():
    images, labels = trap_images()
    network = fresh("saturated")
    logits = network(images)
    correct = logits.argmax(1) == labels
    losses = F.cross_entropy(logits, labels, reduction="none")
    assert float((losses[correct] == 0).double().mean()) > 0.9
    assert not bool(losses[~correct].eq(0).any())
    leaf = images.clone().requires_grad_()
    own = network(leaf).gather(1, labels[:, None]).sum()
    assert bool(torch.autograd.grad(own, leaf)[0].flatten(1).any(1).all())


def test_tied_counts_spikes():
    images, _ = trap_images()
    network: Network = fresh("tied")
    logits = in_chunks(network, images)
    assert set(logits.unique().tolist()) <= set(range(network.time_steps + 1))
    assert tied(logits) > 0.05
    assert tied(in_chunks(honest(), images)) == 0


def test_batch_statistics_tie_images_together():
    images, _ = trap_images()
    network = fresh("batch-statistics").double()
    few = images[:8].double()
    together = network(few)
    alone = torch.cat([network(one) for one in few.split(1)])
    assert bool((together != alone).any(1).all())
    leaf = few.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(leaf)[0].sum(), leaf)
    assert bool(gradient[1:].flatten(1).any(1).all())


def test_constant_is_as_robust_as_it_is_right():
    images, _ = trap_images()
    made = trap("constant")
    clean = right(in_chunks(made.network, images))
    assert right(in_chunks(made.network, made_naively("constant")[0])) == clean
    assert clean <= made.robust_accuracy_at_most
