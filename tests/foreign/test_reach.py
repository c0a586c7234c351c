"""Every neuron that is known: the pass is the library's own, and so is the gradient by a rule.

The independent truth is the library: its logits, and its autograd for its own surrogate.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsnn.adversary.victim import Victim
from robustsnn.errors import InputError
from robustsnn.estimators.base import Estimator
from robustsnn.estimators.bptt import Bptt
from robustsnn.estimators.make import make_estimator
from robustsnn.foreign import replay
from robustsnn.foreign.library import Dynamics
from robustsnn.foreign.snntorch import SnnTorch as SnnTorchLibrary
from robustsnn.foreign.wrap import wrap
from tests.foreign.networks import (
    Norse,
    Sinabs,
    SnnTorch,
    SpikingJelly,
    forget,
    images,
    lively,
    needs,
    older_spikingjelly,
    quiet,
)

Make = Callable[[], nn.Module]


def spikingjelly() -> list[Any]:
    found = []
    nodes = [("LIFNode", {}), ("ParametricLIFNode", {"init_tau": 3.0}), ("IFNode", {})]
    for (node, more), mode, reset, detach in itertools.product(
        nodes, "sm", (0.0, None, -0.3), (False, True)
    ):
        for decay in (True, False) if node != "IFNode" else (None,):
            settings = {**more, "v_reset": reset, "detach_reset": detach, "v_threshold": 0.8}
            if decay is not None:
                settings["decay_input"] = decay
            named = f"spikingjelly-{node}-{mode}-{reset}-{detach}-{decay}"
            made = quiet(lambda n=node, m=mode, s=settings: lively(SpikingJelly(m, n, **s), 2))
            found.append(pytest.param(made, id=named, marks=needs("spikingjelly")))
    return found


def snntorch() -> list[Any]:
    found = []
    for hidden, read, reset, delay in itertools.product(
        (False, True), ("spikes", "membranes"), ("subtract", "zero", "none"), (True, False)
    ):
        settings = {"reset_mechanism": reset, "reset_delay": delay, "graded_spikes_factor": 0.7}
        made = quiet(
            lambda h=hidden, r=read, s=settings: lively(SnnTorch(h, r, threshold=0.6, **s), 3)
        )
        named = f"snntorch-Leaky-{hidden}-{read}-{reset}-{delay}"
        found.append(pytest.param(made, id=named, marks=needs("snntorch")))
    for kind, more in (("Synaptic", {"alpha": 0.8}), ("Lapicque", {"R": 5.1, "C": 1e-3 * 5})):
        for reset in ("subtract", "none"):
            settings = {**more, "reset_mechanism": reset}
            if kind == "Lapicque":
                settings |= {"beta": None, "time_step": 1e-3}
            found.append(
                pytest.param(
                    quiet(lambda k=kind, s=settings: _snntorch_kind(k, s)),
                    id=f"snntorch-{kind}-{reset}",
                    marks=needs("snntorch"),
                )
            )
    vector = {"beta": torch.linspace(0.5, 1.2, 12), "threshold": torch.linspace(0.4, 1, 12)}
    made = quiet(lambda: _vectors(vector))
    found.append(pytest.param(made, id="snntorch-vectors", marks=needs("snntorch")))
    return found


def _snntorch_kind(kind: str, settings: dict[str, Any]) -> nn.Module:
    import snntorch as library

    settings = {"beta": 0.9, **settings}
    if settings["beta"] is None:
        settings["beta"] = False
    return lively(SnnTorch(kind=getattr(library, kind), **settings), 3)


def _vectors(settings: dict[str, Tensor]) -> nn.Module:
    """A leak and a threshold for each neuron; a leak above 1 is clamped by the library."""
    import snntorch as library

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.lif = nn.Linear(784, 12), library.Leaky(**settings)
            self.two = nn.Linear(12, 10)

        def forward(self, x: Tensor) -> Tensor:
            mem, found = self.lif.reset_mem(), []
            for _ in range(6):
                spikes, mem = self.lif(self.one(x.flatten(1)), mem)
                found.append(self.two(spikes))
            return torch.stack(found).mean(0)

    return lively(Net(), 2)


def norse() -> list[Any]:
    found = []
    for layers, method, rest in itertools.product(
        (False, True), ("super", "triangle", "tanh", "circ", "heavi_erfc"), (0.0, -0.2)
    ):
        settings = {"method": method, "alpha": 5.0, "v_leak": rest, "v_reset": rest + 0.1}
        if layers and method != "super":
            continue
        made = quiet(lambda la=layers, s=settings: lively(Norse(la, "LIF", **s), 4))
        named = f"norse-LIF-{layers}-{method}-{rest}"
        found.append(pytest.param(made, id=named, marks=needs("norse")))
    for how in ("reset_value", "reset_subtract"):
        made = quiet(lambda h=how: _norse_box(h))
        found.append(pytest.param(made, id=f"norse-LIFBox-{how}", marks=needs("norse")))
    made = quiet(_norse_iaf)
    found.append(pytest.param(made, id="norse-IAF", marks=needs("norse")))
    return found


def _norse_box(how: str) -> nn.Module:
    from norse.torch.functional import lif_box, reset

    chosen = {"reset_method": getattr(reset, how), "v_leak": 0.1, "v_reset": -0.1, "alpha": 5.0}
    return lively(Norse(False, "LIFBox", parameters=lif_box.LIFBoxParameters, **chosen), 6)


def _norse_iaf() -> nn.Module:
    from norse.torch.functional import iaf

    return lively(Norse(False, "IAF", parameters=iaf.IAFParameters, alpha=5.0, v_reset=-0.2), 1)


def sinabs() -> list[Any]:
    found = []
    for squeezed, spike, low, reset in itertools.product(
        (True, False), ("SingleSpike", "MultiSpike"), (None, -0.2), ("Subtract", "Reset")
    ):
        for neuron, more in (("IAF", {}), ("LIF", {"tau_mem": 3.0}), ("LIF", {"tau_mem": 3.0,
                             "tau_syn": 2.0, "norm_input": False})):  # fmt: skip
            made = quiet(
                lambda n=neuron, q=squeezed, k=spike, w=low, r=reset, m=more: _sinabs(
                    n, q, k, w, r, m
                )
            )
            named = f"sinabs-{neuron}-{squeezed}-{spike}-{low}-{reset}-{len(more)}"
            found.append(pytest.param(made, id=named, marks=needs("sinabs")))
    for named, more in (("floor", {"min_v_mem": -0.2}), ("plain", {})):
        made = quiet(lambda m=more: _sinabs_several(m))
        found.append(pytest.param(made, id=f"sinabs-several-{named}", marks=needs("sinabs")))
    return found


def _sinabs_several(more: dict[str, Any]) -> nn.Module:
    """At most two spikes in a step, each of which takes off another amount than the threshold."""
    import sinabs.activation as activation

    how = {"spike_fn": activation.MaxSpike(2), "reset_fn": activation.MembraneSubtract(0.7)}
    return lively(Sinabs("IAF", **how, **more), 4)


def _sinabs(
    neuron: str, squeezed: bool, spike: str, low: float | None, reset: str, more: dict[str, Any]
) -> nn.Module:
    import sinabs.activation as activation

    return lively(
        Sinabs(
            neuron,
            squeezed,
            spike_fn=getattr(activation, spike),
            min_v_mem=low,
            reset_fn=getattr(activation, f"Membrane{reset}")(),
            **more,
        ),
        3,
    )


class ReadsPotentials(SpikingJelly):
    """The potential after each step, which a user reads from the module, and spikes in place."""

    def __init__(self, mode: str, **settings: Any) -> None:
        super().__init__(mode, "IFNode", **settings)
        self.net = self.net[:-1]
        self.last = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        lif: Any = self.net[-1]
        if self.mode == "m":
            self.net(x.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1))
            return self.last(lif.v_seq.mean(0) + lif.v)  # type: ignore[no-any-return]
        total, spikes = torch.zeros(()), self.net(x)
        for _ in range(self.steps - 1):
            total = total + lif.v
            spikes += self.net(x)
        return self.last(total + spikes)  # type: ignore[no-any-return]


class ReadsState(Norse):
    """The potential of the last spiking cell in place of a leaky integrator."""

    def forward(self, x: Tensor) -> Tensor:
        one: Any = None
        two: Any = None
        total = torch.zeros(())
        for _ in range(self.steps):
            z, one = self.one(self.conv(x), one)
            z, two = self.two(self.fc1(self.pool(z).flatten(1)), two)
            total = total + self.fc2(two.v)
        return total


def readers() -> list[Any]:
    found = []
    for mode, reset in itertools.product("sm", (0.0, None)):
        more = {"v_reset": reset, "store_v_seq": True} if mode == "m" else {"v_reset": reset}
        made = quiet(lambda m=mode, s=more: lively(ReadsPotentials(m, **s), 3))
        named = f"spikingjelly-read-{mode}-{reset}"
        found.append(pytest.param(made, id=named, marks=needs("spikingjelly")))
    made = quiet(lambda: lively(ReadsState(v_th=0.3), 6))
    return [*found, pytest.param(made, id="norse-read", marks=needs("norse"))]


EVERY = [*spikingjelly(), *snntorch(), *norse(), *sinabs(), *readers()]


def gradient(network: nn.Module, x: Tensor) -> Tensor:
    """The gradient that the library itself gives; neurons of the older release need training."""
    from robustsnn.foreign.detect import neurons

    for _, module, _ in neurons(network):
        module.train()
    forget(network)
    x = x.clone().requires_grad_()
    weights = torch.linspace(-1, 1, 10)
    (found,) = torch.autograd.grad((network(x) * weights).sum(), x)
    network.eval()
    return found


class ByRule(Estimator):
    """The layer's own surrogate by way of a rule, so that the pass is cut."""

    def rule(self, grad: Tensor, trace: Any) -> Tensor:
        from robustsnn.estimators.bptt import ThroughTime

        return ThroughTime()(grad, trace)


