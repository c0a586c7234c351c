"""The pass of the estimator `twin`, in which activations stand for the neurons of a library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robustsnn.common.users_code import handed_over
from robustsnn.foreign.layer import Layer
from robustsnn.foreign.library import Dynamics, Role
from robustsnn.foreign.replay import Handler


class Twins:
    """One pass in which every neuron is the activation that the estimator put in its place.

    An activation is given the mean over time of what flows into the membrane of its neuron: the
    current times its gain, and for a neuron with a synapse times what the synapse lets through, on
    average over the steps. A neuron that runs one step a call is given each step alone; under a
    static input that is the same, since activations have no state. What reads a membrane reads
    one that only leaks and adds up.

    Args:
        layers: The layers, by name.
        steps: The number of time steps of a pass.
    """

    def __init__(self, layers: Mapping[str, Layer], steps: int) -> None:
        self.layers, self.steps = layers, steps
        self._membranes: dict[int, tuple[Tensor, Tensor]] = {}

    def handler(self, layers: Sequence[Layer]) -> Handler:
        """What takes the place of the forward of a module, given its layers in order."""
        layer = layers[0]
        library, module = layer.library, layer.module

        def call(
            forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
        ) -> Any:
            state = library.state(module, args, kwargs)
            current = library.split(module, library.current(args, kwargs))
            d = library.dynamics(module, current.detach()[0])
            with torch.no_grad():
                args, kwargs = library.called_with(
                    library.current(args, kwargs).detach(), args, kwargs
                )
                output = handed_over(forward, *args, **kwargs)
            activate = layer.twin
            assert activate is not None
            drive = current.mean(0, keepdim=True) * self._share(d)
            active = activate(drive, 1)[0].expand_as(current) * d.height
            membranes = self._integrated(d, current, state)

            def change(value: Tensor, role: Role, every: bool) -> Tensor:
                if role == "other":
                    return value
                return (membranes if every else membranes[-1]) + d.rest

            output, last = library.leave(module, output, library.join(module, active), change)
            if last is not None:
                self._membranes[id(last)] = (last, membranes[-1])
            return output

        return call

    def _share(self, d: Dynamics) -> Tensor:
        """The mean over time of what a constant current of 1 lets flow into the membrane."""
        if d.filter is None:
            return d.gain
        flowing, total = torch.zeros_like(d.filter), torch.zeros_like(d.filter)
        for _ in range(self.steps):
            flowing = d.filter * flowing + 1
            total = total + flowing
        return d.gain * total / self.steps

    def _integrated(self, d: Dynamics, current: Tensor, state: Tensor | None) -> Tensor:
        """The membranes of neurons that never spike, `[time, batch, ...]`."""
        held = self._membranes.get(id(state))
        flowing = self._share(d) * current
        found = []
        after = None if held is None else held[1]
        for now in flowing:
            after = now if after is None else d.leak * after + now
            found.append(after)
        return torch.stack(found)
