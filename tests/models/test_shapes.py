"""Networks with a time axis: one step a call, whole sequences, tuples and dicts, and encoders."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustsnn
from robustsnn.errors import InputError
from robustsnn.models.naming import parse_factory
from robustsnn.models.shapes import DECODINGS, Shape, Shaped
from robustsnn.snn.encoding import latency, poisson
from tests.conftest import Cli

STEPS, BATCH, CLASSES = 5, 3, 4


class Sequence(nn.Module):
    """Fixed sequences of spikes and membranes, `[time, batch, class]`, told apart by image."""

    def __init__(self, give: Callable[[Tensor, Tensor], Any], batch_first: bool = False) -> None:
        super().__init__()
        self.give, self.batch_first = give, batch_first

    def forward(self, images: Tensor) -> Any:
        spikes, membranes = made(images)
        if self.batch_first:
            spikes, membranes = spikes.transpose(0, 1), membranes.transpose(0, 1)
        return self.give(spikes, membranes)


def made(images: Tensor) -> tuple[Tensor, Tensor]:
    drive = images.flatten(1)[:, :CLASSES] * torch.linspace(0.2, 1, STEPS)[:, None, None]
    return (drive > 0.3).float(), drive.sin() * 3


IMAGES = torch.rand(BATCH, 1, 4, 4, generator=torch.Generator().manual_seed(0))
SPIKES, MEMBRANES = made(IMAGES)
DECODED = {
    "spikes-sum": SPIKES.sum(0),
    "spikes-mean": SPIKES.mean(0),
    "membrane-sum": MEMBRANES.sum(0),
    "membrane-max": MEMBRANES.max(0).values,
    "membrane-last": MEMBRANES[-1],
}


@pytest.mark.parametrize("decode", DECODINGS)
@pytest.mark.parametrize(
    "give",
    [
        lambda spikes, membranes: (spikes, membranes),
        lambda spikes, membranes: [spikes, membranes],
        lambda spikes, membranes: {"spk": spikes, "mem": membranes},
        lambda spikes, membranes: {"membranes": membranes, "spikes": spikes, "steps": 5},
    ],
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_what_a_network_returns_is_decoded(decode, give, batch_first):
    network = Shaped(Sequence(give, batch_first), Shape(decode=decode))
    assert torch.allclose(network(IMAGES), DECODED[decode], atol=1e-6)
    # Where there are as many images as steps, the axes are told apart all the same.
    more = torch.rand(STEPS, 1, 4, 4)
    assert torch.allclose(network(more)[:1], network(more[:1]), atol=1e-6)
    alone = Shaped(Sequence(lambda s, m: s if "spikes" in decode else m), Shape(decode=decode))
    assert torch.allclose(alone(IMAGES), DECODED[decode], atol=1e-6)


@pytest.mark.parametrize("output", ["1", "-1", "logits"])
def test_a_part_is_named(output):
    def give(spikes: Tensor, membranes: Tensor) -> Any:
        logits = membranes.sum(0)
        return {"logits": logits, "x": spikes} if output == "logits" else (spikes, logits)

    network = Shaped(Sequence(give), Shape(output=output))
    assert torch.equal(network(IMAGES), MEMBRANES.sum(0))
    with pytest.raises(InputError, match=r"there is no '7'"):
        Shaped(Sequence(give), Shape(output="7"))(IMAGES)


class Cell(nn.Module):
    """One step of a leaky integrator that keeps its state itself, or is given it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(16, CLASSES)
        self.mem: Tensor | None = None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        before = 0 if self.mem is None else self.mem
        self.mem = 0.5 * before + self.linear(images.flatten(1))
        return (self.mem > 0).float(), self.mem