@pytest.mark.parametrize("make", EVERY)
def test_the_rule_gives_the_gradient_of_the_library(make: Make) -> None:
    torch.manual_seed(3)
    network = make().eval().requires_grad_(False)
    x = images()
    forget(network)
    with torch.no_grad():
        theirs = network(x)
    expected = gradient(network, x)
    wrapped = wrap(network, x)
    assert wrapped.reach.caution == ""
    assert wrapped.reach.checks["spikes that differ"] == 0
    assert torch.equal(wrapped(x), theirs)
    inside = x.clone().requires_grad_()
    with ByRule().applied(wrapped):
        logits = wrapped(inside)
    assert torch.equal(logits.detach(), theirs)
    (found,) = torch.autograd.grad((logits * torch.linspace(-1, 1, 10)).sum(), inside)
    assert float(expected.norm()) > 0
    assert float((found - expected).norm() / expected.norm()) < 1e-4
    # `bptt` alone changes nothing, so here the library differentiates where it can.
    inside = x.clone().requires_grad_()
    with Bptt().applied(wrapped):
        logits = wrapped(inside)
    (own,) = torch.autograd.grad((logits * torch.linspace(-1, 1, 10)).sum(), inside)
    assert float((own - expected).norm() / expected.norm()) < 1e-4


