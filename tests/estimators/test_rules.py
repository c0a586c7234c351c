"""Every backward rule against its closed form, written a second time neuron by neuron."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustsnn.adversary.victim import Victim
from robustsnn.estimators.assg import Adaptive, Assg
from robustsnn.estimators.bptr import Bptr
from robustsnn.estimators.bptt import ThroughTime
from robustsnn.estimators.catalogue import estimator_names
from robustsnn.estimators.hart import Hart
from robustsnn.estimators.make import make_estimator
from robustsnn.estimators.pdsg import Pdsg
from robustsnn.estimators.rga import Rga
from robustsnn.snn.backward_rule import Trace, ruled, spiking_layers
from robustsnn.snn.lif_reference import ReferenceLIF
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.snn.neuron import LIF
from robustsnn.snn.surrogate import Surrogate, Triangle, make_surrogate

T, B, C, H, W = 5, 3, 2, 3, 4


def layer(reset="soft", detach=True, threshold=0.8, leak=0.9) -> LIF:
    return LIF(threshold, leak, Triangle(width=0.7, amplitude=0.6), reset, detach).double()


def traced(made: LIF, shape=(C, H, W), steps=T, static=False, seed=0, batch=B) -> Trace:
    generator = torch.Generator().manual_seed(seed)
    size = (1 if static else steps, batch, *shape)
    current = torch.randn(size, generator=generator, dtype=torch.float64) * 0.7 + 0.4
    return made.trace(current, steps)


def gradient_of_spikes(trace: Trace, seed=1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(trace.spikes.shape, generator=generator, dtype=torch.float64)


class Spike(torch.autograd.Function):
    """A Heaviside whose derivative comes as a tensor."""

    @staticmethod
    def forward(ctx, u, threshold, derivative):
        ctx.save_for_backward(derivative)
        return (u > threshold).to(u)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None, None


class MeanOfGradients(torch.autograd.Function):
    """Identity on `[time, ...]`; its gradient is averaged over time."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.mean(0, keepdim=True).expand_as(grad)


def by_autograd(
    trace: Trace, grad, derivative, attached=None, cut=None, average=False, detach_membrane=False
):
    """The gradient of the current from a plain loop, differentiated by torch."""
    attached = trace.attached if attached is None else attached
    current = trace.current.clone().requires_grad_()
    x = MeanOfGradients.apply(current) if average else current
    post = torch.zeros_like(x[0])
    out = []
    for t in range(len(trace.spikes)):
        if detach_membrane or (cut is not None and t % cut == 0):
            post = post.detach()
        u = trace.leak * post + x[min(t, len(x) - 1)]
        o = Spike.apply(u, trace.threshold, derivative[t])
        out.append(o)
        r = o if attached else o.detach()
        post = u * (1 - r) if trace.hard else u - trace.threshold * r
    torch.autograd.backward(torch.stack(out), grad)
    return current.grad


@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("surrogate", [None, "arctan"])
@pytest.mark.parametrize("cut", [None, 1, 2, 9])
@pytest.mark.parametrize("attached", [None, True, False])
def test_through_time_is_autograd_of_the_loop(reset, detach, surrogate, cut, attached):
    trace = traced(layer(reset, detach))
    made = None if surrogate is None else make_surrogate(surrogate, width=0.3)
    used: Surrogate = trace.surrogate if made is None else made
    v = float(trace.threshold)
    derivative = [used.derivative(u / v - 1) / v for u in trace.membranes]
    grad = gradient_of_spikes(trace)
    found = ThroughTime(made, attached, cut)(grad, trace)
    torch.testing.assert_close(found, by_autograd(trace, grad, derivative, attached, cut))


@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("static", [True, False])
def test_a_rule_of_the_own_surrogate_is_the_layer_s_own_backward(reset, static):
    made = layer(reset)
    current = traced(made, static=static).current.clone().requires_grad_()
    options = (made.threshold, made.leak, None, T, made.surrogate, reset == "hard", False)
    spikes, final = ReferenceLIF.apply(current, *options)
    grad = torch.randn_like(spikes)
    (expected,) = torch.autograd.grad(spikes, current, grad)
    made.rule = ThroughTime()
    with_rule, final_too = made(current, T)
    assert torch.equal(with_rule, spikes) and torch.equal(final_too, final)
    (found,) = torch.autograd.grad(with_rule, current, grad)
    torch.testing.assert_close(found, expected)