class StatefulCell(Cell):
    def forward(self, images: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        before = 0 if state is None else state
        membrane = 0.5 * before + self.linear(images.flatten(1))
        return membrane, membrane


class WholeSequence(Cell):
    def forward(self, sequence: Tensor) -> Any:
        mem, found = torch.zeros(sequence.shape[1], CLASSES), []
        for image in sequence:
            mem = 0.5 * mem + self.linear(image.flatten(1))
            found.append(mem)
        return torch.stack(found)


@pytest.mark.parametrize("kind", [Cell, StatefulCell, WholeSequence])
@pytest.mark.parametrize("encode", [None, "direct", "poisson", "latency"])
def test_one_step_a_call_is_called_once_a_step(kind, encode):
    shape = Shape(
        steps=STEPS,
        encode=encode,
        decode="membrane-last",
        input="sequence" if kind is WholeSequence else None,
    )
    network = Shaped(kind(), shape)
    keys = torch.tensor([7, 8, 9])
    inputs = {
        "poisson": lambda: poisson(IMAGES, STEPS, keys),
        "latency": lambda: latency(IMAGES, STEPS),
    }.get(encode or "", lambda: torch.stack([IMAGES] * STEPS))()
    mem = torch.zeros(BATCH, CLASSES)
    for image in inputs:
        mem = 0.5 * mem + network.inner.linear(image.flatten(1))
    assert torch.allclose(network(IMAGES, keys), mem)
    assert network.stochastic == (encode == "poisson")


def test_draws_belong_to_keys_and_not_to_batches():
    network = Shaped(
        WholeSequence(), Shape(steps=5, encode="poisson", input="sequence", decode="membrane-sum")
    )
    keys = torch.tensor([3, 11, 5])
    whole = network(IMAGES, keys)
    assert torch.allclose(network(IMAGES[1:2], keys[1:2]), whole[1:2])
    assert not torch.allclose(network(IMAGES, keys + 1), whole)


# --- encoders ------------------------------------------------------------------------------


def test_a_poisson_code_has_the_rate_of_the_pixel_and_a_straight_gradient():
    pixels = torch.tensor([[[[0.0, 0.25, 1.0]]]], requires_grad=True)
    spikes = poisson(pixels, 4000, torch.tensor([1]))
    assert torch.allclose(spikes.mean(0), pixels, atol=0.03)
    spikes.sum().backward()
    assert pixels.grad is not None and (pixels.grad == 4000).all()


def test_a_latency_code_fires_once_and_the_brighter_the_earlier():
    pixels = torch.linspace(0, 1, 101)[None, None, None]
    spikes = latency(pixels, 11)
    assert spikes.shape == (11, 1, 1, 1, 101) and set(spikes.unique().tolist()) == {0.0, 1.0}
    counts = spikes.sum(0)[0, 0, 0]
    assert (counts[:2] == 0).all() and (counts[2:] == 1).all()
    times = spikes.argmax(0)[0, 0, 0][2:]
    assert (times.diff() <= 0).all() and times[-1] == 0
    assert times[10 - 2] == 9 and times[50 - 2] == 5


def test_the_gradient_of_a_latency_code_is_that_of_its_spikes_on_the_grid():
    """Between grid points the code moves one spike by one step, which a difference sees."""
    steps = 6
    weights = torch.randn(steps, generator=torch.Generator().manual_seed(2))

    def value(x: Tensor) -> Any:
        return (weights * latency(x.reshape(1, 1, 1, 1), steps).flatten()).sum()

    grid = torch.arange(steps) / (steps - 1)
    for index in range(1, steps - 1):
        x = grid[index].clone().requires_grad_()
        (slope,) = torch.autograd.grad(value(x), x)
        wide = (value(grid[index + 1]) - value(grid[index - 1])) * (steps - 1) / 2
        if index > 1:  # below it the pixel is silent
            assert torch.allclose(slope, wide, atol=1e-5)
    x = torch.tensor(1.0, requires_grad=True)
    (slope,) = torch.autograd.grad(value(x), x)
    assert torch.allclose(slope, (value(grid[-1]) - value(grid[-2])) * (steps - 1), atol=1e-5)
    x = torch.tensor(0.0, requires_grad=True)
    (slope,) = torch.autograd.grad(value(x), x)
    assert slope == (steps - 1) * weights[-1]


def test_encoders_of_snntorch_give_the_same_spikes():
    spikegen = pytest.importorskip("snntorch.spikegen")
    pixels = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(3)) * 0.9 + 0.05
    theirs = spikegen.latency(pixels, num_steps=9, linear=True, normalize=True, clip=True)
    assert theirs.shape == latency(pixels, 9).shape
    # Their time is taken from the threshold on, so that some spikes are a step apart.
    apart = (theirs.argmax(0) - latency(pixels, 9).argmax(0)).abs()
    assert apart.max() <= 1


