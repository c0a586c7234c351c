"""Random crops and flips of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsnn.training.recipe import Augmentation


def augment(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to `crop` pixels, filled with zeros, and flipped or not.

    A flip is left to right, with probability 1/2.

    Args:
        images: Images `[batch, channel, height, width]`.
        settings: Which of the two to do, and by how many pixels to shift.
        generator: The source of all draws, on the CPU.
    """
    batch, _, height, width = images.shape
    if settings.crop:
        pad = settings.crop
        padded = F.pad(images, (pad,) * 4)
        offset = torch.randint(0, 2 * pad + 1, (2, batch, 1), generator=generator)
        rows = (offset[0] + torch.arange(height)).to(images.device)
        columns = (offset[1] + torch.arange(width)).to(images.device)
        index = torch.arange(batch, device=images.device)[:, None, None]
        images = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
        images = images.permute(0, 3, 1, 2).contiguous()
    if settings.flip:
        flipped = (torch.rand(batch, generator=generator) < 0.5).to(images.device)
        images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    return images
