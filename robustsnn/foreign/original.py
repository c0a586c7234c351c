"""Whether a copy of a user's network says what the network itself says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.foreign.detect import stateful
from robustsnn.foreign.wrapped import Wrapped

#: The relative difference of logits that another device or layout of memory may make.
ROUNDING = 1e-4
#: The seed of the draws of a network that draws without saying so.
SEED = 0


def compare_with_original(copied: Wrapped, images: Tensor) -> None:
    """Compare a copy with the network that it was made of, once for all copies.

    Args:
        copied: The copy, in evaluation mode.
        images: Some images, `[batch, channel, height, width]`, in [0, 1].

    Raises:
        InputError: They differ.
    """
    reach, original = copied.reach, copied.reach.original
    if original is None:
        return
    reach.original = None
    keys = {}
    if getattr(copied, "stochastic", False):
        keys = {"keys": torch.arange(len(images))}
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(SEED)
        ours = copied.plain(images.clone(), **keys)
        with as_it_was(original):
            original.eval()
            held = next(iter([*original.parameters(), *original.buffers()]), images)
            torch.manual_seed(SEED)
            here = images.clone().to(held.device)
            theirs = Wrapped(original, reach).plain(here, **keys).to(ours.device)
    if not torch.allclose(ours, theirs, rtol=ROUNDING, atol=ROUNDING * float(theirs.abs().max())):
        apart = float((ours.argmax(1) != theirs.argmax(1)).double().mean())
        raise InputError(
            f"a copy of {type(original).__name__} says something else than the network itself "
            f"({apart:.0%} of {len(images)} images change their class): an evaluation works on "
            "copies, so keep all that its forward uses inside the network, and give a factory, "
            "module:function, that builds it."
        )


@contextmanager
def as_it_was(network: nn.Module) -> Iterator[None]:
    """Leave mode, buffers and states of a network after the block as they were before it."""
    states = {module for module, _ in stateful(network)}
    before: list[tuple[nn.Module, dict[str, Any], list[tuple[dict[str, Any], dict[str, Any]]]]] = []
    for module in network.modules():
        held = dict(module.__dict__) if module in states else {"training": module.training}
        inner = []
        for name in ("_buffers", "_memories"):
            values = module.__dict__.get(name)
            if isinstance(values, dict):
                inner.append((values, dict(values)))
                for key, value in values.items():
                    # A library that resets in place must not reach the user's own tensor.
                    if isinstance(value, Tensor):
                        values[key] = value.detach().clone()
        before.append((module, held, inner))
    try:
        yield
    finally:
        for module, held, inner in before:
            for values, own in inner:
                values.clear()
                values.update(own)
            if module in states:
                module.__dict__.clear()
            module.__dict__.update(held)
