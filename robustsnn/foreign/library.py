"""What has to be known of a library of spiking neurons, stated once for all of them.

A library is recognised by the classes of modules and never imported: a network that is made of its
neurons has imported it already. `robustsnn/foreign/` has one file for each library, which says how
its neurons take their input, return their spikes and keep their state, and what their dynamics
are. Whatever is not known of a neuron is said by `Unknown`; such a neuron keeps the gradient of its
own library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from robustsnn.foreign.surrogate import OwnSurrogate

Role = Literal["before reset", "after reset", "other"]


class Unknown(Exception):
    """A neuron whose dynamics are not known; the text says why, as part of a sentence."""


@dataclass(frozen=True, eq=False)
class Dynamics:
    """The dynamics of a layer of neurons; see `robustsnn.snn.backward_rule.Trace`.

    Tensors are scalars, or broadcast to `[batch, ...]`. Potentials are measured from `rest`.

    Args:
        threshold: The threshold above rest.
        leak: The factor of the membrane in the next step.
        gain: The factor of the input current.
        reset: What a spike does: takes off `amount` (`soft`), sets `reset_to` (`hard`), or nothing.
        attached: Whether the library differentiates the spike of the reset.
        rest: The potential to which a membrane leaks, and from which it starts.
        amount: What a soft reset takes off for each spike; None for the threshold.
        reset_to: The potential above rest that a hard reset sets.
        late: Whether a soft reset takes its amount off after the leak.
        again: Whether a membrane that lies above the threshold after a soft reset is lowered by the
            amount before the next spike, and raised by it again afterwards.
        floor: The least potential above rest after a reset; None if there is none.
        graded: Whether a neuron may spike more than once in a step.
        height: The factor between the number of spikes and the output of the layer.
        filter: The factor by which a current that flows into the membrane decays in each step, for
            neurons with a synapse; None for the others.
    """

    threshold: Tensor
    leak: Tensor
    gain: Tensor
    reset: Literal["soft", "hard", "none"]
    attached: bool
    rest: Tensor | float = 0.0
    amount: Tensor | None = None
    reset_to: Tensor | float = 0.0
    late: bool = False
    again: bool = False
    floor: Tensor | None = None
    graded: bool = False
    height: Tensor | float = 1.0
    filter: Tensor | None = None

    def tensors(self) -> list[Tensor | float | None]:
        """All values that may change from one step to the next."""
        return [
            self.threshold, self.leak, self.gain, self.rest, self.amount, self.reset_to,
            self.floor, self.height, self.filter,
        ]  # fmt: skip

    def same(self, other: Dynamics) -> bool:
        """Whether two steps had the same dynamics."""
        pairs = zip(self.tensors(), other.tensors(), strict=True)
        settings = (self.reset, self.attached, self.late, self.again, self.graded)
        theirs = (other.reset, other.attached, other.late, other.again, other.graded)
        return settings == theirs and all(
            a is b or (a is not None and b is not None and _equal(a, b)) for a, b in pairs
        )


def _equal(a: Tensor | float, b: Tensor | float) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool((a == b).all())
    return bool(torch.as_tensor(a == b).all())


@dataclass(frozen=True, eq=False)
class Read:
    """A part of what a call of a neuron leaves besides its spikes.

    Args:
        value: The tensor, with time first if it holds every step.
        role: What it is.
        every: Whether it holds every step of the call, `[time, batch, ...]`; otherwise it belongs
            to the last step, `[batch, ...]`.
    """

    value: Tensor
    role: Role
    every: bool = False


class Library:
    """One library; its subclasses are the files of this package.

    Attributes:
        package: The package that its classes are defined in.
        title: Its name for readers.
        bases: The classes of which a neuron derives.
        silent: Classes that derive of these and do not spike.
        kinds: The kinds of neurons whose dynamics are known.
        inputs: The names by which a current may be passed as a keyword.
        works: The attributes without which a neuron computes nothing, called or not.
        limit: Where a neuron has its threshold.
    """

    package: ClassVar[str]
    title: ClassVar[str]
    bases: ClassVar[Sequence[str]]
    silent: ClassVar[Sequence[str]] = ()
    kinds: ClassVar[Sequence[str]]
    inputs: ClassVar[Sequence[str]] = ("x", "input")
    works: ClassVar[Sequence[str]] = ()
    limit: ClassVar[str] = ""

    def lineage(self, module: nn.Module) -> list[str]:
        """The classes of this library that a module derives of, the nearest first."""
        mro = type(module).__mro__
        return [c.__name__ for c in mro if c.__module__.split(".")[0] == self.package]

    def kind(self, module: nn.Module) -> str | None:
        """The kind of a neuron of this library; None for any other module."""
        lineage = self.lineage(module)
        if not lineage or lineage[0] in self.silent or not set(lineage) & set(self.bases):
            return None
        return None if self.never_spikes(module) else lineage[0]

    def never_spikes(self, module: nn.Module) -> bool:
        """Whether the threshold is infinite, as of neurons whose membranes alone are read."""
        value: Any = module
        for name in self.limit.split("."):
            value = getattr(value, name, None)
        return isinstance(value, float | Tensor) and bool(torch.as_tensor(value).isposinf().all())

    def known(self, module: nn.Module) -> bool:
        """Whether the dynamics of a neuron are known, if it is set as is usual."""
        return self.kind(module) in self.kinds

    def dynamics(self, module: Any, like: Tensor) -> Dynamics:
        """The dynamics of a neuron as they are now, on the device and of the type of a current.

        Raises:
            Unknown: They are not known.
        """
        raise NotImplementedError

    def surrogate(self, module: Any, dynamics: Dynamics) -> OwnSurrogate:
        """The surrogate that the library itself uses for a neuron."""
        raise NotImplementedError

    def current(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """The input current of a call."""
        value = args[0] if args else next((kwargs[n] for n in self.inputs if n in kwargs), None)
        if not isinstance(value, Tensor):
            raise Unknown("it is called without an input current")
        return value

    def called_with(
        self, current: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """The arguments of a call, with another current."""
        if args:
            return (current, *args[1:]), kwargs
        name = next(name for name in self.inputs if name in kwargs)
        return args, {**kwargs, name: current}

    def split(self, module: Any, value: Tensor) -> Tensor:
        """A current or spikes of a call as `[time, batch, ...]`."""
        raise NotImplementedError

    def join(self, module: Any, value: Tensor) -> Tensor:
        """The inverse of `split`."""
        raise NotImplementedError

    def state(self, module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """The membrane that a call begins with; None if it begins afresh."""
        raise NotImplementedError

    def rests(self, module: Any, state: Tensor) -> bool:
        """Whether a membrane is that of a neuron that has seen nothing."""
        return not bool(state.any())

    def spikes(self, output: Any) -> Tensor:
        """The spikes that a call returned."""
        found = output[0] if isinstance(output, tuple) else output
        if not isinstance(found, Tensor):
            raise Unknown("it does not return its spikes as a tensor")
        return found

    def leave(
        self,
        module: Any,
        output: Any,
        spikes: Tensor,
        change: Callable[[Tensor, Role, bool], Tensor],
    ) -> tuple[Any, Tensor | None]:
        """What a call returns and keeps, with other tensors in place of its own.

        Args:
            module: The neuron.
            output: What its own forward returned.
            spikes: The spikes in place of its own.
            change: A function from a tensor, its role, and whether it holds every step, to the
                tensor in its place.

        Returns:
            The output, and the membrane by which the next call can be told to follow this one.
        """
        raise NotImplementedError

    def resets(self, module: nn.Module) -> bool:
        """Whether a module, which need not be a neuron, keeps a state that `reset` clears."""
        return self.kind(module) is not None

    def reset(self, module: Any) -> None:
        """Let a module forget what it has seen."""
        raise NotImplementedError

    def shown(self, module: Any) -> dict[str, str]:
        """The leak and the reset of a neuron in a few words, for readers."""
        try:
            found = self.dynamics(module, torch.zeros(()))
        except Unknown:
            return {"leak": "?", "reset": "?"}
        reset = {
            "none": "no reset",
            "hard": "reset to a value" if _nonzero(found.reset_to) else "reset to rest",
            "soft": "reset by subtraction after the leak" if found.late else "reset by subtraction",
        }[found.reset]
        return {"leak": _range(found.leak), "reset": reset}


def number(value: Any, like: Tensor) -> Tensor:
    """A number or tensor of a library as a constant on the device and of the type of `like`."""
    if isinstance(value, Tensor):
        return value.detach().to(like.device, like.dtype)
    return torch.tensor(float(value), device=like.device, dtype=like.dtype)


def _nonzero(value: Tensor | float) -> bool:
    return bool(torch.as_tensor(value != 0).any())


def _range(value: Tensor) -> str:
    low, high = float(value.min()), float(value.max())
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
