"""Two networks that differ in anything that a pass or a gradient reads are two networks."""

from __future__ import annotations

import functools
import importlib
import logging
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import robustsnn
from robustsnn.evaluation.plan import Plan, prepare
from robustsnn.evaluation.request import Request
from robustsnn.models.checkpoint import load_model
from robustsnn.models.function import fixed_images, function_of
from robustsnn.models.shapes import Shape, Shaped
from robustsnn.records.runs import load_runs
from robustsnn.reporting.sentences import flag_sentences
from robustsnn.snn.surrogate import Arctan
from tests.foreign.networks import needs, quiet

IMAGES = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(3))
LABELS = torch.arange(4) % 3


def plan_of(network: nn.Module, **settings: Any) -> Plan:
    return prepare(Request.of(network, (IMAGES, LABELS), attack="fgsm", **settings))


def identity(network: nn.Module) -> str:
    return plan_of(network).identity


class Plain(nn.Module):
    """A linear classifier, whose forward pass the tests change in one thing each."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.linear = nn.Linear(16, 3)
        self.linear.weight.data = torch.randn(3, 16, generator=generator)
        self.linear.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        return logits


def holding(value: Any) -> nn.Module:
    """A factor that lies in an attribute, in whatever holds it."""

    class Holding(Plain):
        def forward(self, x: Tensor) -> Tensor:
            held: Any = self.held
            while not isinstance(held, float | Tensor):
                if isinstance(held, dict):
                    held = held["factor"]
                elif isinstance(held, list | tuple | np.ndarray):
                    held = held[0].item() if isinstance(held, np.ndarray) else held[0]
                else:
                    held = held.factor
            return super().forward(x) * held

    network = Holding()
    network.held = value
    return network


def number(factor: float) -> nn.Module:
    return holding(factor)


def tensor(factor: float) -> nn.Module:
    return holding(torch.tensor(factor))


def in_a_dict(factor: float) -> nn.Module:
    network: Any = holding({"factor": 1.0})
    network.held["factor"] = factor
    return network  # type: ignore[no-any-return]


def in_a_list(factor: float) -> nn.Module:
    network: Any = holding([1.0])
    network.held[0] = factor
    return network  # type: ignore[no-any-return]


def in_an_array(factor: float) -> nn.Module:
    return holding(np.array([factor]))


def in_an_object(factor: float) -> nn.Module:
    return holding(types.SimpleNamespace(factor=factor))


class Slotted:
    __slots__ = ("factor",)

    def __init__(self, factor: float) -> None:
        self.factor = factor


def in_a_slot(factor: float) -> nn.Module:
    return holding(Slotted(factor))


def buffer_that_is_not_saved(factor: float) -> nn.Module:
    network = holding(1.0)
    del network.held
    network.register_buffer("held", torch.tensor(factor), persistent=False)
    return network


def class_attribute(factor: float) -> nn.Module:
    kind = type(holding(1.0))
    network = type("Holding", (kind,), {"held": factor})()
    return network  # type: ignore[no-any-return]


def lambda_on_the_instance(factor: float) -> nn.Module:
    network: Any = Plain()
    network.forward = lambda x: Plain.forward(network, x) * factor
    return network  # type: ignore[no-any-return]


def code_of_a_lambda(factor: float) -> nn.Module:
    network: Any = Plain()
    more: Callable[[Tensor], Tensor] = (lambda x: x * 1.0) if factor == 1 else (lambda x: x * 1.5)
    network.linear.forward = lambda x: more(nn.Linear.forward(network.linear, x))
    return network  # type: ignore[no-any-return]


def method_on_the_instance(factor: float) -> nn.Module:
    network: Any = Plain()

    def forward(self: Any, x: Tensor) -> Tensor:
        return Plain.forward(self, x) * factor

    network.forward = types.MethodType(forward, network)
    return network  # type: ignore[no-any-return]


def default_argument(factor: float) -> nn.Module:
    class Default(Plain):
        def forward(self, x: Tensor, by: float = factor) -> Tensor:
            return super().forward(x) * by

    return Default()


def partial(factor: float) -> nn.Module:
    network: Any = Plain()
    network.forward = functools.partial(_times, network, by=factor)
    return network  # type: ignore[no-any-return]


def _times(network: nn.Module, x: Tensor, by: float) -> Tensor:
    return Plain.forward(network, x) * by  # type: ignore[arg-type]


def subclass(factor: float) -> nn.Module:
    class Changed(Plain):
        if factor != 1:

            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) * 1.5

    return Changed()


def hook(factor: float) -> nn.Module:
    network = Plain()
    network.linear.register_forward_hook(lambda module, given, out: out * factor)
    return network


def hook_before(factor: float) -> nn.Module:
    network = Plain()
    network.register_forward_pre_hook(lambda module, given: (given[0] * factor,))
    return network


def hook_of_the_gradient(factor: float) -> nn.Module:
    network = Plain()

    def scale(module: nn.Module, inner: Any, outer: Any) -> Any:
        return tuple(None if gradient is None else gradient * factor for gradient in inner)

    network.linear.register_full_backward_hook(scale)
    return network


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor


def parametrisation(factor: float) -> nn.Module:
    network = Plain()
    parametrize.register_parametrization(network.linear, "weight", Scaled(factor))
    return network


def module_in_a_list(factor: float) -> nn.Module:
    class Hidden(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = [nn.Linear(16, 16, bias=False)]
            self.hidden[0].weight.data = torch.eye(16) * factor

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.hidden[0](x.flatten(1)))

    return Hidden()


def branch_that_is_not_taken(factor: float) -> nn.Module:
    class Clipped(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.most = 1e6 * factor

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).clamp(max=self.most)

    return Clipped()


class Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        return (x > 0).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grads[0] / (1 + ctx.slope * x.abs()) ** 2, None


def slope_of_a_surrogate(factor: float) -> nn.Module:
    class Spiking(Plain):
        def forward(self, x: Tensor) -> Tensor:
            spikes: Tensor = Fire.apply(super().forward(x), factor)
            return spikes

    return Spiking()


def kind_of_a_surrogate(factor: float) -> nn.Module:
    def fire(x: Tensor) -> Tensor:
        soft = torch.sigmoid(x) if factor == 1 else torch.tanh(x)
        return soft + ((x > 0).float() - soft).detach()

    class Spiking(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return fire(super().forward(x))

    return Spiking()


def detached(factor: float) -> nn.Module:
    class Partly(Plain):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y + (x.mean() if factor == 1 else x.mean().detach())

    return Partly()


def type_of_the_weights(factor: float) -> nn.Module:
    return Plain() if factor == 1 else Plain().double()


def normalisation_in_training_mode(factor: float) -> nn.Module:
    class Stuck(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> Stuck:
            return super().train(factor != 1)

    return nn.Sequential(nn.Flatten(), Stuck(16), nn.Linear(16, 3, bias=False))


def decoding(factor: float) -> nn.Module:
    class Sequence(Plain):
        def forward(self, x: Tensor) -> Tensor:
            one = super().forward(x)
            return torch.stack([one, one * 0.5])

    return Shaped(Sequence(), Shape(decode="membrane-sum" if factor == 1 else "membrane-max"))


def encoding(factor: float) -> nn.Module:
    shape = Shape(steps=3, encode="direct" if factor == 1 else "latency", decode="membrane-sum")
    return Shaped(Plain(), shape)


def text(factor: float) -> nn.Module:
    class Padded(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.mode = "constant" if factor == 1 else "replicate"

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.pad(x, (1, 1), mode=self.mode)[..., :-2])

    return Padded()


BUILDERS = [
    *(number, tensor, in_a_dict, in_a_list, in_an_array, in_an_object, in_a_slot),
    *(buffer_that_is_not_saved, class_attribute, lambda_on_the_instance, code_of_a_lambda),
    *(method_on_the_instance, default_argument, partial, subclass, hook, hook_before),
    *(hook_of_the_gradient, parametrisation, module_in_a_list, branch_that_is_not_taken),
    *(slope_of_a_surrogate, kind_of_a_surrogate, detached, type_of_the_weights),
    *(normalisation_in_training_mode, decoding, encoding, text),
]


@pytest.mark.parametrize("build", BUILDERS)
def test_what_a_pass_reads_is_part_of_the_identity(build: Callable[[float], nn.Module]) -> None:
    torch.manual_seed(0)
    one = plan_of(build(1.0))
    torch.manual_seed(0)
    other = plan_of(build(1.5))
    torch.manual_seed(0)
    again = build(1.0)
    assert plan_of(again).identity == one.identity
    assert other.identity != one.identity
    images = IMAGES.to(next(again.parameters()).dtype, copy=True)
    again(images.requires_grad_()).sum().backward()
    if build is not normalisation_in_training_mode:  # whose buffers a pass changes
        assert plan_of(again).identity == one.identity
    # What the code reads tells them apart even where no image shows the difference.
    assert one.basis != other.basis


class Kept(Plain):
    """What it keeps and counts is no part of what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.born, self.log = 0, time.time_ns(), logging.getLogger("kept")
        self.membrane: Tensor | None = None
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(x))
        self.log.debug("called")
        self.membrane = super().forward(x)
        return self.membrane

    def describe(self) -> str:
        return f"{self.born} {self.calls}"


