from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustsnn.errors import InputError
from robustsnn.snn import neuron
from robustsnn.snn.neuron import LIF, FixedDropout, lif_sequence
from robustsnn.snn.surrogate import SURROGATES, Triangle, make_surrogate


class Spike(torch.autograd.Function):
    """The published spike, written step by step for comparison."""

    @staticmethod
    def forward(ctx, z, surrogate):
        ctx.save_for_backward(z)
        ctx.surrogate = surrogate
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        return grad * ctx.surrogate.derivative(z), None


def plain_loop(current, threshold, leak, steps, surrogate, initial, reset, detach):
    """The equations of the neuron in a plain loop, differentiated by autograd."""
    post = initial
    spikes = []
    for t in range(steps):
        u = leak * post + current[t if current.shape[0] > 1 else 0]
        out = Spike.apply(u / threshold - 1, surrogate)
        spikes.append(out)
        felt = out.detach() if detach else out
        post = u - threshold * felt if reset == "soft" else u * (1 - felt)
    return torch.stack(spikes), post


OPTIONS = dict(
    seed=st.integers(0, 10_000),
    steps=st.integers(1, 6),
    static=st.booleans(),
    start=st.booleans(),
    name=st.sampled_from(sorted(SURROGATES)),
    scale=st.sampled_from([0.3, 1.0, 4.0]),
    threshold=st.floats(0.05, 3),
    leak=st.floats(0, 1),
    reset=st.sampled_from(["soft", "hard"]),
    detach=st.booleans(),
    use_spikes=st.booleans(),
    use_final=st.booleans(),
    channels_last=st.booleans(),
    pool=st.booleans(),
    odd=st.booleans(),
)


def outcome(function, options, dtype, batch=3, channels=5):
    """Spikes, final membrane and all gradients of one random layer."""
    neurons = (batch, channels, 3, 5) if options["odd"] else (batch, channels, 4, 6)
    outputs = (*neurons[:2], neurons[2] // 2, neurons[3] // 2) if options["pool"] else neurons
    steps, static = options["steps"], options["static"]
    generator = torch.Generator().manual_seed(options["seed"])

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def arranged(x):
        if not options["channels_last"]:
            return x
        flat = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return flat.unflatten(0, x.shape[:2])

    current, initial = draw(1 if static else steps, *neurons), draw(*neurons)
    weigh, weigh_final = draw(steps, *outputs), draw(*neurons)
    leaves = [
        arranged(current).detach().requires_grad_(),
        torch.tensor(options["threshold"], dtype=dtype, requires_grad=True),
        torch.tensor(options["leak"], dtype=dtype, requires_grad=True),
    ]
    if options["start"]:
        leaves.append(initial.clone().requires_grad_())
    own = SURROGATES[options["name"]]()
    # The straight-through surrogate has no width to vary.
    width = 1.0 if options["name"] == "straight-through" else own.width * options["scale"]
    surrogate = make_surrogate(options["name"], width)
    spikes, final = function(
        *leaves[:3], steps, surrogate, leaves[3] if options["start"] else None, options
    )
    loss = (final * (weigh_final if options["use_final"] else 0)).sum()
    if options["use_spikes"]:
        loss = loss + (spikes * weigh).sum()
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    gradients = [
        torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)
    ]
    return spikes.detach(), final.detach(), gradients


def by_loop(current, threshold, leak, steps, surrogate, initial, options):
    start = torch.zeros_like(current[0]) if initial is None else initial
    spikes, final = plain_loop(
        current, threshold, leak, steps, surrogate, start, options["reset"], options["detach"]
    )
    if options["pool"]:
        spikes = torch.stack([torch.nn.functional.avg_pool2d(s, 2) for s in spikes])
    return spikes, final


def by_layer(current, threshold, leak, steps, surrogate, initial, options):
    return lif_sequence(
        current,
        threshold,
        leak,
        steps=steps,
        surrogate=surrogate,
        initial=initial,
        reset=options["reset"],
        detach_reset=options["detach"],
        pool=options["pool"],
    )


