"""How a network is called: ours as it is, one of the user's own with some care.

A network of the user's own may change its input in place, compute in another type than float32,
take one number of images only, or raise anything. Every forward pass of it goes through here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustsnn.common.users_code import out_of_memory, users_code
from robustsnn.errors import InputError
from robustsnn.snn.copying import copy_of
from robustsnn.snn.network import Network

#: The attribute that says how many images a network takes at a time, if that is one number only.
AT_ONCE = "robustsnn_at_once"
#: A number of images that no network takes alone, unless it takes any.
ANY = 5
#: Types too coarse for losses and margins; logits in them are read as float32.
HALF = (torch.float16, torch.bfloat16)


def call(network: nn.Module, images: Tensor, *more: Any, **given: Any) -> Any:
    """What a network returns for images, which it cannot change.

    Args:
        network: The network. One of ours is called as it is.
        images: The images, `[batch, channel, height, width]`, or what one step of them is.
        *more: What else it is given by place, such as the state of the step before.
        **given: What else it is given by name, such as `keys`.

    Raises:
        UsersCodeError: A network of the user's own raised an exception.

    Examples:
        >>> image = torch.tensor([[-1.0, 2.0]])
        >>> call(nn.ReLU(inplace=True), image), image
        (tensor([[0., 2.]]), tensor([[-1.,  2.]]))
    """
    if isinstance(network, Network):
        return network(images, *more, **given)
    with calling(network):
        size = getattr(network, AT_ONCE, None)
        if size is None or len(images) == size:
            return _in_its_type(network, images, more, given)
        return _in_parts(network, images, given, int(size))


def calling(network: nn.Module) -> AbstractContextManager[None]:
    """Report in one line what a network of the user's own raises inside the block.

    Args:
        network: The network; for one of ours the block is left as it is.
    """
    if isinstance(network, Network):
        return nullcontext()
    inner: Any = network
    while type(inner).__module__.startswith("robustsnn.") and hasattr(inner, "inner"):
        inner = inner.inner
    return users_code(f"the network {type(inner).__name__}", network=inner)


def _in_parts(network: nn.Module, images: Tensor, given: dict[str, Any], size: int) -> Tensor:
    """Logits in batches of exactly that size, the last one filled up with copies."""
    found = []
    for start in range(0, len(images), size):
        some = slice(start, start + size)
        real = len(images[some])
        keys = {name: _filled(value[some], size) for name, value in given.items()}
        found.append(_in_its_type(network, _filled(images[some], size), (), keys)[:real])
    return torch.cat(found)


def _filled(values: Tensor, size: int) -> Tensor:
    missing = size - len(values)
    last = values[-1:].detach()
    return torch.cat([values, last.expand(missing, *last.shape[1:])]) if missing else values


def _in_its_type(
    network: nn.Module, images: Tensor, more: tuple[Any, ...], given: dict[str, Any]
) -> Any:
    own = _other_type(network)
    try:
        found = network(images.clone(), *more, **given)
    except RuntimeError as error:
        # One that changes the type of its images by itself is given them as they are.
        if own is None or images.dtype == own or out_of_memory(error):
            raise
        found = network(images.to(own), *more, **given)
    return _finer(found)


def _other_type(network: nn.Module) -> torch.dtype | None:
    """The type that all weights of a network have, if it is not float32."""
    kinds = {p.dtype for p in network.parameters() if p.is_floating_point()}
    kind = kinds.pop() if len(kinds) == 1 else None
    return None if kind == torch.float32 else kind


def _finer(found: Any) -> Any:
    """What a network returned, with float32 in place of half precision."""
    if isinstance(found, Tensor):
        return found.float() if found.dtype in HALF else found
    if type(found) in (tuple, list):
        return type(found)(_finer(part) for part in found)
    if type(found) is dict:
        return {key: _finer(part) for key, part in found.items()}
    return found


def fixed_batch(network: nn.Module, image: Tensor, sizes: list[int]) -> int | None:
    """The number of images that a network takes at a time; None if it takes any, or none of these.

    Args:
        network: A copy of the network that may be spoilt, in evaluation mode.
        image: One image, `[1, channel, height, width]`.
        sizes: The numbers of images to try, once another one was refused.
    """
    if isinstance(network, Network):
        return None
    stochastic = bool(getattr(network, "stochastic", False))

    def takes(count: int) -> bool:
        keys = {"keys": torch.arange(count)} if stochastic else {}
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                found = call(network, image.expand(count, *image.shape[1:]).contiguous(), **keys)
        except Exception:
            return False
        # What is not logits at all is told by its shape, where it is decoded.
        return not isinstance(found, Tensor) or found.dim() != 2 or len(found) == count

    return None if takes(ANY) else next((size for size in sizes if takes(size)), None)


def frozen(network: nn.Module) -> nn.Module:
    """The same network, in evaluation mode and with no parameter that asks for a gradient.

    Raises:
        InputError: It has layers whose size is not known yet.
    """
    network.eval()
    for name, parameter in network.named_parameters():
        if is_lazy(parameter):
            raise InputError(
                f"{type(network).__name__} has a lazy layer, whose size is not known yet ({name}): "
                "call the network once on a batch of images first."
            )
        # By parameter, since scripts refuse to be frozen as a whole.
        parameter.requires_grad_(False)
    return network


def uncompiled(network: nn.Module) -> nn.Module:
    """The network before `torch.compile`, which computes the same; it is left as it is.

    A compiled network compiles anew for every copy, number of images and type.
    """
    if not any(_is_compiled(module) for module in network.modules()):
        return network
    if _is_compiled(network):
        return uncompiled(network._orig_mod)  # type: ignore[arg-type]
    copied = copy_of(network)
    for module in list(copied.modules()):
        for name, child in list(module.named_children()):
            if _is_compiled(child):
                setattr(module, name, uncompiled(child))
    return copied


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" and hasattr(module, "_orig_mod")


def take_at_once(network: nn.Module, size: int) -> nn.Module:
    """The same network, which is given that many images at a time from now on."""
    setattr(network, AT_ONCE, size)
    if hasattr(network, "reach"):
        # Its check calls the network inside by itself.
        setattr(network.inner, AT_ONCE, size)
    return network
