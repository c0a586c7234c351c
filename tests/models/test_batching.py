from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from robustsnn.adversary.victim import Victim
from robustsnn.common.users_code import out_of_memory
from robustsnn.errors import InputError
from robustsnn.estimators.backprop import Backprop
from robustsnn.evaluation.plan import prepare
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.run import evaluate, run
from robustsnn.models.batching import (
    LARGEST,
    MICRO_BATCH,
    largest_layer,
    micro_batch_for,
)
from robustsnn.models.checkpoint import load_model
from robustsnn.models.subject import recomputing, subject_of
from robustsnn.snn.network import Network, NetworkConfig


def vgg5(widths=(64, 128, 128), steps=8, kind="snn"):
    return Network(
        NetworkConfig(
            architecture="vgg5",
            kind=kind,
            classes=10,
            image=(3, 32, 32),
            widths=widths,
            classifier=(16,),
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            time_steps=steps,
        )
    )


def test_the_largest_layer_counts_a_static_layer_once():
    assert largest_layer(vgg5()) == 8 * 128 * 16 * 16
    # The first convolution sees the image only, at one step.
    assert largest_layer(vgg5(widths=(64, 4, 4))) == 64 * 32 * 32
    assert largest_layer(vgg5(steps=1, kind="ann")) == 64 * 32 * 32


def test_micro_batches_shrink_with_time_and_never_vanish():
    # 128 x 16 x 16 values of 4 bytes at each of 8 steps are 1 MiB for each image.
    assert micro_batch_for(vgg5()) == 32
    assert micro_batch_for(vgg5(steps=64)) == 4
    assert micro_batch_for(vgg5(steps=4096)) == 1
    assert micro_batch_for(vgg5(steps=1, kind="ann")) == LARGEST
    recomputing = vgg5(steps=1024)
    recomputing.recompute = 16
    assert micro_batch_for(recomputing) == 16
    assert micro_batch_for(nn.Identity()) == MICRO_BATCH
    assert Victim(vgg5(steps=16), Backprop(), range(3)).micro_batch == 16


def test_asking_leaves_no_trace():
    network = vgg5()
    before = copy.deepcopy(network.state_dict())
    micro_batch_for(network)
    assert all(not m._forward_hooks for m in network.modules())
    assert all(
        torch.equal(a, b)
        for a, b in zip(before.values(), network.state_dict().values(), strict=True)
    )


def test_what_torch_says_when_memory_runs_out_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert out_of_memory(caught.value)
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not out_of_memory(RuntimeError("shape mismatch"))
    assert not out_of_memory(KeyError("out of memory"))


class Hungry(nn.Module):
    """A network that takes two images at a time, and runs out of memory for more, as torch does."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit
        self.weight = nn.Parameter(torch.randn(784, 10, generator=torch.Generator().manual_seed(0)))

    def forward(self, images):
        if len(images) > self.limit:
            torch.empty(2**60)
        return images.flatten(1) @ self.weight


def test_batches_are_halved_until_they_fit(tmp_path):
    plan = prepare(Request.of(Hungry(5), "fashion-mnist", samples=20, batch_size=16))
    done = run(plan, tmp_path / "run")
    assert (done.manifest.batch_size, done.manifest.batch_size_asked) == (4, 16)
    plenty = evaluate(Hungry(99), "fashion-mnist", samples=20, batch_size=4, name="Hungry")
    assert list(done.results.accuracy) == list(plenty.results.accuracy)
    again = run(plan, tmp_path / "run")
    assert again.reprinted


def test_one_image_that_does_not_fit_is_said_in_a_line(tmp_path):
    with pytest.raises(InputError, match="memory ran out on a single image of Hungry"):
        evaluate(Hungry(0), "fashion-mnist", samples=4, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_evaluation_that_recomputes_gives_the_same_verdicts(tmp_path):
    name = "fashion-mnist/vgg5-snn"
    plain = evaluate(name, suite="quick", samples=16)
    parts = evaluate(name, suite="quick", samples=16, recompute=2, output=tmp_path / "run")
    assert parts.manifest.recompute == 2
    assert list(parts.results.accuracy) == list(plain.results.accuracy)
    assert evaluate(name, suite="quick", samples=16, output=tmp_path / "run").reprinted
    with pytest.raises(InputError, match="--recompute 0"):
        evaluate(name, samples=4, recompute=0)
    with pytest.raises(InputError, match="not a RobustSNN network"):
        recomputing(subject_of(nn.Identity()), 4)
    assert load_model(name).recompute is None
