"""Plain forward passes: what a network says of images, at one shape and with fixed draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustsnn.losses import margin
from robustsnn.randomness import derive


@torch.no_grad()
def score(
    network: nn.Module,
    images: Tensor,
    image_ids: Sequence[int],
    micro_batch: int,
    seed: int = 0,
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
    """
    stochastic = bool(getattr(network, "stochastic", False))
    found = []
    for start in range(0, len(images), micro_batch):
        chunk = images[start : start + micro_batch].contiguous()
        real = len(chunk)
        ids = list(image_ids[start : start + real])
        if real < micro_batch:
            chunk = torch.cat([chunk, chunk[-1:].expand(micro_batch - real, *chunk.shape[1:])])
            ids += ids[-1:] * (micro_batch - real)
        if stochastic:
            keys = torch.tensor([derive(seed, "verdict", i) for i in ids], dtype=torch.int64)
            logits = network(chunk, keys=keys)
        else:
            logits = network(chunk)
        found.append(logits[:real])
    return torch.cat(found)


def judge(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted classes int64 and margins float64, `[batch]` each.

    Logits that are not all finite are no prediction: class -1 and a NaN margin, which count as
    wrong everywhere.
    """
    finite = logits.isfinite().all(1)
    predictions = torch.where(finite, logits.argmax(1), -1)
    margins = margin(logits.double(), labels)
    return predictions, torch.where(finite, margins, torch.nan)
