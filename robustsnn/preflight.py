"""Checks of a network before it is attacked: can a number about it be believed at all."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustsnn.batching import out_of_memory
from robustsnn.errors import InputError
from robustsnn.gradients import make_estimator
from robustsnn.scoring import score
from robustsnn.victim import Victim

IMAGES = 64
MOST_ZERO_GRADIENTS = 0.05
MOST_TIES = 0.01
ALONE = 8


@dataclass(frozen=True)
class Check:
    """One check: its outcome, the number behind it, and what it means in a sentence."""

    check: str
    passed: bool
    evidence: float
    sentence: str

    def row(self) -> dict[str, Any]:
        """As it stands in `manifest.json`."""
        return asdict(self)


def preflight(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    image_ids: Sequence[int],
    micro_batch: int,
    seed: int = 0,
) -> list[Check]:
    """Run every check on a network; `images` are few and clean.

    Args:
        network: In evaluation mode; untouched.
        images: `[batch, channel, height, width]` in [0, 1].
        labels: True classes, int64 `[batch]`.
        image_ids: One an image.
        micro_batch: Images per forward.
        seed: Of a stochastic network's draws.

    Raises:
        InputError: The network does not take the images, or its logits are not finite.
    """
    logits = finite_logits(network, images, image_ids, micro_batch, seed)
    return [
        _repeatable(network, images, image_ids, micro_batch, seed, logits),
        _alone(network, images, image_ids, micro_batch, seed),
        _under_attack(network, images, labels, image_ids, micro_batch, seed, logits),
        *_gradients(network, images, labels, image_ids, micro_batch, seed),
        _not_probabilities(logits),
        _ties(logits),
    ]


def finite_logits(
    network: nn.Module, images: Tensor, image_ids: Sequence[int], micro_batch: int, seed: int
) -> Tensor:
    """Logits `[batch, class]` of clean images.

    Raises:
        InputError: The network does not take the images, returns no logits, or NaN.
    """
    try:
        logits = score(network, images, image_ids, micro_batch, seed)
    except InputError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        if out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"the network does not take images [batch, {', '.join(map(str, images.shape[1:]))}] "
            f"({reason}): it must map pixels in [0, 1] to logits [batch, class]."
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"the network returns {shape} and not logits [batch, class]: wrap it.")
    bad = int((~logits.isfinite().all(1)).sum())
    if bad:
        raise InputError(
            f"the network gives NaN or infinite logits on {bad} of {len(images)} clean images: "
            "the checkpoint or its normalisation is broken; retrain or restore it."
        )
    return logits


def _repeatable(
    network: nn.Module,
    images: Tensor,
    ids: Sequence[int],
    micro_batch: int,
    seed: int,
    logits: Tensor,
) -> Check:
    again = score(network, images, ids, micro_batch, seed)
    differing = float((again != logits).any(1).double().mean())
    if getattr(network, "stochastic", False):
        said = "The network declares itself stochastic; with the same draws two passes "
    else:
        said = "Two passes of the same images "
    passed = differing == 0
    verdict = "agree." if passed else f"differ on {differing:.1%} of images: state or draws leak."
    return Check("repeatable", passed, differing, said + verdict)


def _alone(
    network: nn.Module, images: Tensor, ids: Sequence[int], micro_batch: int, seed: int
) -> Check:
    # In float64 a different shape moves no membrane across its threshold; in float32 it may.
    some, few = images[:ALONE].double(), list(ids[:ALONE])
    try:
        wide = copy.deepcopy(network).double()
        together = score(wide, some, few, len(some), seed)
        alone = torch.cat(
            [score(wide, some[i : i + 1], few[i : i + 1], 1, seed) for i in range(len(some))]
        )
        scale = together.abs().amax().clamp_min(1e-12)
        largest = float(((together - alone).abs() / scale).max())
        passed = largest < 1e-6
    except RuntimeError:
        # A foreign module may hold float32 constants: compare what it predicts instead.
        together = score(network, images[:ALONE], few, micro_batch, seed)
        alone = torch.cat(
            [score(network, images[i : i + 1], few[i : i + 1], 1, seed) for i in range(len(few))]
        )
        largest = float((together.argmax(1) != alone.argmax(1)).double().mean())
        passed = largest == 0
    verdict = "are those of the image in a batch." if passed else "depend on its batch."
    return Check("alone-as-in-batch", passed, largest, f"The logits of an image alone {verdict}")


def _under_attack(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    ids: Sequence[int],
    micro_batch: int,
    seed: int,
    logits: Tensor,
) -> Check:
    training = any(module.training for module in network.modules())
    if getattr(network, "stochastic", False):
        return Check(
            "attack-mode",
            not training,
            float(training),
            "Draws of an attack differ from those of the verdict, as declared.",
        )
    seen = _victim(network, ids, micro_batch, seed).gradient(images, labels).logits
    differing = float((seen.argmax(1) != logits.argmax(1)).double().mean())
    passed = differing == 0 and not training
    verdict = (
        "the same classes as when it is evaluated."
        if passed
        else f"other classes on {differing:.1%} of images than when it is evaluated."
    )
    return Check("attack-mode", passed, differing, f"Under attack the network predicts {verdict}")


def _gradients(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    ids: Sequence[int],
    micro_batch: int,
    seed: int,
) -> list[Check]:
    victim = _victim(network, ids, micro_batch, seed)
    victim.gradient(images, labels)
    zero = float(victim.zero_grad.double().mean())
    bad = float(victim.nonfinite_grad.double().mean())
    return [
        Check(
            "zero-gradient",
            zero <= MOST_ZERO_GRADIENTS,
            zero,
            f"The input gradient ({victim.estimator.name}) is all zero for {zero:.1%} of the clean "
            "images: an attack that follows it cannot move there.",
        ),
        Check(
            "nonfinite-gradient",
            bad == 0,
            bad,
            f"The input gradient has NaN or infinite entries for {bad:.1%} of the clean images.",
        ),
    ]


def _not_probabilities(logits: Tensor) -> Check:
    inside = bool(((logits >= -1e-5) & (logits <= 1 + 1e-5)).all())
    sums = float((logits.double().sum(1) - 1).abs().max())
    looks = inside and sums < 1e-5
    verdict = (
        "looks like probabilities: a softmax at the end hides gradients; return what it takes in."
        if looks
        else "is logits, not probabilities."
    )
    return Check("logits", not looks, sums, f"What the network returns {verdict}")


def _ties(logits: Tensor) -> Check:
    top = logits.topk(2, dim=1).values
    tied = float((top[:, 0] == top[:, 1]).double().mean())
    return Check(
        "ties",
        tied <= MOST_TIES,
        tied,
        f"Two classes share the highest logit on {tied:.1%} of the clean images; the worst case "
        "counts a tie as an error.",
    )


def _victim(network: nn.Module, ids: Sequence[int], micro_batch: int, seed: int) -> Victim:
    return Victim(network, make_estimator("bptt", network), ids, micro_batch=micro_batch, seed=seed)
