"""What the adapters of other attack libraries share; such a library is called a peer here.

A peer is given the victim's network as any user of the library would hand it over: as a module
from pixels in [0, 1] to logits. It works on one micro-batch at a time, which is known to fit into
memory, under global generators that are seeded from (seed, image ids) and restored afterwards.
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
from robustsnn.errors import InputError, installing

#: The settings of which there must be at least one, and words in those that must be above 0.
COUNTS = frozenset(
    "steps max_iter num_steps n_iter eot_iter n_queries queries n_restarts restarts nb_random_init "
    "num_random_init batch_size binary_search_steps init_steps max_halving max_doubling "
    "n_target_classes nb_restarts n_neig sampling_number targets num_grad_steps "
    "gradient_estimate_steps gradient_estimator_steps".split()
)
LENGTHS = ("alpha", "step", "lr", "learning_rate", "sigma", "eps_")

Craft = Callable[[nn.Module, Tensor, Tensor, int], Tensor]
"""A call of a peer: network, images `[batch, ...]`, labels `[batch]`, seed to proposed images."""


class MissingLibrary(InputError):
    """A peer is not installed, or cannot be imported here."""


def library(module: str, package: str, extra: str = "peers") -> Any:
    """A module of a library that need not be installed.

    Args:
        module: The name of the module.
        package: The name of the library, for the message.
        extra: The extra of RobustSNN that holds it, for the message.

    Raises:
        MissingLibrary: The module cannot be imported; the message says how to install it.

    Examples:
        >>> library("math", "Python").floor(1.5)
        1
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        remedy = installing(extra)
        raise MissingLibrary(f"{package} cannot be imported here ({error}): {remedy}.") from error


def check_norm(owner: str, norm: str, norms: tuple[str, ...]) -> None:
    """Refuse a norm that an attack does not work in.

    Args:
        owner: The attack as the user named it, for the message.
        norm: The norm that is asked for.
        norms: The norms that the attack works in.

    Raises:
        InputError: The norm is not one of these.

    Examples:
        >>> check_norm("pgd", "Linf", ("Linf", "L2"))
    """
    if norm not in norms:
        raise InputError(
            f"{owner} works in {' and '.join(norms)} only, not in {norm}: choose another attack "
            "or norm."
        )


def check_option(owner: str, option: str, value: Any, default: Any) -> None:
    """Refuse a setting with which an attack does nothing, or something that it was not made for.

    Libraries take any number: no step at all leaves the images as they are, and they then count as
    robust.

    Args:
        owner: The attack as the user named it, for the message.
        option: The name of the setting.
        value: The value that is asked for.
        default: The default of the library, which is a value that means something.

    Raises:
        InputError: A count is below 1, or a size or rate is negative or zero where the default is
            above 0.

    Examples:
        >>> check_option("torchattacks:PGD", "steps", 7, 10)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if option in COUNTS:
        if value < 1:
            raise InputError(f"{owner}: {option} must be at least 1.")
    elif any(word in option for word in LENGTHS):
        if not value > 0:
            raise InputError(f"{owner}: {option} must be above 0.")
    elif isinstance(default, int | float) and default >= 0 > value:
        raise InputError(f"{owner}: {option} must be at least 0.")


def count_classes(victim: Victim, images: Tensor) -> int:
    """The number of classes; a network that does not declare it is asked about one image."""
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
    """What a peer proposes, `[batch, ...]`, one micro-batch at a time.

    Args:
        owner: The attack as the user named it, for messages and for the seed.
        victim: The network under attack.
        images: The clean images, `[batch, channel, height, width]`; the peer gets copies.
        labels: The true classes, int64 `[batch]`.
        threat: The threat model, with pixels in [0, 1]; for a radius of 0 the peer is not called.
        rng: The generators from which each call gets its seed.
        run: The call of the peer.
        alone: Whether the peer gets one image at a time, so that its draws belong to that image.

    Raises:
        InputError: The threat model has another pixel range, or the peer failed; the message is
            one line with the peer's own words.
    """
    if (threat.low, threat.high) != (0.0, 1.0):
        raise InputError(f"{owner} is run on pixels in [0, 1] only: choose another attack.")
    if len(images) == 0 or threat.radius == 0:
        return images.clone()
    found = []
    for rows in torch.arange(len(images)).split(1 if alone else victim.micro_batch):
        # One image, padded to a whole micro-batch, would cost as much as a micro-batch.
        some = victim.select(rows, micro_batch=1 if alone else None)
        seed = rng.select(rows).derive(owner)
        # What an estimator remembers of these images comes from another attack.
        some.fresh()
        network = _ByImage(some, images[rows])
        with _one_line(owner, images), seeded(seed), contextlib.redirect_stdout(io.StringIO()):
            found.append(run(network, images[rows].clone(), labels[rows].clone(), seed))
    # Copied, because a proposal that shares memory with the images could change them later.
    return torch.cat([part.detach() for part in found]).to(images).clone()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every global generator inside the block, and restore their states afterwards."""
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
    """A victim's network that counts passes per image, in a batch of survivors too.

    Peers shrink their batches to the survivors. Each row is taken for the image nearest to it,
    because a peer asks about points around the images that it was given.
    """

    def __init__(self, victim: Victim, images: Tensor) -> None:
        super().__init__()
        # In a tuple, so that no outer call reaches the network's own mode through this module.
        self._given = (victim, images.detach().flatten(1), images.dtype)
        self.training = False

    def train(self, mode: bool = True) -> _ByImage:
        """Do nothing: the victim sets the mode in each call."""
        return self

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The parameters of the network, from which libraries take the device."""
        return self._given[0].network.parameters(recurse)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[batch, class]` of images in pixel units."""
        victim, given, dtype = self._given
        if len(images) < len(victim):
            asked = images.detach().flatten(1).to(given)
            victim = victim.select(torch.cdist(asked, given).argmin(1))
        logits: Tensor = victim.network(images.to(dtype))
        return logits
