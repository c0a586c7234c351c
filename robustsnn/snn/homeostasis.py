"""Neurons whose threshold follows how far the membrane is from what it is on clean images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustsnn.snn.backward_rule import BackwardRule, Trace, ruled
from robustsnn.snn.neuron import LIFOutput, average_over_windows
from robustsnn.snn.surrogate import Sigmoid, Surrogate

#: Where the layer's own backward pass puts its surrogate: at the threshold that a neuron begins
#: with, as published, or at the one that the spike was compared with.
Place = Literal["initial", "live"]


@dataclass(frozen=True)
class _Run:
    """What a layer did: spikes, membranes before reset and thresholds, one for each step."""

    spikes: list[Tensor]
    membranes: list[Tensor]
    thresholds: list[Tensor]
    final: Tensor


class HomeostaticLIF(nn.Module):
    """A layer of threshold-adapting LIF neurons, TA-LIF.

    With the membrane m, the input current I, the leak, the threshold V that starts at `threshold`,
    and the membrane m* that is usual on clean images, the signature:

        m[t] = leak * mpost[t-1] + I[t]
        V[t] = V[t-1] + follows * (m[t] - m*[t])
        o[t] = 1 where m[t] > V[t]
        mpost[t] = m[t] * (1 - o[t])

    An input that drives a neuron harder than clean images do raises its threshold. As published,
    the surrogate is evaluated at the threshold that the neuron began with, and nothing is
    differentiated through the threshold (`place="initial"`); an attack that uses this gradient
    follows another network. Estimators are given the live thresholds in either case.

    Args:
        threshold: The threshold V that each neuron begins with, above 0.
        leak: The factor of the membrane in the next step.
        steps: The number of time steps.
        shape: The shape of the neurons of an image.
        surrogate: The stand-in for the derivative of the spike, in units of `threshold`.
        place: Where the layer's own backward pass puts it.

    Source: Geng and Li, HoSNN, TMLR 2025, equations of the TA-LIF neuron; where its backward pass
    puts the surrogate is read from the published code.

    Examples:
        >>> layer = HomeostaticLIF(1.0, 0.8, steps=2, shape=(3,))
        >>> layer(torch.ones(1, 1, 3), 2)[0].tolist()
        [[[0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0]]]
    """

    signature: Tensor
    threshold: Tensor
    leak: Tensor

    def __init__(
        self,
        threshold: float,
        leak: float,
        steps: int,
        shape: tuple[int, ...],
        surrogate: Surrogate | None = None,
        place: Place = "initial",
    ) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float(threshold)))
        self.register_buffer("leak", torch.tensor(float(leak)))
        self.register_buffer("signature", torch.zeros(steps, *shape))
        #: By how much a threshold follows the membrane, of each neuron; 0 is plain LIF.
        self.follows = nn.Parameter(torch.zeros(shape))
        self.surrogate: Surrogate = surrogate if surrogate is not None else Sigmoid()
        self.place: Place = place
        self.detach_reset = True
        self.rule: BackwardRule | None = None

    def forward(
        self, current: Tensor, steps: int, initial: Tensor | None = None, pool: bool = False
    ) -> LIFOutput:
        """Spikes `[steps, batch, ...]` and the membrane `[batch, ...]` after the last reset.

        Args:
            current: The input current, `[time, batch, ...]` or `[1, batch, ...]` for every step.
            steps: The number of time steps, at most that of the signature.
            initial: The membrane before the first step, `[batch, ...]`; zero if absent.
            pool: Whether to average the spikes over windows of 2 x 2 pixels.
        """
        if self.rule is not None and torch.is_grad_enabled():
            run = partial(self.trace, steps=steps, initial=initial)
            spikes, membrane = ruled(run, current, self.rule)
        else:
            done = self._run(current, steps, initial)
            spikes, membrane = torch.stack(done.spikes), done.final
        return LIFOutput(average_over_windows(spikes) if pool else spikes, membrane)

    @torch.no_grad()
    def trace(self, current: Tensor, steps: int, initial: Tensor | None = None) -> Trace:
        """What the layer does over a sequence, with the threshold of each neuron and step."""
        done = self._run(current, steps, initial)
        return Trace(
            current=current,
            spikes=torch.stack(done.spikes),
            replay=lambda: done.membranes,
            final=done.final,
            threshold=self.threshold,
            leak=self.leak,
            hard=True,
            attached=not self.detach_reset,
            surrogate=self.surrogate,
            live=torch.stack(done.thresholds),
            follows=self.follows.detach(),
        )

    def _run(self, current: Tensor, steps: int, initial: Tensor | None) -> _Run:
        post = torch.zeros_like(current[0]) if initial is None else initial
        threshold = self.threshold.to(current).expand_as(post)
        done = _Run([], [], [], post)
        for t in range(steps):
            membrane = self.leak * post + current[min(t, len(current) - 1)]
            seen = membrane.detach() if self.place == "initial" else membrane
            threshold = threshold + self.follows * (seen - self.signature[t])
            spike = self._spike(membrane, threshold)
            felt = spike.detach() if self.detach_reset else spike
            post = membrane * (1 - felt)
            done.spikes.append(spike)
            done.membranes.append(membrane)
            done.thresholds.append(threshold)
        return _Run(done.spikes, done.membranes, done.thresholds, post)

    def _spike(self, membrane: Tensor, threshold: Tensor) -> Tensor:
        over = (membrane - threshold) / self.threshold
        if self.place == "live":
            return _Spike.apply(over, over, self.surrogate)  # type: ignore[no-any-return]
        # What the threshold learns from, and the input does not: it is zero in the forward pass.
        learnt = threshold - threshold.detach()
        at = (membrane - learnt) / self.threshold - 1
        return _Spike.apply(over.detach(), at, self.surrogate)  # type: ignore[no-any-return]


class _Spike(torch.autograd.Function):
    """A spike where one value is above zero, differentiated by a surrogate at another."""

    @staticmethod
    def forward(ctx: Any, over: Tensor, at: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(at)
        ctx.surrogate = surrogate
        return (over > 0).to(over.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        (at,) = ctx.saved_tensors
        return None, grads[0] * ctx.surrogate.derivative(at), None
