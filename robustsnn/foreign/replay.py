"""A pass of a network that is cut at its neurons, and the backward pass through rules.

The library runs its own forward pass, spike for spike. Every call of a neuron is cut: its output
becomes a leaf, and its input current keeps its graph. The backward pass walks the layers in the
reverse order of their first calls. It stacks all steps of a layer, hands a rule the trace of what
the layer did, puts the rule's gradient on the currents, and goes on to the layer before. So a loop
over single steps, a layer that takes the whole sequence, and a state that is passed or hidden are
one and the same case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustsnn.common.users_code import handed_over
from robustsnn.errors import InputError
from robustsnn.foreign.layer import Layer
from robustsnn.foreign.library import Dynamics, Read, Role, Unknown
from robustsnn.snn.backward_rule import (
    Trace,
    of_current,
    surrogate_derivative,
    through_time,
)

Handler = Callable[[Callable[..., Any], Sequence[Any], Mapping[str, Any]], Any]
"""What takes the place of a neuron's forward: it is given that forward and its arguments."""


@dataclass(eq=False)
class Call:
    """One call of a neuron.

    Args:
        current: The input current, as the library got it, with its graph.
        spikes: The leaf in place of the spikes.
        reads: The leaves in place of what else the call left.
    """

    current: Tensor
    spikes: Tensor
    reads: list[Read]


@dataclass(eq=False)
class Chain:
    """Calls that follow each other, each with the state that the one before left.

    Args:
        layer: The layer that they are calls of.
        dynamics: The dynamics at the first call.
        calls: The calls, in order.
        last: The membrane that the last call left.
    """

    layer: Layer
    dynamics: Dynamics
    calls: list[Call] = field(default_factory=list)
    last: Tensor | None = None

    def stacked(self, of: Callable[[Call], Tensor]) -> Tensor:
        """A tensor of every call, as `[time, batch, ...]`."""
        split = self.layer.library.split
        return torch.cat([split(self.layer.module, of(call)) for call in self.calls])