@pytest.mark.parametrize("kernel", ["reference", "fused"])
@given(**OPTIONS)
@settings(max_examples=60, deadline=None)
def test_sequence_equals_the_loop(kernel, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTSNN_LIF", kernel)
        spikes, final, gradients = outcome(by_layer, options, torch.float64)
    wanted_spikes, wanted_final, wanted = outcome(by_loop, options, torch.float64)
    assert torch.equal(spikes, wanted_spikes)
    assert torch.equal(final, wanted_final)
    for got, expected in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@given(**OPTIONS)
@settings(max_examples=100, deadline=None)
def test_the_fused_kernel_equals_the_reference_in_float32(**options):
    found = []
    for kernel in ("reference", "fused"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ROBUSTSNN_LIF", kernel)
            found.append(outcome(by_layer, options, torch.float32, batch=2, channels=70))
    (spikes, final, gradients), (fused_spikes, fused_final, fused) = found
    assert torch.equal(fused_spikes, spikes)
    assert torch.equal(fused_final, final)
    for index, (got, expected) in enumerate(zip(fused, gradients, strict=True)):
        # The gradients of threshold and leak are sums of terms that cancel, so the tolerance for
        # rounding depends on the terms.
        each = index in (0, 3)
        size = expected.abs().max() if each else gradients[0].abs().sum().clamp(min=expected.abs())
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * size.item())


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_threads_share_the_neurons_and_change_nothing(reset, pool, monkeypatch):
    # There are more neurons than one thread takes, and no size is a multiple of a block.
    flat = torch.randn(15, 7, 54, 46, generator=torch.Generator().manual_seed(0))
    current = flat.contiguous(memory_format=torch.channels_last).unflatten(0, (3, 5))
    monkeypatch.setenv("ROBUSTSNN_LIF", "fused")
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [current.clone().requires_grad_()]
            leaves += [torch.tensor(v, requires_grad=True) for v in (0.7, 0.9)]
            spikes, final = lif_sequence(
                *leaves, steps=3, surrogate=Triangle(), reset=reset, pool=pool
            )
            grads = torch.autograd.grad(spikes.cumsum(1).square().sum() + final.sum(), leaves)
            results.append((spikes.detach(), final.detach(), *grads))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_kernels_agree_on_values_that_are_no_numbers(monkeypatch):
    current = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e-40, 3e38]).view(1, 1, 5)
    found = []
    for kernel in ("reference", "fused"):
        monkeypatch.setenv("ROBUSTSNN_LIF", kernel)
        found.append(LIF(0.5, 0.9)(current, 4))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def test_a_quotient_that_rounds_to_one_does_not_fire(monkeypatch):
    threshold = torch.tensor(1.7)
    just_above = torch.nextafter(threshold, torch.tensor(2.0))
    near = torch.stack([just_above + k * torch.finfo(torch.float32).eps for k in range(-8, 9)])
    expected = (near / threshold - 1 > 0).float()
    for kernel in ("reference", "fused"):
        monkeypatch.setenv("ROBUSTSNN_LIF", kernel)
        spikes, _ = lif_sequence(
            near.view(1, 1, -1), threshold, torch.tensor(1.0), steps=1, surrogate=Triangle()
        )
        assert torch.equal(spikes.flatten(), expected)


@pytest.mark.parametrize("kernel", ["reference", "fused"])
def test_no_images_and_gaps_in_memory(kernel, monkeypatch):
    monkeypatch.setenv("ROBUSTSNN_LIF", kernel)
    spikes, final = LIF()(torch.zeros(2, 0, 3), 2)
    assert spikes.shape == (2, 0, 3)
    assert final.shape == (0, 3)
    wide = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(1))
    gaps = wide[::2, :, ::3].requires_grad_()
    dense = gaps.detach().clone().requires_grad_()
    for x in (gaps, dense):
        LIF(0.3, 0.8)(x, 2).spikes.square().sum().backward()
    assert torch.equal(gaps.grad, dense.grad)


class Own:
    """A user's surrogate, which no kernel was compiled for."""

    name = "own"
    width = 1.0
    amplitude = 1.0

    def derivative(self, z):
        return torch.ones_like(z)

    def primitive(self, z):
        return z


def test_an_unknown_surrogate_runs_on_the_reference_and_says_so(monkeypatch):
    monkeypatch.setenv("ROBUSTSNN_LIF", "auto")
    current = torch.rand(2, 3, 4).requires_grad_()
    neuron._tell_about.cache_clear()
    with pytest.warns(RuntimeWarning, match="does not know the surrogate Own"):
        spikes, _ = LIF(0.4, surrogate=Own())(current, 2)
    expected = LIF(0.4)(current, 2).spikes
    assert torch.equal(spikes, expected)
    (grad,) = torch.autograd.grad(spikes.sum(), current)
    assert (grad > 0).all()


def test_without_numba_it_falls_back_with_a_warning_and_the_same_spikes(monkeypatch):
    current = torch.randn(3, 2, 9, generator=torch.Generator().manual_seed(2))
    layer = LIF(0.4, 0.9)
    monkeypatch.setenv("ROBUSTSNN_LIF", "auto")
    expected = layer(current, 3)
    monkeypatch.setitem(sys.modules, "robustsnn.snn.lif_fused", None)
    neuron.fused_kernel.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="compiled LIF kernel is not available"):
            assert neuron.kernel() == "reference"
        got = layer(current, 3)
        monkeypatch.setenv("ROBUSTSNN_LIF", "fused")
        with pytest.raises(InputError, match="pip install numba"):
            layer(current, 3)
    finally:
        neuron.fused_kernel.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_the_kernel_is_chosen_by_the_environment(monkeypatch):
    monkeypatch.setenv("ROBUSTSNN_LIF", "auto")
    assert neuron.kernel() == "fused"
    assert neuron.kernel("meta") == "reference"
    monkeypatch.setenv("ROBUSTSNN_LIF", "reference")
    assert neuron.kernel() == "reference"
    monkeypatch.setenv("ROBUSTSNN_LIF", "fused")
    assert neuron.kernel() == "fused"
    with pytest.raises(InputError, match="CPU only, not on meta"):
        neuron.kernel("meta")
    monkeypatch.setenv("ROBUSTSNN_LIF", "quick")
    with pytest.raises(InputError, match="ROBUSTSNN_LIF=quick: choose one of auto"):
        neuron.kernel()


