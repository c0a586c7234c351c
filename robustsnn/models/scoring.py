"""Plain forward passes, at one shape and with fixed draws, and the verdict on each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustsnn.common.randomness import derive
from robustsnn.common.users_code import UsersCodeError
from robustsnn.errors import InputError
from robustsnn.models.batching import padding
from robustsnn.models.calling import call
from robustsnn.models.shapes import are_logits, not_logits
from robustsnn.snn.network import Network
from robustsnn.snn.operations import counted


@torch.no_grad()
def score(
    network: nn.Module,
    images: Tensor,
    image_ids: Sequence[int],
    micro_batch: int,
    seed: int = 0,
    draw: int = 0,
) -> Tensor:
    """Logits `[batch, class]` from a plain forward pass, without gradient.

    Batches are padded to one shape, the one that attacks run at, because a spike at the threshold
    may flip with the shape. A stochastic network draws by (seed, image id), from a stream that no
    attack sees.

    Args:
        network: The network, in evaluation mode.
        images: The images, `[batch, channel, height, width]`, in pixel units.
        image_ids: The id of each image.
        micro_batch: The number of images in a forward pass.
        seed: The seed of the draws.
        draw: The number of the draw, of several draws for each image.

    Examples:
        >>> score(nn.Flatten(), torch.tensor([[[[0.25, 0.5]]]]), [0], micro_batch=4)
        tensor([[0.2500, 0.5000]])
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
            logits = call(network, chunk, keys=keys)
        else:
            logits = call(network, chunk)
        if not are_logits(logits, len(chunk)):
            raise not_logits(network, logits)
        found.append(logits[:real])
    return torch.cat(found)


@dataclass(frozen=True)
class Verdict:
    """The verdict on each image.

    Args:
        predictions: The predicted classes, int64 `[batch]`, -1 if the logits are not finite; over
            several draws, the class that most draws give.
        margins: The margins, float64 `[batch]`; above 0 is wrong and 0 is a tie. Over several
            draws, the share of votes by which the best other class leads, plus a smaller term of
            the mean margin that orders images with the same votes.
        right: The fraction of draws on which the image is classified right, float64 `[batch]`.
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
    """Judge images; a stochastic network is judged on several draws that no attack has seen.

    Args:
        network: The network, in evaluation mode.
        images: The images, `[batch, channel, height, width]`, in pixel units.
        labels: The true classes, int64 `[batch]`.
        image_ids: The id of each image.
        micro_batch: The number of images in a forward pass.
        seed: The seed of the draws.
        draws: The number of draws for each image; a deterministic network is asked once.

    Examples:
        >>> image = torch.tensor([[[[0.25, 0.5]]]])
        >>> verdict(nn.Flatten(), image, torch.tensor([0]), [0], micro_batch=1).margins
        tensor([0.2500], dtype=torch.float64)
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
    # A draw without prediction is a vote for one more wrong answer, the last. If it were left out,
    # fewer votes would suffice to be right.
    answers = [*range(classes), -1]
    votes = torch.stack([(said == answer).double().mean(0) for answer in answers], dim=1)
    lead = margin(votes, labels)
    mean = torch.stack([margins for _, margins, _ in every]).nan_to_num(nan=1.0).mean(0)
    # A lead is at least one vote, 1 / draws. The term of the mean margin is less than half of that,
    # so it orders images with the same votes and never changes a verdict.
    margins = torch.where(lead == 0, lead, lead + 0.5 / draws * torch.tanh(mean))
    silent = votes.argmax(1) == classes
    predictions = torch.where(silent, -1, votes.argmax(1))
    return Verdict(predictions, torch.where(silent, torch.nan, margins), right)