class Pass:
    """One forward pass that is cut at the neurons of some layers.

    Args:
        layers: The layers, by name; the others run as their library lets them.
        live: Whether the dynamics are compared at every call, which takes time.
    """

    def __init__(self, layers: Mapping[str, Layer], live: bool = False) -> None:
        self.layers, self.live = layers, live
        self.chains: list[Chain] = []

    def handler(self, layers: Sequence[Layer]) -> Handler:
        """What takes the place of the forward of a module, given its layers in order."""

        def call(
            forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
        ) -> Any:
            library, module = layers[0].library, layers[0].module
            current = library.current(args, kwargs)
            chain = self._chain(layers, current, args, kwargs)
            with torch.no_grad():
                args, kwargs = library.called_with(current.detach(), args, kwargs)
                output = handed_over(forward, *args, **kwargs)
                spikes = library.spikes(output).detach()
            made = Call(current, spikes.requires_grad_(), [])

            def change(value: Tensor, role: Role, every: bool) -> Tensor:
                leaf = value.detach()
                if leaf.is_floating_point():
                    leaf.requires_grad_()
                    made.reads.append(Read(leaf, role, every))
                # Users add up spikes in place, which torch refuses for a leaf.
                return leaf.clone()

            output, chain.last = library.leave(module, output, made.spikes.clone(), change)
            chain.calls.append(made)
            return output

        return call

    def _chain(
        self,
        layers: Sequence[Layer],
        current: Tensor,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Chain:
        """The chain that a call belongs to, a new one if it begins afresh.

        Raises:
            Unknown: Its state is neither that of an earlier call nor at rest.
        """
        library, module = layers[0].library, layers[0].module
        state = library.state(module, args, kwargs)
        own = [s for s in self.chains if s.layer.module is module]
        found = next((s for s in own if state is not None and s.last is state), None)
        if found is None:
            if state is not None and not library.rests(module, state):
                raise Unknown("its state is changed between its calls")
            if len(own) >= len(layers):
                raise Unknown(f"it runs {len(own) + 1} sequences in a pass")
            one = library.split(module, current.detach())[0]
            found = Chain(layers[len(own)], library.dynamics(module, one))
            self.chains.append(found)
        elif self.live and not found.dynamics.same(
            library.dynamics(module, found.calls[0].current)
        ):
            raise Unknown("its dynamics change from step to step")
        return found


@contextmanager
def handled(
    layers: Mapping[str, Layer], of: Callable[[Sequence[Layer]], Handler]
) -> Iterator[None]:
    """Put a handler in place of the forward of every module of those layers inside the block.

    Args:
        layers: The layers, by name.
        of: The function from the layers of one module, in order, to its handler.
    """
    by_module: dict[nn.Module, list[Layer]] = {}
    for layer in layers.values():
        by_module.setdefault(layer.module, []).append(layer)
    before = {module: vars(module).get("forward") for module in by_module}
    try:
        for module, some in by_module.items():
            some.sort(key=lambda layer: layer.place)
            module.__dict__["forward"] = _bound(of(some), module.forward)
        yield
    finally:
        for module, own in before.items():
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own


def _bound(handler: Handler, forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: handler(forward, args, kwargs)


def trace_of(chain: Chain) -> Trace:
    """What a layer did over a chain; its current is what flowed into the membrane."""
    d = chain.dynamics
    with torch.no_grad():
        current = chain.stacked(lambda call: call.current.detach())
        if d.filter is not None:
            current = filtered(d.filter, current)
        current = _times(current, d.gain)
        spikes = chain.stacked(lambda call: call.spikes.detach())
        if _times(spikes, d.height) is not spikes:
            spikes = spikes / d.height
        amount = torch.zeros_like(d.threshold) if d.reset == "none" else d.amount
        hard = d.reset == "hard"

    def replay() -> list[Tensor]:
        return dynamics_of(d, current, spikes)[0]

    return Trace(
        current=current,
        spikes=spikes,
        replay=replay,
        final=spikes[-1],
        threshold=d.threshold,
        leak=d.leak,
        hard=hard,
        attached=d.attached and d.reset != "none",
        surrogate=chain.layer.surrogate_at(d),
        amount=amount,
        reset_to=d.reset_to,
        late=d.late,
        floor=d.floor,
        graded=d.graded,
    )


def dynamics_of(d: Dynamics, current: Tensor, spikes: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The membranes before and after the reset of each step, `[batch, ...]`, given the spikes.

    A reset that comes after the leak is left to the next step, so there both are the same.

    Args:
        d: The dynamics.
        current: What flows into the membrane, `[time, batch, ...]`.
        spikes: The numbers of spikes, `[time, batch, ...]`.
    """
    before: list[Tensor] = []
    after: list[Tensor] = []
    amount = d.threshold if d.amount is None else d.amount
    for t, (now, o) in enumerate(zip(current, spikes, strict=True)):
        u, lowered = now.clone(), None
        if t:
            u = d.leak * after[-1] + now
            if d.late:
                u = u - amount * spikes[t - 1]
            elif d.again:
                lowered = amount * (after[-1] > d.threshold)
                u = u - lowered
        before.append(u)
        if d.reset == "soft" and not d.late:
            u = u - amount * o if lowered is None else u - amount * o + lowered
        elif d.reset == "hard":
            u = torch.where(o == 0, u, u.new_zeros(()) + d.reset_to)
        after.append(u if d.floor is None else torch.maximum(u, d.floor))
    return before, after


def _times(values: Tensor, factor: Tensor | float) -> Tensor:
    """Values times a factor, which is usually 1."""
    one = not (isinstance(factor, Tensor) and factor.dim()) and float(factor) == 1
    return values if one else values * factor


def filtered(factor: Tensor, current: Tensor) -> Tensor:
    """`i[t] = factor * i[t-1] + x[t]` of a current x, `[time, batch, ...]`."""
    found, flowing = torch.empty_like(current), None
    for t, x in enumerate(current):
        flowing = x if flowing is None else factor * flowing + x
        found[t] = flowing
    return found


def unfiltered(factor: Tensor, grad: Tensor) -> Tensor:
    """The gradient of what `filtered` takes, from that of what it gives."""
    found, later = torch.empty_like(grad), None
    for t in reversed(range(len(grad))):
        later = grad[t] if later is None else grad[t] + factor * later
        found[t] = later
    return found


def backward(run: Pass, inside: Tensor, logits: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the images of a cut pass, through the rule of each layer.

    Args:
        run: The pass.
        inside: The images that went in, a leaf.
        logits: What came out, with its graph.
        grad: The gradient of the logits.

    Raises:
        Unknown: A layer feeds one that runs before it, or a state that has no rule is read.
    """
    leaves = [inside]
    for chain in run.chains:
        for call in chain.calls:
            leaves += [call.spikes, *(read.value for read in call.reads)]
    if not logits.requires_grad:
        return torch.zeros_like(inside)
    torch.autograd.backward(logits, grad, retain_graph=True, inputs=leaves)
    for chain in reversed(run.chains):
        currents, gradients = _through(chain)
        if currents:
            torch.autograd.backward(currents, gradients, retain_graph=True, inputs=leaves)
    if any(leaf.grad is not None and bool(leaf.grad.any()) for leaf in leaves[1:]):
        raise Unknown("a layer feeds one that runs before it")
    found, inside.grad = inside.grad, None
    return torch.zeros_like(inside) if found is None else found


def _through(chain: Chain) -> tuple[list[Tensor], list[Tensor]]:
    """The currents of a layer that have a graph, and their gradients; its leaves are cleared."""
    layer, d = chain.layer, chain.dynamics
    library, module = layer.library, layer.module
    if all(
        leaf.grad is None
        for call in chain.calls
        for leaf in (call.spikes, *(read.value for read in call.reads))
    ):
        return [], []
    with torch.no_grad():
        grad = _times(chain.stacked(_taken), d.height)
        trace = trace_of(chain)
        if layer.rule is None:
            derivative = surrogate_derivative(trace, trace.surrogate)
            found = through_time(grad, trace, derivative)
        else:
            found = of_current(layer.rule(grad, trace), grad, trace)
        read = _reads(chain, trace)
        if read is not None:
            found = found + read
        found = _times(found, d.gain)
        if d.filter is not None:
            found = unfiltered(d.filter, found)
    currents, gradients, at = [], [], 0
    for call in chain.calls:
        steps = len(library.split(module, call.current.detach()))
        if call.current.requires_grad:
            currents.append(call.current)
            part = library.join(module, found[at : at + steps])
            gradients.append(part.reshape(call.current.shape))
        at += steps
    return currents, gradients


def _taken(call: Call) -> Tensor:
    """The gradient of the spikes of a call, which is cleared."""
    grad, call.spikes.grad = call.spikes.grad, None
    return torch.zeros_like(call.spikes) if grad is None else grad


def _reads(chain: Chain, trace: Trace) -> Tensor | None:
    """The gradient of the current by way of what reads the membrane; None if nothing does.

    It passes through time with the surrogate of the layer, whatever the rule is: rules are about
    spikes.
    """
    layer, steps = chain.layer, len(trace.spikes)
    before: list[Tensor | None] = [None] * steps
    after: list[Tensor | None] = [None] * steps
    at, any_read = 0, False
    for call in chain.calls:
        length = len(layer.library.split(layer.module, call.current.detach()))
        for read in call.reads:
            grad, read.value.grad = read.value.grad, None
            if grad is None or not bool(grad.any()):
                continue
            if read.role == "other":
                raise Unknown("a state besides the membrane is read")
            any_read = True
            into = before if read.role == "before reset" else after
            here = range(at, at + length) if read.every else [at + length - 1]
            for t, part in zip(here, grad if read.every else [grad], strict=True):
                held = into[t]
                into[t] = part if held is None else held + part
        at += length
    if not any_read:
        return None
    derivative = surrogate_derivative(trace, trace.surrogate)
    nothing = torch.zeros_like(trace.spikes)
    return through_time(nothing, trace, derivative, membrane_grad=before, reset_grad=after)


class Replay(torch.autograd.Function):
    """Logits of a cut pass, whose backward pass goes through the rules of the layers."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        layers: Mapping[str, Layer],
        network: Callable[[Tensor], Tensor],
        settings: Sequence[Any],
    ) -> Tensor:
        """Logits `[batch, class]`; `settings` are the rules and surrogates to be used, by layer."""
        run = Pass(layers)
        with torch.enable_grad():
            inside = images.detach().clone().requires_grad_()
            with handled(layers, run.handler), in_one_line():
                logits = network(inside.clone())
        ctx.held = run, inside, logits, settings
        return logits.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of the images."""
        run, inside, logits, settings = ctx.held
        with using(settings), in_one_line():
            found = backward(run, inside, logits, grads[0])
        return found, None, None, None


@contextmanager
def in_one_line() -> Iterator[None]:
    """Say in one line that a pass is another than the one that was checked.

    Raises:
        InputError: What happened in the block is not known.
    """
    try:
        yield
    except Unknown as unknown:
        raise InputError(
            f"the estimator cannot reach the neurons of this network ({unknown}): attack it with "
            "--from none, by its own gradient."
        ) from None


def settings_of(layers: Mapping[str, Layer]) -> list[tuple[Layer, Any, Any]]:
    """The rules and surrogates that are set now."""
    return [(layer, layer.rule, layer.surrogate) for layer in layers.values()]


@contextmanager
def using(settings: Sequence[tuple[Layer, Any, Any]]) -> Iterator[None]:
    """Set the rules and surrogates of layers inside the block, as they were at a forward pass."""
    now = [(layer, layer.rule, layer.surrogate) for layer, _, _ in settings]
    try:
        for layer, rule, surrogate in settings:
            layer.rule, layer.surrogate = rule, surrogate
        yield
    finally:
        for layer, rule, surrogate in now:
            layer.rule, layer.surrogate = rule, surrogate