ONE_EACH = [
    pytest.param(
        quiet(lambda: lively(SpikingJelly("m", v_threshold=0.3), 3)),
        marks=needs("spikingjelly"),
        id="sj",
    ),
    pytest.param(quiet(lambda: lively(SnnTorch(), 3)), marks=needs("snntorch"), id="snntorch"),
    pytest.param(quiet(lambda: lively(Norse(v_th=0.3), 6)), marks=needs("norse"), id="norse"),
    pytest.param(quiet(lambda: lively(Sinabs(), 3)), marks=needs("sinabs"), id="sinabs"),
]
#: The least mean cosine to the library's own gradient: an estimator that points anywhere is wrong.
ESTIMATORS = {
    "bptt:triangle:width=0.5": 0.2,
    "bptt:arctan:width=0.0796": 0.2,
    "bptt:reset=detached": 0.5,
    "bptt:cut=1": 0.3,
    "bptr:leak=0.2": 0.1,
    "rga": 0.1,
    "hart": 0.1,
    "pdsg": 0.1,
    "assg": 0.2,
    "twin": 0.1,
}


@pytest.mark.parametrize("make", ONE_EACH)
def test_every_estimator_gives_a_gradient_and_leaves_the_pass(make: Make) -> None:
    torch.manual_seed(3)
    x, labels = images(), torch.arange(8)
    wrapped = wrap(make().eval(), x)
    theirs = wrapped(x)

    def by(text: str) -> Tensor:
        victim = Victim(wrapped, make_estimator(text, wrapped), range(8), 8)
        found = victim.gradient(x, labels)
        assert torch.equal(found.logits, theirs), text
        return found.gradient.flatten(1)

    own = by("bptt")
    for text, least in ESTIMATORS.items():
        cosine = nn.functional.cosine_similarity(by(text), own, dim=1)
        assert float(cosine.mean()) > least, (text, float(cosine.mean()))
    for layer in wrapped.spiking_layers().values():
        assert layer.rule is None and layer.surrogate is layer.own and layer.twin is None