def verdict_and_operations(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    image_ids: Sequence[int],
    micro_batch: int,
    seed: int = 0,
    draws: int = 1,
) -> tuple[Verdict, Tensor]:
    """The verdict on each image, and the synaptic operations that it took, float64 `[batch]`.

    The operations are counted in the passes of the verdict, which stays as it is; over several
    draws they are a mean. They are NaN for networks of other libraries, into which nothing here can
    look. The arguments are those of `verdict`.

    Examples:
        >>> image = torch.tensor([[[[0.25, 0.5]]]])
        >>> verdict_and_operations(nn.Flatten(), image, torch.tensor([0]), [0], micro_batch=1)[1]
        tensor([nan], dtype=torch.float64)
    """
    judging = (network, images, labels, image_ids, micro_batch, seed, draws)
    if not isinstance(network, Network):
        return verdict(*judging), torch.full((len(images),), torch.nan, dtype=torch.float64)
    with counted(network) as passes:
        said = verdict(*judging)
    # The last pass of each draw is padded with copies, which are not counted.
    starts = range(0, len(images), micro_batch)
    real = [min(micro_batch, len(images) - start) for start in starts]
    own = [found[: real[place % len(real)]] for place, found in enumerate(passes)]
    return said, torch.cat(own).unflatten(0, (-1, len(images))).mean(0)


def judge_all(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The predictions and margins of `judge`, and the logits."""
    return *judge(logits, labels), logits


def judge(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The predicted classes, int64 `[batch]`, and the margins, float64 `[batch]`.

    Logits that are not all finite give no prediction: the class is -1 and the margin NaN, which
    both count as wrong everywhere.

    Args:
        logits: The logits, `[batch, class]`.
        labels: The true classes, int64 `[batch]`.
    """
    finite = logits.isfinite().all(1)
    predictions = torch.where(finite, logits.argmax(1), -1)
    margins = margin(logits.double(), labels)
    return predictions, torch.where(finite, margins, torch.nan)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The margin `max_{j != y} z_j - z_y` of each image, `[batch]`.

    Above 0 the image is misclassified; 0 is a tie at the top.

    Args:
        logits: The logits z, `[batch, class]`.
        labels: The true classes y, int64 `[batch]`.

    Examples:
        >>> margin(torch.tensor([[3.0, 1.0], [2.0, 2.0]]), torch.tensor([0, 0]))
        tensor([-2.,  0.])

    Source: Carlini and Wagner, S&P 2017, objective f6, without its confidence.
    """
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return (others.max(1, keepdim=True).values - own).squeeze(1)


def judged_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The margin of each image as the judge counts it, `[batch]`.

    It is infinite if the logits are not all finite: such logits give no prediction and count as
    wrong, so an attack that found them has succeeded.
    """
    finite = logits.isfinite().all(1)
    return torch.where(finite, margin(logits, labels), torch.inf)


def does_not_take(images: Tensor, error: UsersCodeError) -> InputError:
    """The error for a network that raises an exception on clean images, whatever the reason is.

    Args:
        images: The images, `[batch, channel, height, width]`.
        error: What it raised.
    """
    where = f"{error.where}: " if error.where else ""
    return InputError(
        f"the network does not take images [batch, {', '.join(map(str, images.shape[1:]))}] "
        f"({where}{error.reason}): it must map pixels in [0, 1] to logits [batch, class]."
    )


def finite_logits(
    network: nn.Module, images: Tensor, image_ids: Sequence[int], micro_batch: int, seed: int
) -> Tensor:
    """Logits `[batch, class]` of clean images, all finite.

    Args:
        network: The network, in evaluation mode.
        images: The clean images, `[batch, channel, height, width]`, in pixel units.
        image_ids: The id of each image.
        micro_batch: The number of images in a forward pass.
        seed: The seed of the draws of a stochastic network.

    Raises:
        InputError: The network does not take the images, does not return logits `[batch, class]`
            of at least two classes, or returns NaN or infinity.
    """
    try:
        logits = score(network, images, image_ids, micro_batch, seed)
    except UsersCodeError as error:
        raise does_not_take(images, error) from error
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
