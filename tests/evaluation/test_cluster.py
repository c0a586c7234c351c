"""A Ray cluster computes what one process computes, also when a machine of it dies."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from robustsnn.errors import InputError
from robustsnn.evaluation import cluster
from robustsnn.evaluation.finished import Evaluation
from robustsnn.evaluation.parallel import Asked, carry_out
from robustsnn.evaluation.plan import prepare
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.run import run
from tests.evaluation.test_resume import same
from tests.evaluation.test_workers import CASCADE

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="robustsnn[cluster] is not installed here"
)


def test_without_ray_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[cluster\]'"):
        cluster.RayWorkers("auto")


@needs_ray
@pytest.mark.exhaustive
def test_no_cluster_at_an_address_is_told():
    with pytest.raises(InputError, match=r"no Ray cluster answers at '127.0.0.1:1'"):
        cluster.RayWorkers("127.0.0.1:1")


@needs_ray
@pytest.mark.exhaustive
def test_a_node_that_dies_costs_its_cells_alone(checkpoints, tmp_path: Path):
    from ray.cluster_utils import Cluster

    settings: dict[str, Any] = {"samples": 40, "batch_size": 8, "suite": CASCADE}
    plan = prepare(Request.of(checkpoints / "snn", **settings, threads=1))
    run(plan, tmp_path / "alone")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    extra = [nodes.add_node(num_cpus=1) for _ in range(2)]
    killed: list[Any] = []

    def kill(what: str, done: float, total: float) -> None:
        if not killed and what.endswith("left"):
            killed.append(extra.pop())
            nodes.remove_node(killed[-1], allow_graceful=False)

    try:
        workers = cluster.RayWorkers(nodes.address)
        assert workers.places == 3
        request = Request.of(checkpoints / "snn", **settings, threads=1)
        found = carry_out([Asked("snn", partial(prepare, request), tmp_path / "r")], workers, kill)
    finally:
        nodes.shutdown()
    assert isinstance(found[0], Evaluation), found
    assert killed
    same(tmp_path / "alone", tmp_path / "r")
