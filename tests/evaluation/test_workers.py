"""Workers compute what one process computes, whatever their number and whoever of them dies."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsnn.adversary.catalogue import load_attack
from robustsnn.errors import InputError
from robustsnn.evaluation.expected import passes_of
from robustsnn.evaluation.finished import Evaluation
from robustsnn.evaluation.parallel import Asked, carry_out
from robustsnn.evaluation.plan import prepare
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.run import run
from robustsnn.evaluation.suites import Suite
from robustsnn.evaluation.workers import Processes, sent
from tests.evaluation.test_resume import same

#: Seconds that workers have worked, and are expected to work.
Pair = tuple[float, float]

CASCADE = Suite.model_validate(
    {
        "name": "steps",
        "version": 1,
        "description": "a short cascade with a probe, rounds and a sample",
        "cascade": True,
        "epsilon": ["4/255", "12/255"],
        "entries": [
            {"label": "A", "attack": "apgd:steps=3", "estimator": "bptt", "probe": True},
            {
                "label": "B",
                "attack": "apgd:steps=3",
                "estimator": "hart",
                "probe": True,
                "kinds": ["snn"],
            },
            {"label": "Best", "attack": "apgd:steps=5", "estimator": "best"},
            {"label": "Long", "attack": "sa-pgd:steps=3", "until": {"least": 2, "most": 3}},
            {"label": "Search", "attack": "square:queries=20", "sample": 8},
        ],
    }
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def asked(model: Any, output: Path, **settings: Any) -> Asked:
    request = Request.of(model, **settings)
    return Asked(output.name, partial(prepare, request), output)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "kinds"),
    [("quick", ("ann", "snn")), (CASCADE, ("snn",))],
    ids=["all images", "cascade"],
)
def test_any_number_of_workers_finds_the_same(checkpoints, tmp_path, suite, kinds):
    settings = {"samples": 40, "batch_size": 8, "suite": suite}
    for kind in kinds:
        plan = prepare(Request.of(checkpoints / kind, **settings))
        run(plan, tmp_path / f"{kind}-alone")
    for count in (1, 3):
        runs = [
            asked(checkpoints / kind, tmp_path / f"{kind}-{count}", **settings) for kind in kinds
        ]
        told: list[Pair] = []

        def tell(what: str, done: float, total: float, to: list[Pair] = told) -> None:
            to.append((done, total))

        found = carry_out(runs, Processes(count), tell)
        assert all(isinstance(one, Evaluation) for one in found), found
        for kind in kinds:
            same(tmp_path / f"{kind}-alone", tmp_path / f"{kind}-{count}")
        assert told[-1][0] == pytest.approx(told[-1][1])
        assert [a for a, _ in told] == sorted(a for a, _ in told)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_worker_that_is_killed_costs_its_cells_alone(checkpoints, tmp_path):
    settings = {"samples": 40, "batch_size": 8, "suite": CASCADE}
    run(prepare(Request.of(checkpoints / "snn", **settings)), tmp_path / "alone")
    workers = Processes(2)
    killed: list[int] = []

    def kill(what: str, done: float, total: float) -> None:
        pool = workers._pool
        if len(killed) < 2 and pool is not None and what.endswith("left"):
            killed.append(next(iter(pool._processes)))
            os.kill(killed[-1], signal.SIGKILL)

    found = carry_out([asked(checkpoints / "snn", tmp_path / "killed", **settings)], workers, kill)
    assert isinstance(found[0], Evaluation) and len(killed) == 2
    same(tmp_path / "alone", tmp_path / "killed")


DEADLY = """
import os, signal
from torch import nn

class Deadly(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.home = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), os.getpid()

    def forward(self, x):
        if os.getpid() != self.home:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(x)

class Clumsy(Deadly):
    def forward(self, x):
        if os.getpid() != self.home:
            raise KeyError("elsewhere")
        return self.inner(x)

def deadly():
    return Deadly()

def clumsy():
    return Clumsy()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_run_that_fails_does_not_stop_the_others(checkpoints, tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"samples": 20, "attack": "fgsm", "data": "fashion-mnist"}
    runs = [
        asked("nets:deadly", tmp_path / "deadly", **settings),
        asked("nets:clumsy", tmp_path / "clumsy", **settings),
        asked(checkpoints / "ann", tmp_path / "ann", **settings),
    ]
    deadly, clumsy, ann = carry_out(runs, Processes(2))
    assert isinstance(ann, Evaluation)
    assert isinstance(deadly, InputError) and "died 3 times" in str(deadly)
    assert isinstance(clumsy, InputError) and "nets.py" in str(clumsy), clumsy
    assert not (tmp_path / "clumsy").exists()


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :10]

    def __deepcopy__(self, memo: Any) -> Locked:
        return Locked()


def test_a_network_that_cannot_be_sent_is_refused_in_one_line():
    images = torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.int64)
    plan = prepare(Request.of(Locked(), images, attack="fgsm"))
    with pytest.raises(InputError, match=r"Locked cannot be sent to another process .*lock"):
        sent(plan)


def test_a_sent_plan_holds_no_images(checkpoints):
    few = prepare(Request.of(checkpoints / "ann", samples=2, attack="fgsm"))
    many = prepare(Request.of(checkpoints / "ann", samples=60, attack="fgsm"))
    assert abs(len(sent(few).pickled) - len(sent(many).pickled)) < 100


@pytest.mark.parametrize(
    ("attack", "passes"),
    [
        ("none", 1), ("fgsm", 6), ("pgd:steps=10", 33), ("apgd:steps=10,restarts=2", 64),
        ("square:queries=100", 101), ("apgd:steps=10,loss=targeted-dlr,targets=9", 281),
    ],
)  # fmt: skip
def test_expected_passes_follow_the_settings(attack, passes):
    assert passes_of(load_attack(attack)) == passes


def test_the_expected_passes_of_a_run_are_at_least_what_it_takes(checkpoints, tmp_path):
    plan = prepare(Request.of(checkpoints / "snn", samples=20, suite=CASCADE))
    found = run(plan, tmp_path / "r")
    attacks = found.records[found.records["attack"] != "clean"]
    took = float((attacks["forward_passes"] + 2 * attacks["backward_passes"]).sum())
    assert 0 < took <= 20 * sum(passes_of(task.attack) for task in plan.tasks)
