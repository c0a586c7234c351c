from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


def reference(current, threshold, leak, steps, surrogate, initial):
    """The equations of the neuron in a plain loop, differentiated by autograd."""
    post = initial
    spikes = []
    for t in range(steps):
        u = leak * post + current[t if current.shape[0] > 1 else 0]
        z = u / threshold - 1
        out = Spike.apply(z, surrogate)
        post = u - threshold * (z > 0).to(u.dtype)
        spikes.append(out)
    return torch.stack(spikes), post


@given(
    seed=st.integers(0, 10_000),
    steps=st.integers(1, 6),
    static=st.booleans(),
    start=st.booleans(),
    name=st.sampled_from(sorted(SURROGATES)),
    threshold=st.floats(0.05, 3),
    leak=st.floats(0, 1),
    use_final=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_sequence_equals_the_loop(seed, steps, static, start, name, threshold, leak, use_final):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    current = draw(1 if static else steps, 3, 4, 2, 2)
    initial = draw(3, 4, 2, 2)
    weigh, weigh_final = draw(steps, 3, 4, 2, 2), draw(3, 4, 2, 2)
    surrogate = make_surrogate(name)
    results = []
    for function in (reference, None):
        leaves = [
            current.clone().requires_grad_(),
            torch.tensor(threshold, dtype=torch.float64, requires_grad=True),
            torch.tensor(leak, dtype=torch.float64, requires_grad=True),
        ]
        if start:
            leaves.append(initial.clone().requires_grad_())
        given_initial = leaves[3] if start else None
        if function is None:
            spikes, final = lif_sequence(
                *leaves[:3], steps=steps, surrogate=surrogate, initial=given_initial
            )
        else:
            zero = torch.zeros_like(initial)
            spikes, final = function(
                *leaves[:3], steps, surrogate, zero if given_initial is None else given_initial
            )
        loss = (spikes * weigh).sum()
        if use_final:
            loss = loss + (final * weigh_final).sum()
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        results.append((spikes.detach(), final.detach(), gradients))
    (s0, f0, g0), (s1, f1, g1) = results
    assert torch.equal(s0, s1)
    assert torch.equal(f0, f1)
    for a, b in zip(g0, g1, strict=True):
        expected = torch.zeros(()) if a is None else a
        got = torch.zeros(()) if b is None else b
        torch.testing.assert_close(got, expected.expand_as(got).to(got), rtol=1e-10, atol=1e-10)


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
