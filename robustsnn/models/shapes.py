"""Networks whose inputs or outputs have a time axis, as networks from images to logits.

A module of one time step is called once for each step; one that takes a whole sequence gets it;
what comes back, `[time, batch, class]` of spikes or membranes, alone or in a tuple or dict, is
decoded to logits `[batch, class]`. How to do that is part of the name of a model:
`nets:build:steps=8,encode=direct,decode=membrane-max`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn

from robustsnn.errors import InputError
from robustsnn.models.calling import call
from robustsnn.snn.encoding import latency, poisson

ENCODINGS = ("direct", "poisson", "latency")
DECODINGS = ("spikes-sum", "spikes-mean", "membrane-sum", "membrane-max", "membrane-last")
#: The names of the entries of a dict, or of attributes, that hold spikes or membranes.
_SPIKES = ("spk_rec", "spk", "spikes", "spike", "out", "output", "outputs", "logits")
_MEMBRANES = ("mem_rec", "mem", "membrane", "membranes", "voltage", "voltages", "v", "u")
#: The names of arguments of `forward` that take the state of the step before, such as `mem2`.
_STATES = ("state", "states", "hidden", "hx", "h", "s", "mem", "syn", "v", "u", "membrane")
#: What a network says of itself only if the network inside says it.
_SAID_INSIDE = ("classes", "input_shape", "spiking_layers")


@dataclass(frozen=True)
class Shape:
    """How a network with a time axis is called, and how what it returns becomes logits.

    Args:
        steps: The number of time steps; None if the network makes its steps itself.
        encode: How an image becomes a sequence: `direct`, the image at each step; `poisson`, a
            spike at each step with the pixel as its probability, with keyed draws; `latency`, one
            spike a pixel, the brighter the earlier.
        decode: What the logits are: the sum or mean of output spikes over time, or the sum, the
            maximum or the last of output membranes.
        output: The key in a dict, or the place in a tuple, of what is decoded; by default it is
            found by its name or place.
        input: Whether the network takes one `step` at a call or a whole `sequence`, `[time, batch,
            ...]`; by default what its neurons say.

    Raises:
        InputError: There is less than one step, or encode or input is given without steps.

    Examples:
        >>> Shape(steps=8, decode="membrane-max").encode is None
        True
    """

    steps: int | None = None
    encode: Literal["direct", "poisson", "latency"] | None = None
    decode: (
        Literal["spikes-sum", "spikes-mean", "membrane-sum", "membrane-max", "membrane-last"] | None
    ) = None
    output: str | None = None
    input: Literal["step", "sequence"] | None = None

    def __post_init__(self) -> None:
        for field, choices in (
            ("encode", ENCODINGS),
            ("decode", DECODINGS),
            ("input", ("step", "sequence")),
        ):
            value = getattr(self, field)
            if value is not None and value not in choices:
                raise InputError(f"{field} must be {' or '.join(choices)}, not {value!r}.")
        if self.steps is not None and (type(self.steps) is not int or self.steps < 1):
            raise InputError(f"steps={self.steps}: give a whole number of at least 1.")
        for field in ("encode", "input"):
            if self.steps is None and getattr(self, field) is not None:
                raise InputError(f"{field} needs the number of time steps: add steps=8.")
        if self.encode == "latency" and self.steps == 1:
            raise InputError("encode=latency needs 2 steps or more: a pixel fires at one of them.")


class _TimeAxis:
    """Which of the first two axes is time in what a network returns, once that was seen."""

    # Without a `__dict__`: what was seen in a pass is not a part of what the network is.
    __slots__ = ("place",)

    def __init__(self) -> None:
        self.place: int | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _TimeAxis:
        # It is the same for all copies of a network.
        return self


class Shaped(nn.Module):
    """A network with a time axis, from images in [0, 1] to logits.

    Args:
        inner: The network; it is not changed. Its state has to be reset before each pass, which
            `evaluate` does for the neurons that it knows.
        shape: How it is called and decoded.

    Examples:
        >>> network = Shaped(nn.Flatten(), Shape(steps=4, decode="membrane-sum"))
        >>> network(torch.tensor([[[[0.25, 0.5]]]]))
        tensor([[1., 2.]])
    """

    def __init__(self, inner: nn.Module, shape: Shape) -> None:
        super().__init__()
        self.inner = inner
        self.shape = shape
        self.training = inner.training
        self._time = _TimeAxis()

    @property
    def inner_name(self) -> str:
        """What the network inside is called, for readers."""
        return type(self.inner).__name__

    @property
    def stochastic(self) -> bool:
        """Whether the logits depend on draws, which `keys` then fix."""
        return self.shape.encode == "poisson" or bool(getattr(self.inner, "stochastic", False))

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits `[batch, class]` of images `[batch, channel, height, width]`.

        Args:
            images: Pixels in [0, 1].
            keys: The key of each image, int64 `[batch]`, by which a network that draws draws; by
                default image i of the batch has key i.

        Raises:
            InputError: What the network returns cannot be decoded; the message names its shape.
        """
        count = len(images)
        if self.shape.steps is None:
            found = self._whole(images, keys)
            if self._ambiguous(found, count):
                self.find_time_axis(images, keys)
            return self._decoded(found, count)
        sequence = self._encoded(images, keys)
        if self._takes_sequence():
            output = call(self.inner, torch.stack(list(sequence)))
            found = _picked(output, self.shape, self.inner)
            if found.dim() == 2 and len(found) == self.shape.steps * count:
                found = found.unflatten(0, (self.shape.steps, count))
            return self._decoded(found, count, time_first=True)
        return self._decoded(self._stepped(sequence), count, time_first=True)

    @torch.no_grad()
    def find_time_axis(
        self,
        images: Tensor,
        keys: Tensor | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Find out which axis is time in what the network returns, once for all copies of it.

        Where there are as many images as time steps, that shows only with another number of images.

        Args:
            images: Some images, `[batch, channel, height, width]`.
            keys: Their keys, as for `forward`.
            before: What is called before each pass, such as a reset of the state.
        """
        if self.shape.steps is not None or self.shape.decode is None:
            return
        for _ in range(3):
            if self._time.place is not None:
                return
            before()
            found = self._whole(images, keys)
            if found.dim() != 3 or found.shape[0] != found.shape[1]:
                batch_first = found.dim() == 3 and found.shape[0] == len(images)
                self._time.place = 1 if batch_first else 0
            images = torch.cat([images, images[-1:]])
            keys = None if keys is None else torch.cat([keys, keys[-1:]])

    def _ambiguous(self, found: Tensor, count: int) -> bool:
        square = found.dim() == 3 and found.shape[0] == found.shape[1] == count
        return square and self._time.place is None

    def _whole(self, images: Tensor, keys: Tensor | None) -> Tensor:
        """What a network that makes its steps itself returns of what is decoded."""
        drawn = getattr(self.inner, "stochastic", False)
        inside = {} if keys is None or not drawn else {"keys": keys}
        return _picked(call(self.inner, images, **inside), self.shape, self.inner)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in _SAID_INSIDE and "inner" in self._modules:
                return getattr(self.inner, name)
            raise

    def extra_repr(self) -> str:
        """The settings, as they stand in a name; another one is another network."""
        values = {field.name: getattr(self.shape, field.name) for field in fields(self.shape)}
        return ",".join(f"{name}={value}" for name, value in values.items() if value is not None)

    def _encoded(self, images: Tensor, keys: Tensor | None) -> Tensor | list[Tensor]:
        steps = self.shape.steps
        assert steps is not None
        if self.shape.encode == "poisson":
            return poisson(images, steps, torch.arange(len(images)) if keys is None else keys)
        if self.shape.encode == "latency":
            return latency(images, steps)
        return [images] * steps

    def _takes_sequence(self) -> bool:
        if self.shape.input is not None:
            return self.shape.input == "sequence"
        # SpikingJelly's modules say whether they take one step or many.
        return any(getattr(module, "step_mode", "") == "m" for module in self.inner.modules())

    def _stepped(self, sequence: Tensor | list[Tensor]) -> Tensor:
        """What one step after the other returns, `[time, batch, class]`; a state is passed on."""
        takes = _states(self.inner)
        # Only a state without a default has to be given at the first step.
        state: tuple[Any, ...] = (None,) * sum(one.default is one.empty for one in takes)
        found = []
        for image in sequence:
            output = call(self.inner, image, *state)
            if takes and isinstance(output, tuple) and len(output) > 1:
                state = _passed_on(self.inner, output[1:], takes)
            found.append(_picked(output, self.shape, self.inner))
        return torch.stack(found)

    def _decoded(self, found: Tensor, count: int, *, time_first: bool = False) -> Tensor:
        if found.dim() == 2 and len(found) == count and not time_first:
            return found
        if found.dim() != 3 or count not in found.shape[:2] or self.shape.decode is None:
            raise not_logits(self.inner, found)
        # Some libraries have the batch in front of time.
        axis = 0 if time_first or found.shape[1] == count else 1
        if not time_first and found.shape[0] == found.shape[1]:
            axis = self._time.place or 0
        what = self.shape.decode
        if what.endswith("sum"):
            return found.sum(axis)
        if what.endswith("mean"):
            return found.mean(axis)
        return found.amax(axis) if what.endswith("max") else found.select(axis, -1)


def _states(network: nn.Module) -> list[inspect.Parameter]:
    """The arguments of `forward` behind the first one that take the state of the step before."""
    try:
        taken = list(inspect.signature(network.forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return []
    named = [one.name.rstrip("0123456789").rstrip("_") in _STATES for one in taken]
    return taken[: (*named, False).index(False)]


def _passed_on(
    network: nn.Module, left: tuple[Any, ...], takes: list[inspect.Parameter]
) -> tuple[Any, ...]:
    """The states that a step left behind its first output, as the next step takes them."""
    if len(takes) == 1:
        return (left if len(left) > 1 else left[0],)
    if len(left) == 1 and isinstance(left[0], list | tuple):
        left = tuple(left[0])
    if len(left) != len(takes):
        raise InputError(
            f"{type(network).__name__} takes {len(takes)} states "
            f"({', '.join(one.name for one in takes)}) and returns {len(left)} behind its first "
            "output: let it return each of them, so that the next step can be given them."
        )
    return left


def _picked(output: Any, shape: Shape, network: nn.Module) -> Tensor:
    """The tensor that is decoded, out of a tuple or dict."""
    if shape.output is not None:
        try:
            if isinstance(output, Mapping):
                output = output[shape.output]
            elif isinstance(output, list | tuple) and shape.output.lstrip("-").isdecimal():
                output = output[int(shape.output)]
            else:
                output = getattr(output, shape.output)
        except (KeyError, IndexError, AttributeError):
            raise InputError(
                f"{type(network).__name__} returns {seen(output)}, in which there is no "
                f"{shape.output!r}: name a part that is there, such as output=0."
            ) from None
    membranes = (shape.decode or "").startswith("membrane")
    if isinstance(output, Mapping):
        names = _MEMBRANES if membranes else _SPIKES
        tensors = {str(k): v for k, v in output.items() if isinstance(v, Tensor)}
        named = next((tensors[name] for name in names if name in tensors), None)
        if named is not None:
            return named
        if len(tensors) == 1:
            return next(iter(tensors.values()))
        raise not_logits(network, output)
    if isinstance(output, list | tuple):
        parts = [part for part in output if isinstance(part, Tensor)]
        if isinstance(output, list) and len(parts) > 2 and len(parts) == len(output):
            # A list of what each step gave.
            return torch.stack(parts)
        # Spikes come first and membranes after them, as in snnTorch.
        if len(parts) > 1 and membranes and parts[1].shape == parts[0].shape:
            return parts[1]
        if parts:
            return parts[0]
    if isinstance(output, Tensor):
        return output
    raise not_logits(network, output)


def seen(output: Any) -> str:
    """What a network returned, for a message: shapes, and the places or keys that hold them.

    Examples:
        >>> seen((torch.zeros(8, 2, 10), torch.zeros(8, 2, 10)))
        'a tuple of [8, 2, 10] and [8, 2, 10]'
        >>> seen({"spk": torch.zeros(8, 2, 10)})
        "a dict of 'spk' [8, 2, 10]"
    """
    if isinstance(output, Tensor):
        return str(list(output.shape))
    if isinstance(output, Mapping):
        parts = [f"{key!r} {seen(value)}" for key, value in list(output.items())[:4]]
        return f"a dict of {' and '.join(parts) or 'nothing'}"
    if isinstance(output, list | tuple):
        parts = [seen(value) for value in output[:4]]
        return f"a {type(output).__name__} of {' and '.join(parts) or 'nothing'}"
    return f"a {type(output).__name__}"


def are_logits(output: Any, images: int) -> TypeGuard[Tensor]:
    """Whether what a network returned for some images is logits, floats `[batch, class]`.

    Examples:
        >>> are_logits(torch.zeros(4, 10), 4), are_logits(torch.zeros(4, 10).long(), 4)
        (True, False)
    """
    return (
        isinstance(output, Tensor)
        and output.dim() == 2
        and len(output) == images
        and output.is_floating_point()
    )


def not_logits(network: nn.Module | str, output: Any) -> InputError:
    """The error for an output that is not logits; it names the shape seen and the choices.

    Args:
        network: The network, or what messages call it.
        output: What it returned.
    """
    name = network if isinstance(network, str) else type(network).__name__
    if isinstance(output, Tensor) and output.dim() == 2 and not output.is_floating_point():
        kind = str(output.dtype).removeprefix("torch.")
        return InputError(
            f"{name} returns {seen(output)} of type {kind}, not logits: they are real "
            "floating-point numbers, and a gradient has to reach the images through them."
        )
    return InputError(
        f"{name} returns {seen(output)}, not logits [batch, class]: say how they are read behind "
        f"the name of the model, such as MODEL:decode=spikes-sum ({', '.join(DECODINGS)}), with "
        f"steps=8 if it takes one time step a call (encode={', '.join(ENCODINGS)}), with output=0 "
        "or output=KEY for a part of a tuple or dict; in Python by robustsnn.wrap(network, "
        "decode='spikes-sum')."
    )
