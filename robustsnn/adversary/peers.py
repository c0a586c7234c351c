"""What the adapters of other attack libraries share.

A peer gets the victim's network as any user of it would hand it over: a module from pixels in
[0, 1] to logits. It works on a micro-batch at a time, which is what memory was seen to hold, under
global generators that are seeded from (seed, image ids) and restored afterwards.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError

#: How the libraries that do not come with RobustSNN are installed.
INSTALL = "pip install 'robustsnn[peers]'"

Craft = Callable[[nn.Module, Tensor, Tensor, int], Tensor]
"""Called with the network, images `[batch, ...]`, labels `[batch]` and a seed; proposes images."""


class MissingLibrary(InputError):
    """A peer that is not installed, or cannot be imported here."""


def library(module: str, package: str) -> Any:
    """A module of a library that need not be installed.

    Raises:
        MissingLibrary: It cannot be imported; the message says how to install it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingLibrary(f"{package} cannot be imported here ({error}): {INSTALL}.") from error


def check_norm(owner: str, norm: str, norms: tuple[str, ...]) -> None:
    """Refuse a norm that an attack does not work in.

    Raises:
        InputError: As said.
    """
    if norm not in norms:
        raise InputError(
            f"{owner} works in {' and '.join(norms)} only, not in {norm}: choose another attack "
            "or norm."
        )


def count_classes(victim: Victim, images: Tensor) -> int:
    """The number of classes; a network that does not say is asked about one image."""
    known = victim.classes
    return int(victim.select([0]).logits(images[:1]).shape[1]) if known is None else known


def craft(
    owner: str,
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    rng: Rng,
    run: Craft,
    alone: bool = False,
) -> Tensor:
    """What a peer proposes, `[batch, ...]`, from a micro-batch at a time.

    Args:
        owner: The attack as it was named, for messages and for the seed.
        victim: The network under attack.
        images: `[batch, channel, height, width]`, which the peer gets copies of.
        labels: True classes, int64 `[batch]`.
        threat: With pixels in [0, 1]; where its ball is a point, the peer is not called.
        rng: Gives each call its seed.
        run: The call.
        alone: One image at a time, so that what is drawn belongs to the image.

    Raises:
        InputError: Another range of pixels, or the peer failed; one line with its own words.
    """
    if (threat.low, threat.high) != (0.0, 1.0):
        raise InputError(f"{owner} is run on pixels in [0, 1] only: choose another attack.")
    if len(images) == 0 or threat.radius == 0:
        return images.clone()
    found = []
    for rows in torch.arange(len(images)).split(1 if alone else victim.micro_batch):
        # Padding one image to a whole micro-batch would cost a micro-batch.
        some = victim.select(rows, micro_batch=1 if alone else None)
        seed = rng.select(rows).derive(owner)
        # What an estimator remembers of these images is another attack's.
        some.fresh()
        network = _ByImage(some, images[rows])
        with _one_line(owner, images), seeded(seed), contextlib.redirect_stdout(io.StringIO()):
            found.append(run(network, images[rows].clone(), labels[rows].clone(), seed))
    # A proposal that shared memory with the images could change them later.
    return torch.cat([part.detach() for part in found]).to(images).clone()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every global generator seeded inside, and afterwards as it was."""
    kept_numpy, kept_python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(kept_numpy)
            random.setstate(kept_python)


@contextlib.contextmanager
def _one_line(owner: str, images: Tensor) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{owner} cannot attack images {list(images.shape[1:])}: "
            f"{type(error).__name__}: {error}; leave it out of the suite."
        ) from error


class _ByImage(nn.Module):
    """A victim's network that counts passes by image in a batch of survivors too.

    Peers shrink their batches to the images that still stand. Which row is which image is told
    by nearness: a peer asks about points around the images that it was given.
    """

    def __init__(self, victim: Victim, images: Tensor) -> None:
        super().__init__()
        # In a tuple, so that no outer call reaches the network's own mode through this module.
        self._given = (victim, images.detach().flatten(1), images.dtype)
        self.training = False

    def train(self, mode: bool = True) -> _ByImage:
        """Nothing: the victim sets the mode, in each call."""
        return self

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The network's, from which libraries take the device."""
        return self._given[0].network.parameters(recurse)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[batch, class]` of images in pixel units."""
        victim, given, dtype = self._given
        if len(images) < len(victim):
            asked = images.detach().flatten(1).to(given)
            victim = victim.select(torch.cdist(asked, given).argmin(1))
        logits: Tensor = victim.network(images.to(dtype))
        return logits