def test_states_counts_and_dates_are_not() -> None:
    network = Kept()
    before = identity(network)
    assert identity(Kept()) == before
    for _ in range(3):
        network(IMAGES).sum().backward()
    logging.getLogger("kept").addHandler(logging.NullHandler())
    assert identity(network) == before


def test_a_network_that_draws_is_the_same_in_every_run() -> None:
    class Declared(Plain):
        stochastic = True

        def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
            shift = torch.zeros(len(x)) if keys is None else keys.double().sin().float()
            return super().forward(x) + shift[:, None]

    class Silent(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand(()) + float(np.random.random())

    class Clock(Plain):
        def forward(self, x: Tensor) -> Tensor:
            # Nanoseconds within a millisecond: float32 keeps every digit, on any machine.
            return super().forward(x) + time.perf_counter_ns() % 1_000_003

    for kind in (Declared, Silent, Clock):
        assert identity(kind()) == identity(kind())
    clock = plan_of(Clock()).function
    assert clock is not None and clock.logits == "" and clock.contents


def test_neither_threads_nor_the_generator_matter() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    try:
        found = set()
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            torch.manual_seed(number)
            found.add(identity(Plain()))
            assert torch.get_num_threads() == number
        assert len(found) == 1
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)


def test_networks_without_a_gradient_or_with_an_odd_shape_have_one() -> None:
    class Cut(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    class Pair(Plain):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    found = function_of(Cut, (1, 4, 4))
    assert found is not None and found.gradient and found.logits
    assert function_of(Plain, (1, 4, 4)) != found
    pair = function_of(Pair, (1, 4, 4))
    assert pair is not None and pair.logits == ""


def test_fixed_images_are_pixels_and_differ() -> None:
    for shape in ((1, 28, 28), (3, 32, 32), (2, 1, 1), (1, 5, 7)):
        found = fixed_images(6, shape)
        assert found.shape == (6, *shape) and bool(((found >= 0) & (found <= 1)).all())
        assert torch.equal(found, fixed_images(6, shape))
    assert len(fixed_images(8, (1, 8, 8)).flatten(1).unique(dim=0)) == 8


def test_a_network_of_ours_counts_by_its_weights_until_it_is_changed() -> None:
    name = "fashion-mnist/vgg5-snn"
    assert function_of(lambda: load_model(name), (1, 28, 28)) is None
    changed = load_model(name)
    for layer in changed.spiking_layers().values():  # type: ignore[operator]
        layer.surrogate = Arctan(0.7)
    found = function_of(lambda: changed, (1, 28, 28))
    assert found is not None and found.contents
    hooked = load_model(name)
    hooked.register_forward_hook(lambda module, given, out: out * 2)
    assert function_of(lambda: hooked, (1, 28, 28)) is not None


def test_a_substitute_counts_too() -> None:
    suite = {"attack": "transfer:fgsm"}
    plans = [
        prepare(Request.of(Plain(), (IMAGES, LABELS), substitute=number(factor), **suite))
        for factor in (1.0, 1.5)
    ]
    assert plans[0].identity != plans[1].identity


@needs("snntorch")
@pytest.mark.slow
def test_neurons_of_snntorch() -> None:
    snntorch = quiet(__import__)("snntorch")
    from snntorch import surrogate

    def build(**settings: Any) -> nn.Module:
        torch.manual_seed(0)
        given = {"beta": 0.9, "init_hidden": True, **settings}
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3), snntorch.Leaky(**given))

    variants: list[dict[str, Any]] = [
        {},
        {"beta": 0.8},
        {"threshold": 0.5},
        {"reset_mechanism": "zero"},
        {"reset_mechanism": "none"},
        {"reset_delay": False},
        {"spike_grad": surrogate.fast_sigmoid(slope=25)},
        {"spike_grad": surrogate.fast_sigmoid(slope=10)},
        {"spike_grad": surrogate.atan(alpha=3.0)},
        {"graded_spikes_factor": 2.0},
    ]
    found = [identity(build(**settings)) for settings in variants]
    assert len(set(found)) == len(found)
    assert [identity(build(**settings)) for settings in variants] == found