def test_a_leak_that_takes_part_of_the_input_scales_the_gradient():
    trace = traced(layer())
    halved = dataclasses.replace(trace, gain=0.5)
    grad = gradient_of_spikes(trace)
    torch.testing.assert_close(ThroughTime()(grad, halved), 0.5 * ThroughTime()(grad, trace))


def test_bptr_passes_where_a_neuron_fired():
    trace = traced(layer(threshold=1.2))
    grad = gradient_of_spikes(trace)
    fired = trace.spikes.numpy().max(0) > 0
    assert 0 < fired.mean() < 1
    np.testing.assert_allclose(Bptr().rule(grad, trace), grad.numpy() * fired)
    expected = grad.numpy() * np.where(fired, 1.0, 0.1)
    np.testing.assert_allclose(Bptr(0.1).rule(grad, trace), expected)


@pytest.mark.parametrize(("threshold", "leak"), [(1.0, 0.5), (1.0, 1.0), (0.6, 0.8)])
@pytest.mark.parametrize("static", [True, False])
def test_rga_is_the_derivative_of_its_rate(threshold, leak, static):
    trace = traced(layer(threshold=threshold, leak=leak), static=static)
    grad = gradient_of_spikes(trace)
    found = Rga().rule(grad, trace)
    means = trace.current.mean(0).flatten().tolist()
    slopes = []
    for mean in means:
        if (1 - leak) * threshold <= mean <= 2 * threshold:
            top = 1 - 0.2 * threshold + 0.2 * threshold * leak
            slopes.append(top / ((leak + 1) * threshold))
        else:
            slopes.append(0.2 if 0 <= mean < (1 - leak) * threshold else 0.0)
    expected = grad.flatten(1).numpy() * np.array(slopes)
    np.testing.assert_allclose(found.flatten(1), expected)
    assert len(set(slopes)) >= 2


def test_rga_of_integrate_and_fire_is_a_half_up_to_twice_the_threshold():
    trace = traced(layer(threshold=1.0, leak=1.0))
    grad = torch.ones_like(trace.spikes)
    mean = trace.current.mean(0)
    expected = 0.5 * ((mean >= 0) & (mean <= 2)).double()
    torch.testing.assert_close(Rga().rule(grad, trace)[0], expected)