def test_wrong_reset():
    with pytest.raises(ValueError, match="'soft' or 'hard', not 'zero'"):
        LIF(reset="zero")(torch.zeros(1, 1, 1), 1)


def test_the_threshold_itself_does_not_fire():
    layer = LIF(threshold=1.0)
    spikes, membrane = layer(torch.ones(1, 1, 1), 3)
    assert spikes.flatten().tolist() == [0, 1, 1]
    assert membrane.item() == 1.0


def test_memory_layout_does_not_change_a_spike():
    current = torch.randn(3, 4, 5, 6, 6, generator=torch.Generator().manual_seed(0))
    layer = LIF(0.4, 0.8)
    plain, _ = layer(current, 3)
    last = current.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    other, _ = layer(last.unflatten(0, (3, 4)), 3)
    assert torch.equal(plain, other)


def test_wrong_number_of_time_steps():
    with pytest.raises(ValueError, match="2 time steps, expected 1 or 5"):
        LIF()(torch.zeros(2, 1, 1), 5)


def test_clamp_keeps_dynamics_in_range():
    layer = LIF(threshold=-0.2, leak=1.4, surrogate=Triangle())
    layer.clamp_()
    assert layer.threshold.item() == pytest.approx(1e-3)
    assert layer.leak.item() == 1.0


def test_dropout_mask_holds_over_time_and_keeps_the_mean():
    drop = FixedDropout(0.25).train()
    torch.manual_seed(0)
    out = drop(torch.ones(5, 8, 400))
    assert torch.equal(out, out[:1].expand_as(out))
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    x = torch.rand(2, 3, 4)
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize(
    "shape", [(2, 130, 4, 14), (1, 600, 2, 4), (3, 1, 4, 6), (2, 3, 2, 2), (0, 3, 4, 4)]
)
@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_pooled_spikes_in_pieces_of_rows_of_any_width(shape, reset, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    flat = torch.randn(4 * shape[0], *shape[1:], generator=generator, dtype=torch.float64)
    current = flat.contiguous(memory_format=torch.channels_last).unflatten(0, (4, shape[0]))
    found = []
    for kernel in ("reference", "fused"):
        monkeypatch.setenv("ROBUSTSNN_LIF", kernel)
        leaves = [current.clone().requires_grad_()]
        leaves += [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.7, 0.9)]
        spikes, final = lif_sequence(
            *leaves, steps=4, surrogate=Triangle(), reset=reset, detach_reset=False, pool=True
        )
        loss = spikes.cumsum(1).square().sum() + final.sum()
        found.append((spikes.detach(), final.detach(), *torch.autograd.grad(loss, leaves)))
    (spikes, final, *grads), (fused_spikes, fused_final, *fused) = found
    assert torch.equal(fused_spikes, spikes)
    assert torch.equal(fused_final, final)
    for got, expected in zip(fused, grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", ["reference", "fused"])
def test_gradients_of_any_layout_and_thresholds_of_one_entry(kernel, monkeypatch):
    monkeypatch.setenv("ROBUSTSNN_LIF", kernel)
    current = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(2)).requires_grad_()
    threshold, leak = (torch.full((1,), v, requires_grad=True) for v in (0.5, 0.9))
    spikes, _ = lif_sequence(current, threshold, leak, steps=3, surrogate=Triangle())
    leaves = (current, threshold, leak)
    # The gradient of a sum is one number, expanded: all its strides are 0.
    expanded = torch.autograd.grad(spikes.sum(), leaves, retain_graph=True)
    dense = torch.autograd.grad(spikes, leaves, torch.ones(3, 2, 5))
    for got, expected, leaf in zip(expanded, dense, leaves, strict=True):
        assert got.shape == leaf.shape
        assert torch.equal(got, expected)


@pytest.mark.parametrize("kernel", ["reference", "fused"])
@pytest.mark.parametrize("shape", [(1, 5), (5, 5), (3,), (3, 5, 1)])
def test_initial_membranes_of_another_shape_are_refused(kernel, shape, monkeypatch):
    monkeypatch.setenv("ROBUSTSNN_LIF", kernel)
    with pytest.raises(ValueError, match="initial membranes"):
        LIF()(torch.zeros(2, 3, 5), 2, torch.zeros(shape))


AFTER_FORK = """
import os, torch
from robustsnn.snn.neuron import LIF
torch.set_num_threads(2)
current = torch.ones(4, 8, 10_000)
LIF()(current, 4)
child = os.fork()
if child == 0:
    # The child computes no more than that, since the threads of OpenMP do not survive a fork.
    os._exit(0 if LIF()(current, 4).spikes[3, 7, 9_999].item() == 1 else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_forked_child_has_threads_of_its_own():
    subprocess.run([sys.executable, "-W", "ignore", "-c", AFTER_FORK], check=True, timeout=60)