@needs("spikingjelly")
@pytest.mark.slow
def test_neurons_of_spikingjelly() -> None:
    quiet(__import__)("spikingjelly.activation_based.neuron")
    from spikingjelly.activation_based import neuron, surrogate

    def build(**settings: Any) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3), neuron.LIFNode(**settings))

    variants: list[dict[str, Any]] = [
        {},
        {"tau": 3.0},
        {"v_threshold": 0.5},
        {"v_reset": None},
        {"v_reset": -0.5},
        {"detach_reset": True},
        {"decay_input": False},
        {"surrogate_function": surrogate.ATan(alpha=3.0)},
        {"surrogate_function": surrogate.Sigmoid(alpha=2.0)},
    ]
    found = [identity(build(**settings)) for settings in variants]
    assert len(set(found)) == len(found)
    assert [identity(build(**settings)) for settings in variants] == found


def test_an_evaluation_of_a_changed_network_is_another_run(tmp_path: Path) -> None:
    network: Any = number(1.0)
    first = robustsnn.evaluate(network, (IMAGES, LABELS), attack="fgsm", output=tmp_path / "a")
    again = robustsnn.evaluate(network, (IMAGES, LABELS), attack="fgsm", output=tmp_path / "a")
    assert again.reprinted and not first.reprinted
    network.held = -1.0
    with pytest.raises(robustsnn.InputError, match="had other weights or other code"):
        robustsnn.evaluate(network, (IMAGES, LABELS), attack="fgsm", output=tmp_path / "a")