@needs("spikingjelly")
@quiet
def test_without_a_gradient_in_evaluation_mode_the_rule_gives_one() -> None:
    wrapped = wrap(lively(SpikingJelly("m"), 2).eval(), images())
    assert wrapped.reach.native is not older_spikingjelly()
    victim = Victim(wrapped, make_estimator("bptt", wrapped), range(8), 8)
    assert bool(victim.gradient(images(), torch.arange(8)).gradient.any())


@needs("snntorch")
@quiet
def test_dynamics_that_are_wrong_make_layers_unreached(monkeypatch: pytest.MonkeyPatch) -> None:
    right = SnnTorchLibrary.dynamics

    def wrong(self: SnnTorchLibrary, module: Any, like: Tensor) -> Dynamics:
        found = right(self, module, like)
        return dataclasses.replace(found, leak=found.leak - 0.1)

    monkeypatch.setattr(SnnTorchLibrary, "dynamics", wrong)
    torch.manual_seed(3)
    wrapped = wrap(lively(SnnTorch(), 3).eval(), images())
    assert not wrapped.reach.reached
    assert "spikes are not those of the dynamics known of its kind" in wrapped.reach.caution


@needs("norse")
@quiet
def test_a_rule_that_is_wrong_makes_layers_unreached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "unfiltered", lambda factor, grad: grad)
    torch.manual_seed(3)
    wrapped = wrap(lively(Norse(), 4).eval(), images())
    assert not wrapped.reach.reached
    assert "of its length off that of the library" in wrapped.reach.caution


@needs("snntorch")
@quiet
def test_a_pass_that_is_not_the_one_that_was_checked_ends_in_one_line() -> None:
    class Later(SnnTorch):
        """The membrane is changed between two steps, once somebody says so."""

        factor = 1.0

        def forward(self, x: Tensor) -> Tensor:
            mem, found = self.lif1.reset_mem(), []
            for _ in range(self.steps):
                spikes, mem = self.lif1(self.conv(x), mem)
                found.append(self.fc(self.pool(spikes).flatten(1)))
                mem = mem if self.factor == 1 else self.factor * mem
            return torch.stack(found).sum(0)

    torch.manual_seed(3)
    network = lively(Later(), 3).eval()
    wrapped = wrap(network, images())
    assert [*wrapped.spiking_layers()] == ["lif1"]
    network.factor = 0.5  # type: ignore[assignment]
    victim = Victim(wrapped, make_estimator("bptr", wrapped), range(8), 8)
    with pytest.raises(InputError, match="its state is changed between its calls"):
        victim.gradient(images(), torch.arange(8))
    assert "its state is changed between its calls" in wrap(network, images()).reach.caution