@pytest.mark.parametrize("width", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("static", [True, False])
def test_hart_is_autograd_with_averaged_gradients_and_no_membrane_path(width, static):
    trace = traced(layer(), static=static)
    grad = gradient_of_spikes(trace)
    v = float(trace.threshold)
    derivative = [(width - (u / v - 1).abs()).clamp(min=0) / width**2 / v for u in trace.membranes]
    whole = dataclasses.replace(trace, current=trace.current.expand(T, *trace.current.shape[1:]))
    expected = by_autograd(whole, grad, derivative, average=True, detach_membrane=True)
    torch.testing.assert_close(Hart(width).rule(grad, trace), expected)


@pytest.mark.parametrize("shape", [(C, H, W), (7,)])
@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_pdsg_is_a_gaussian_as_wide_as_the_membranes_spread(shape, reset):
    trace = traced(layer(reset), shape)
    grad = gradient_of_spikes(trace)
    u = np.stack([m.numpy() for m in trace.membranes]) - float(trace.threshold)
    derivative = np.zeros_like(u)
    for t in range(T):
        for image in range(B):
            parts = range(C) if len(shape) == 3 else [slice(None)]
            for part in parts:
                sigma = np.std(u[: t + 1, image, part])
                x = u[t, image, part]
                bell = np.exp(-((x - sigma / 2) ** 2) / (2 * sigma**2))
                derivative[t, image, part] = bell / (math.sqrt(2 * math.pi) * sigma)
    expected = by_autograd(trace, grad, [torch.from_numpy(d) for d in derivative])
    torch.testing.assert_close(Pdsg().rule(grad, trace), expected)


def test_pdsg_takes_one_where_nothing_is_spread_and_does_not_see_the_batch():
    made = layer()
    trace = made.trace(torch.full((T, 2, 4), 0.3, dtype=torch.float64), T)
    assert Pdsg().rule(torch.ones_like(trace.spikes), trace).isfinite().all()
    trace = traced(layer())
    grad = gradient_of_spikes(trace)
    together = Pdsg().rule(grad, trace)
    alone = made.trace(trace.current[:, 1:2], T)
    torch.testing.assert_close(Pdsg().rule(grad[:, 1:2], alone), together[:, 1:2])


class Written:
    """ASSG a second time, number by number, for one image."""

    def __init__(self, vanishing):
        self.omega = 2 / math.pi * math.tan(math.pi * vanishing)
        self.mean: dict[tuple[int, ...], float] = {}
        self.deviation: dict[tuple[int, ...], float] = {}
        self.frozen = False

    def derivative(self, u, threshold):
        found = np.zeros_like(u)
        for at in np.ndindex(*u.shape):
            z = u[at] / threshold - 1
            if not self.frozen:
                mean = 0.9 * self.mean.get(at, 1.0) + 0.1 * abs(z)
                past = self.deviation.get(at, 0.0)
                self.deviation[at] = 0.9 * past + 0.1 * abs(abs(z) - mean)
                self.mean[at] = mean
            mean, deviation = self.mean[at], self.deviation[at]
            alpha = self.omega / (mean + 1.5 * deviation + 1e-4)
            found[at] = alpha / 2 / (1 + (math.pi * alpha * z / 2) ** 2) / threshold
        return found


def test_assg_remembers_each_image_through_a_shrinking_batch_and_forgets_on_a_restart():
    rule = Adaptive(0.425)
    written = [Written(0.425) for _ in range(4)]
    made = layer()
    for call, rows in enumerate([[0, 1, 2, 3], [0, 1, 2, 3], [1, 3], [3, 1], [3]]):
        if call == 3:
            rule.forget(torch.tensor([3]))
            written[3] = Written(0.425)
        trace = traced(made, seed=call, batch=len(rows))
        grad = gradient_of_spikes(trace, seed=call)
        u = np.stack([m.numpy() for m in trace.membranes])
        derivative = np.stack(
            [
                written[row].derivative(u[:, i], float(trace.threshold))
                for i, row in enumerate(rows)
            ],
            axis=1,
        )
        expected = by_autograd(trace, grad, [torch.from_numpy(d) for d in derivative])
        torch.testing.assert_close(rule(grad, trace, "layer", torch.tensor(rows)), expected)


def test_assg_over_draws_remembers_the_first_draw_alone():
    rule, other = Adaptive(0.425), Adaptive(0.425)
    made = layer()
    trace = traced(made, batch=4)
    grad = gradient_of_spikes(trace)
    found = rule(grad, trace, "layer", torch.tensor([0, 1, 0, 1]))
    first = made.trace(trace.current[:, :2], T)
    expected = other(grad[:, :2], first, "layer", torch.tensor([0, 1]))
    torch.testing.assert_close(found[:, :2], expected)
    for mine, theirs in zip(rule._memory["layer"], other._memory["layer"], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_assg_stays_finite_where_the_gradient_is_zero_or_the_membrane_huge():
    rule = Adaptive(0.45)
    trace = traced(layer())
    far = dataclasses.replace(trace, current=1e30 * trace.current)
    for some in (trace, far):
        found = rule(torch.zeros_like(trace.spikes), some, "layer", torch.arange(B))
        assert torch.equal(found, torch.zeros_like(found))


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 0.48), st.floats(0.01, 3.0))
def test_assg_keeps_the_vanishing_degree_that_it_promises(vanishing, distance):
    # At a membrane that stands still, G(alpha |z|) = (2/pi) atan(pi alpha |z| / 2) tends to
    # 2 * vanishing at most: the code's argument is half of the theory's A.
    rule = Adaptive(vanishing)
    made = layer(threshold=1.0, leak=0.0)
    trace = made.trace(torch.full((1, 1, 1), 1.0 + distance, dtype=torch.float64), 1)
    for _ in range(300):
        found = rule(torch.ones_like(trace.spikes), trace, "layer", torch.tensor([0]))
    omega = 2 / math.pi * math.tan(math.pi * vanishing)
    mean, deviation = (float(m.squeeze()) for m in rule._memory["layer"])
    alpha = omega / (mean + 1.5 * deviation + 1e-4)
    assert 2 / math.pi * math.atan(math.pi * alpha * distance / 2) <= 2 * vanishing + 1e-9
    expected = alpha / 2 / (1 + (math.pi * alpha * distance / 2) ** 2)
    assert float(found) == pytest.approx(expected, rel=1e-6)


