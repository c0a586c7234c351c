"""Plain forward passes: what a network says of images, at one shape and with fixed draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustsnn.common.randomness import derive
from robustsnn.errors import InputError
from robustsnn.models.batching import out_of_memory, padding


@torch.no_grad()
def score(
    network: nn.Module,
    images: Tensor,
    image_ids: Sequence[int],
    micro_batch: int,
    seed: int = 0,
    draw: int = 0,
) -> Tensor:
    """Logits `[batch, class]` from a plain forward, without gradient.

    Batches are padded to one shape, the one that attacks run at, because a spike at the threshold
    flips with the shape. A stochastic network draws by (seed, image id), from a stream that no
    attack sees.

    Args:
        network: In evaluation mode.
        images: `[batch, channel, height, width]`, pixel units.
        image_ids: One an image.
        micro_batch: Images per forward.
        seed: Of the draws.
        draw: Which of several draws of each image.
    """
    stochastic = bool(getattr(network, "stochastic", False))
    found = []
    for start in range(0, len(images), micro_batch):
        chunk = images[start : start + micro_batch].contiguous()
        real = len(chunk)
        ids = list(image_ids[start : start + real])
        if missing := padding(real, micro_batch):
            chunk = torch.cat([chunk, chunk[-1:].expand(missing, *chunk.shape[1:])])
            ids += ids[-1:] * missing
        if stochastic:
            which = (draw,) if draw else ()
            keys = torch.tensor(
                [derive(seed, "verdict", i, *which) for i in ids], dtype=torch.int64
            )
            logits = network(chunk, keys=keys)
        else:
            logits = network(chunk)
        found.append(logits[:real])
    return torch.cat(found)


@dataclass(frozen=True)
class Verdict:
    """What is said of each image, `[batch]`.

    Args:
        predictions: Classes int64, -1 where logits are not finite; over several draws the class
            that most of them say.
        margins: Float64, above 0 is wrong and 0 a tie; over several draws the share of votes by
            which the best other class leads, told apart by the mean margin.
        right: Float64, the fraction of draws on which the image is classified right.
    """

    predictions: Tensor
    margins: Tensor
    right: Tensor


def verdict(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    image_ids: Sequence[int],
    micro_batch: int,
    seed: int = 0,
    draws: int = 1,
) -> Verdict:
    """Judge images, a stochastic network on several draws that no attack has seen.

    Args:
        network: See `score`, as are the other arguments.
        images: As said.
        labels: True classes, int64 `[batch]`.
        image_ids: As said.
        micro_batch: As said.
        seed: As said.
        draws: Of each image; a deterministic network is asked once.
    """
    if draws == 1 or not getattr(network, "stochastic", False):
        predictions, margins = judge(score(network, images, image_ids, micro_batch, seed), labels)
        return Verdict(predictions, margins, (predictions == labels).double())
    every = [
        judge_all(score(network, images, image_ids, micro_batch, seed, draw), labels)
        for draw in range(draws)
    ]
    said = torch.stack([predictions for predictions, _, _ in every])
    right = (said == labels).double().mean(0)
    classes = every[0][2].shape[1]
    # No prediction is one more wrong answer, the last: left out, fewer votes would do to be right.
    answers = [*range(classes), -1]
    votes = torch.stack([(said == answer).double().mean(0) for answer in answers], dim=1)
    lead = margin(votes, labels)
    mean = torch.stack([margins for _, margins, _ in every]).nan_to_num(nan=1.0).mean(0)
    # A lead is at least one vote; what is added tells apart and never turns the verdict.
    margins = torch.where(lead == 0, lead, lead + 0.5 / draws * torch.tanh(mean))
    silent = votes.argmax(1) == classes
    predictions = torch.where(silent, -1, votes.argmax(1))
    return Verdict(predictions, torch.where(silent, torch.nan, margins), right)


def judge_all(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions and margins as of `judge`, and the logits."""
    return *judge(logits, labels), logits


def judge(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted classes int64 and margins float64, `[batch]` each.

    Logits that are not all finite are no prediction: class -1 and a NaN margin, which count as
    wrong everywhere.
    """
    finite = logits.isfinite().all(1)
    predictions = torch.where(finite, logits.argmax(1), -1)
    margins = margin(logits.double(), labels)
    return predictions, torch.where(finite, margins, torch.nan)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """`max_{j != y} z_j - z_y`: above 0 is misclassified, 0 is a tie at the top.

    Source: Carlini and Wagner, S&P 2017, objective f6, without its confidence.
    """
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return (others.max(1, keepdim=True).values - own).squeeze(1)


def judged_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The margin as a verdict counts it: infinite where logits are not all finite.

    They are no prediction, so they are wrong, and an attack that found them is done.
    """
    finite = logits.isfinite().all(1)
    return torch.where(finite, margin(logits, labels), torch.inf)


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
    if logits.shape[1] < 2:
        raise InputError(
            f"the network gives {logits.shape[1]} logit an image, so nothing can be mistaken: "
            "return one for each of at least 2 classes."
        )
    bad = int((~logits.isfinite().all(1)).sum())
    if bad:
        raise InputError(
            f"the network gives NaN or infinite logits on {bad} of {len(images)} clean images: "
            "the checkpoint or its normalisation is broken; retrain or restore it."
        )
    return logits