def test_what_names_no_weights_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A factory alone may draw its weights; a file of weights answers that."""
    body = "    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))"
    code = f"from torch import nn\ndef build():\n{body}\n"
    (tmp_path / "unweighted.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    network = importlib.import_module("unweighted").build()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    images = torch.rand(4, 1, 6, 6), torch.zeros(4, dtype=torch.int64)
    for name, told in (("unweighted:build", True), (f"unweighted:build@{tmp_path}/w.pt", False)):
        found = robustsnn.evaluate(name, images, attack="fgsm", output=tmp_path / str(told))
        checks = {row["check"]: row["sentence"] for row in found.manifest.preflight}
        assert ("weights-not-named" in checks) is told
        assert ("weights-not-named" in {flag["flag"] for flag in found.flags}) is told
        # Many factories read their weights themselves, so the level stays as it is.
        reasons = str(found.manifest.diagnosis["because"])
        assert found.level == "B" and "weights" not in reasons
        if told:
            severities = {flag["flag"]: flag["severity"] for flag in found.flags}
            assert severities["weights-not-named"] == "caution"
            said = flag_sentences(load_runs([tmp_path / str(told)]).runs)
            marks = [mark for *_, mark, sentence in said if "are random" in sentence]
            assert marks == ["caution"]
            assert "are random" in checks["weights-not-named"]
            assert "@WEIGHTS" in checks["weights-not-named"]