class Foreign(nn.Module):
    """Integrate-and-fire neurons of another hand: `U[t] = (1 - k) U + k I`, reset to zero."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = k
        self.threshold = torch.tensor(0.5, dtype=torch.float64)
        self.surrogate: Surrogate = Triangle()
        self.rule = None

    def run(self, current: torch.Tensor) -> Trace:
        post = torch.zeros_like(current[0])
        spikes, membranes = [], []
        for step in current:
            u = (1 - self.k) * post + self.k * step
            membranes.append(u)
            spikes.append((u > self.threshold).to(u))
            post = u * (1 - spikes[-1])
        return Trace(
            current, torch.stack(spikes), lambda: membranes, post, self.threshold,
            torch.tensor(1 - self.k, dtype=torch.float64), True, False, self.surrogate, self.k,
        )  # fmt: skip

    def forward(self, current: torch.Tensor) -> torch.Tensor:
        rule = ThroughTime() if self.rule is None else self.rule
        return ruled(self.run, current, rule)[0]


class ForeignNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(16, 12, dtype=torch.float64)
        nn.init.normal_(self.first.weight)
        self.neurons = Foreign(0.6)
        self.last = nn.Linear(12, 3, dtype=torch.float64)

    def spiking_layers(self):
        return {"neurons": self.neurons}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        current = self.first(images.flatten(1)).expand(T, -1, -1)
        logits: torch.Tensor = self.last(self.neurons(current)).mean(0)
        return logits


@pytest.mark.parametrize(
    "text",
    [
        "bptt", "bptt:arctan:width=0.3", "bptt:reset=attached", "bptt:cut=1", "bptr", "rga",
        "hart:width=0.5", "pdsg", "assg",
    ],
)  # fmt: skip
def test_a_foreign_network_that_traces_itself_takes_every_estimator(text):
    made = ForeignNetwork()
    images = torch.rand(4, 1, 4, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0])
    victim = Victim(made, make_estimator(text, made), range(4))
    found = victim.gradient(images, labels)
    torch.testing.assert_close(found.logits, made(images).detach())
    assert bool((found.gradient.flatten(1) != 0).any(1).all())
    assert made.neurons.rule is None and made.neurons.surrogate == Triangle()
    # The same by autograd of the loop, for the one whose derivative is plain.
    if text == "bptt":
        x = images.clone().requires_grad_()
        current = made.first(x.flatten(1)).expand(T, -1, -1)
        trace = made.neurons.run(current.detach())
        derivative = [Triangle().derivative(u / 0.5 - 1) / 0.5 for u in trace.membranes]
        post, out = torch.zeros_like(current[0]), []
        for t in range(T):
            u = 0.4 * post + 0.6 * current[t]
            out.append(Spike.apply(u, made.neurons.threshold, derivative[t]))
            post = u * (1 - out[-1].detach())
        logits = made.last(torch.stack(out)).mean(0)
        nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
        torch.testing.assert_close(found.gradient, x.grad)


def network(encoding="direct", steps=4) -> Network:
    torch.manual_seed(0)
    half = (0.5,)
    made = Network(
        NetworkConfig(
            architecture="resnet12", kind="snn", classes=3, image=(1, 8, 8), widths=(4, 4, 4, 4),
            classifier=(), mean=half, std=half, encoding=encoding, time_steps=steps,
        )
    )  # fmt: skip
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            # The published initialisation leaves so small a network silent.
            nn.init.normal_(module.weight, std=0.8 / module.weight[0].numel() ** 0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
        elif isinstance(module, LIF):
            module.threshold.data.fill_(0.3)
    return made.double().eval()


RULED = ["bptt:cut=1", "bptt:reset=attached,cut=2", "bptr:leak=0.1", "rga", "hart", "pdsg", "assg"]


#: These, and every other one that ships but the network's own and those that follow no spike:
#: one more file is one more case.
EVERY = [
    *RULED,
    *(
        name
        for name in estimator_names()
        if name not in ("bptt", "backprop", "spsa")
        and name not in {text.partition(":")[0] for text in RULED}
    ),
]


@pytest.mark.parametrize("text", EVERY)
@pytest.mark.parametrize("encoding", ["direct", "poisson"])
def test_an_estimator_changes_no_logit_leaves_nothing_behind_and_treats_images_alike(
    text, encoding
):
    made = network(encoding)
    images = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    labels = torch.arange(5) % 3
    plain = Victim(made, make_estimator("bptt", made), range(5)).gradient(images, labels)
    found = Victim(made, make_estimator(text, made), range(5)).gradient(images, labels)
    assert torch.equal(found.logits, plain.logits)
    assert torch.equal(found.loss, plain.loss)
    assert not torch.allclose(found.gradient, plain.gradient, atol=0)
    assert bool((found.gradient != 0).any())
    for layer in spiking_layers(made).values():
        assert layer.rule is None and "forward" not in vars(layer)
    small = Victim(made, make_estimator(text, made), range(5), micro_batch=2)
    torch.testing.assert_close(small.gradient(images, labels).gradient, found.gradient)


def test_a_temporal_cut_longer_than_the_sequence_is_the_whole_gradient():
    made = network()
    images, labels = torch.rand(3, 1, 8, 8, dtype=torch.float64), torch.arange(3)
    whole = Victim(made, make_estimator("bptt", made), range(3)).gradient(images, labels)
    cut = Victim(made, make_estimator("bptt:cut=99", made), range(3)).gradient(images, labels)
    torch.testing.assert_close(cut.gradient, whole.gradient)


def test_recomputation_does_not_cut_what_a_rule_sees():
    made = network()
    images, labels = torch.rand(3, 1, 8, 8, dtype=torch.float64), torch.arange(3)
    expected = Victim(made, make_estimator("rga", made), range(3)).gradient(images, labels)
    made.recompute = 2
    found = Victim(made, make_estimator("rga", made), range(3)).gradient(images, labels)
    assert made.recompute == 2
    torch.testing.assert_close(found.gradient, expected.gradient)


def test_assg_under_attack_is_that_of_each_image_alone():
    made = network()
    images, labels = torch.rand(4, 1, 8, 8, dtype=torch.float64), torch.arange(4) % 3
    together = Victim(made, Assg(), range(4), micro_batch=3)
    alone = [Victim(made, Assg(), [i]) for i in range(4)]
    for call in range(3):
        keep = torch.tensor([0, 1, 2, 3] if call < 2 else [3, 1])
        found = together.select(keep).gradient(images[keep] + 0.01 * call, labels[keep]).gradient
        for place, i in enumerate(keep.tolist()):
            own = alone[i].gradient(images[[i]] + 0.01 * call, labels[[i]]).gradient
            torch.testing.assert_close(found[[place]], own)


@pytest.mark.parametrize("kind", ["fused", "reference"])
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 7), (600,)])
def test_compiled_and_plain_assg_are_the_written_one(
    monkeypatch, kind, reset, detach, static, shape
):
    monkeypatch.setenv("ROBUSTSNN_LIF", kind)
    rule, made = Adaptive(0.45), layer(reset, detach)
    written = [Written(0.45) for _ in range(3)]
    for call, rows in enumerate([[2, 0, 2], [0, 2, 1]]):
        trace = traced(made, shape, steps=3, static=static, seed=call)
        if len(shape) == 3:
            flat = trace.current.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            trace = made.trace(flat.unflatten(0, trace.current.shape[:2]), 3)
        grad = gradient_of_spikes(trace, seed=call)
        u = np.stack([m.numpy() for m in trace.membranes])
        derivative = np.zeros_like(u)
        for i, row in enumerate(rows):
            v = float(trace.threshold)
            if row in rows[:i]:
                # A second draw of an image looks at what the first one left.
                again = copy.deepcopy(written[row])
                again.frozen = True
                derivative[:, i] = again.derivative(u[:, i], v)
            else:
                derivative[:, i] = written[row].derivative(u[:, i], v)
        full = dataclasses.replace(trace, current=trace.current.expand(3, -1, *shape))
        expected = by_autograd(full, grad, [torch.from_numpy(d) for d in derivative])
        found = rule(grad, trace, "layer", torch.tensor(rows))
        if static and len(found) > 1:
            found = found.sum(0, keepdim=True)
        if static:
            expected = expected.sum(0, keepdim=True)
        torch.testing.assert_close(found, expected)
