"""What a network of the user's own computes, as far as it can be told: the rest of its identity.

The digest of weights and masks does not see the number in a forward pass, a hook or another file.
So two more things are looked at: everything that its code may read (`contents`), and what it says
of a few fixed images, with the gradient that it gives for them.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robustsnn.models.batching import FEWEST
from robustsnn.models.calling import AT_ONCE, call
from robustsnn.models.contents import Contents, attributes, contents
from robustsnn.snn.network import Network

#: The relative difference of logits and gradients that another machine may make by rounding.
ROUNDING = 1e-3
#: The seed of the draws of a network that draws without saying so.
SEED = 0


@dataclass(frozen=True)
class Function:
    """What a network computes, as far as it can be told.

    Args:
        contents: The digest of what its code may read.
        logits: The digest of its logits on fixed images; empty if it does not repeat them.
        gradient: The digest of the gradient of a fixed sum of them; empty likewise.
        numbers: The class, the largest logit and the lengths of logits and gradient of each image,
            by which two machines are compared.
    """

    contents: str
    logits: str = ""
    gradient: str = ""
    numbers: tuple[float, ...] = ()

    @property
    def digest(self) -> str:
        """The digest of all of it."""
        return _sha(json.dumps([self.contents, self.logits, self.gradient]).encode())

    def rounded_alike(self, numbers: Sequence[float]) -> bool:
        """Whether the numbers of another machine are the same, rounding apart."""
        return len(self.numbers) == len(numbers) > 0 and all(
            math.isclose(one, other, rel_tol=ROUNDING, abs_tol=1e-6)
            for one, other in zip(self.numbers, numbers, strict=True)
        )


def function_of(load: Callable[[], nn.Module], shape: Sequence[int]) -> Function | None:
    """What a network computes; None for one of ours, which its weights and settings describe.

    The passes are made on the CPU, by one thread and on one number of images, so that the outcome
    is the same in every run on a machine. Whatever changes in a pass is a state and does not count.

    Args:
        load: A function that makes a new copy of the network.
        shape: The shape of an image, `(channel, height, width)`.

    Examples:
        >>> from robustsnn.models.checkpoint import load_model
        >>> function_of(lambda: load_model("fashion-mnist/vgg5-snn"), (1, 28, 28)) is None
        True
        >>> len(function_of(lambda: nn.Sequential(nn.Flatten(), nn.ReLU()), (1, 2, 2)).numbers)
        16
    """
    network = load()
    held = contents(network)
    if type(network) is Network:
        with _alone():
            made = contents(Network(network.config).eval())
        if held == made:
            return None
        return Function(_digest(held))
    before = [(name, v, getattr(v, "_version", 0)) for name, v in _attributes(network)]
    with _alone():
        first = _answers(network, shape)
        settled = _settled(held, network, before)
        again = _answers(load(), shape) if first else None
    if first is None or again is None or first[:2] != again[:2]:
        return Function(_digest(settled))
    return Function(_digest(settled), *first)


def fixed_images(count: int, shape: Sequence[int]) -> Tensor:
    """Images in [0, 1] that depend on nothing but their number and shape, `[count, *shape]`.

    They are noise, dark noise, a bright ramp and coarse blocks, over and over.

    Examples:
        >>> fixed_images(5, (1, 2, 2)).shape
        torch.Size([5, 1, 2, 2])
    """
    channels, height, width = shape
    size = channels * height * width
    places = torch.arange(count * size, dtype=torch.int64).reshape(count, *shape)
    # A multiplicative hash: the high bits of a product with a number without a pattern.
    noise = ((places * 2654435761) % 2**32 // 2**24).float() / 255
    rows = torch.arange(height)[:, None] / max(height - 1, 1)
    columns = torch.arange(width) / max(width - 1, 1)
    turns = 1 - torch.arange(count)[:, None, None, None] % 8 / 16
    ramp = ((rows + columns) / 2 * turns).expand(count, channels, height, width)
    blocks = noise[..., :: max(1, height // 4), :: max(1, width // 4)]
    coarse = nn.functional.interpolate(blocks, size=(height, width), mode="nearest")
    kinds = torch.stack([noise, noise / 4, 0.5 + ramp / 2, coarse])
    return kinds[torch.arange(count) % 4, torch.arange(count)].contiguous()


def _answers(network: nn.Module, shape: Sequence[int]) -> tuple[str, str, tuple[float, ...]] | None:
    """The digests of logits and gradient, and their numbers; None if there are no logits."""
    try:
        network = network.cpu()
        count = int(getattr(network, AT_ONCE, None) or FEWEST)
        images = fixed_images(count, shape)
        keys = {"keys": torch.arange(count)} if getattr(network, "stochastic", False) else {}
        with torch.inference_mode(False), torch.enable_grad():
            x = images.clone().requires_grad_()
            logits = call(network, x, **keys)
            weights = torch.cos(torch.arange(logits.numel()).float()).reshape(logits.shape)
            gradient = None
            if logits.requires_grad:
                (gradient,) = torch.autograd.grad((logits * weights).sum(), x, allow_unused=True)
        logits = logits.detach().double().flatten(1)
    except Exception:
        # What is wrong with it is said where it is evaluated, and so is a lack of memory.
        return None
    flat = torch.zeros(count, 1) if gradient is None else gradient.double().flatten(1)
    numbers = torch.stack(
        [logits.argmax(1).double(), logits.amax(1), logits.norm(dim=1), flat.norm(dim=1)], dim=1
    ).nan_to_num()
    gave = b"none" if gradient is None else gradient.contiguous().numpy().tobytes()
    kept = tuple(float(f"{value:.6g}") for value in numbers[:FEWEST].flatten().tolist())
    return _sha(logits.numpy().tobytes()), _sha(gave), kept


def _attributes(network: nn.Module) -> Iterator[tuple[str, object]]:
    for name, module in network.named_modules():
        yield from ((f"{name}.{key}", value) for key, value in attributes(module))


def _settled(
    held: Contents, network: nn.Module, before: Sequence[tuple[str, object, int]]
) -> Contents:
    """What a pass left as it was: neither another value nor another object."""
    after, now = contents(network), dict(_attributes(network))
    moved = {
        name
        for name, value, version in before
        if isinstance(value, Tensor)
        and (now.get(name) is not value or getattr(value, "_version", 0) != version)
    }
    return {k: v for k, v in held.items() if after.get(k) == v and k not in moved}


@contextmanager
def _alone() -> Iterator[None]:
    """One thread and generators of a fixed seed inside the block; both as before after it."""
    threads = torch.get_num_threads()
    kept_numpy, kept_python = np.random.get_state(), random.getstate()
    try:
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            np.random.seed(SEED)
            random.seed(SEED)
            yield
    finally:
        torch.set_num_threads(threads)
        np.random.set_state(kept_numpy)
        random.setstate(kept_python)


def _digest(held: Contents) -> str:
    return _sha(json.dumps(sorted(held.items())).encode())


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