# --- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nets:build:steps", "'steps' in .* is not a setting"),
        ("nets:build:steps=many", "steps must be a whole number"),
        ("nets:build:steps=0", "at least 1"),
        ("nets:build:step=8", "Did you mean 'steps'"),
        ("nets:build:steps=8,decode=spikes", "'spikes-sum' or 'spikes-mean'"),
        ("nets:build:steps=8,encode=rate", "'poisson'"),
        ("nets:build:encode=direct", "add steps=8"),
        ("nets:build:steps=1,encode=latency", "2 steps"),
        ("nets:build:steps=8,steps=9", "given twice"),
        ("nets:build@", "no file behind @"),
        ("nets:build@:steps=8", "no file behind @"),
        ("nets:@w.pt", "is not a model"),
        (":build", "is not a model"),
    ],
)
def test_a_name_that_is_malformed_is_told(text, says):
    with pytest.raises(InputError, match=says):
        parse_factory(text)


def test_a_name_is_taken_apart(tmp_path, monkeypatch):
    found = parse_factory("a.b:build@runs/w.pt:steps=8,encode=poisson,decode=spikes-mean")
    assert found.factory == "a.b:build" and found.weights == Path("runs/w.pt")
    assert found.shape == Shape(8, "poisson", "spikes-mean")
    assert parse_factory("a:b:steps=2,output=mem,decode=membrane-sum").shape == Shape(
        2, None, "membrane-sum", "mem"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_factory("a:b@~/w.pt").weights == tmp_path / "w.pt"
    odd = tmp_path / "lr:x=1.pt"
    odd.write_bytes(b"")
    assert parse_factory(f"a:b@{odd}").weights == odd


NETS = """
import torch
from torch import nn

class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(784, 10)

    def forward(self, x, mem=None):
        mem = self.linear(x.flatten(1)) + (0 if mem is None else 0.9 * mem)
        return mem.sigmoid(), mem

class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = Step()

    def forward(self, x):
        mem, out = None, []
        for _ in range(4):
            spk, mem = self.cell(x, mem)
            out.append(mem)
        return torch.stack(out)

class Both(Loop):
    def forward(self, x):
        return {"spk": super().forward(x), "other": super().forward(x)}
"""
ASKED = ["--data", "fashion-mnist", "--samples", "6", "--attack", "fgsm"]


def result(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return [row["accuracy"] for row in json.loads(done.stdout)["results"]]


@pytest.mark.slow
def test_models_with_a_time_axis_on_the_command_line(tmp_path: Path, cli: Cli):
    (tmp_path / "nets.py").write_text(NETS)
    torch.manual_seed(4)
    linear = nn.Linear(784, 10).state_dict()
    torch.save({f"linear.{k}": v for k, v in linear.items()}, tmp_path / "step.pt")
    torch.save({f"cell.linear.{k}": v for k, v in linear.items()}, tmp_path / "loop.pt")
    step, loop = (
        "nets:Step@step.pt:steps=4,decode=membrane-last",
        "nets:Loop@loop.pt:decode=membrane-last",
    )
    assert result(cli("evaluate", step, *ASKED, "--json")) == result(
        cli("evaluate", loop, *ASKED, "--json")
    )
    done = cli(
        "compare", step, loop, "nets:Both@loop.pt:decode=spikes-sum", *ASKED, "--output", "c"
    )
    assert done.returncode == 0, done.stderr
    done = cli(
        "evaluate",
        "fashion-mnist/vgg5-ann",
        "--substitute",
        step,
        "--samples",
        "4",
        "--attack",
        "transfer:fgsm",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("nets:Loop", "[4, "),
        ("nets:Step", "a tuple of ["),
        ("nets:Both", "a dict of 'spk' [4, "),
        ("nets:Loop:steps=2,decode=spikes-sum", "[2, 4, "),
    ],
)
def test_without_a_decoding_the_shape_seen_and_the_choices_are_named(tmp_path, warm, name, seen):
    (tmp_path / "nets.py").write_text(NETS)
    done = warm("evaluate", name, *ASKED)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert seen in line and "decode=spikes-sum" in line and "membrane-last" in line
    assert "latency" in line and not (tmp_path / "runs").exists()


def test_names_that_differ_in_their_shape_are_different_models(tmp_path, monkeypatch):
    (tmp_path / "nets_of_shapes.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(4)
    state = nn.Linear(784, 10).state_dict()
    torch.save({f"linear.{k}": v for k, v in state.items()}, tmp_path / "w.pt")
    seen = set()
    for shape in ("decode=membrane-last", "decode=membrane-max", "decode=spikes-sum,output=0"):
        for steps in ("steps=2", "steps=3", "steps=3,encode=poisson"):
            name = f"nets_of_shapes:Step@{tmp_path}/w.pt:{steps},{shape}"
            found = robustsnn.evaluate(name, "fashion-mnist", samples=2, attack="fgsm")
            seen.add(found.manifest.identity)
    assert len(seen) == 9
