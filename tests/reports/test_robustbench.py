"""Results as RobustBench writes them."""

import json

import numpy as np

from robustsnn.records.runs import load_runs
from robustsnn.reporting.render import render
from tests.made_runs import HIRE, QUICK, draw

#: The fields of an entry of RobustBench's `model_info`, in its order.
FIELDS = (
    "link name authors additional_data number_forward_passes dataset venue architecture eps"
    " clean_acc reported autoattack_acc external footnote unreliable"
).split()


def test_an_entry_has_the_fields_and_the_worst_case(make_run, tmp_path):
    right = draw(QUICK, 80, 0)
    verdict = {"level": "C", "title": "not reliable", "sentence": "C.", "next": "Stop."}
    runs = load_runs([make_run("a", right, verdict=verdict), make_run("b", right, model="other")])
    render(runs, tmp_path / "out")
    paths = sorted((tmp_path / "out" / "tables").glob("robustbench-*.json"))
    first, second = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    assert list(first) == list(second) == FIELDS
    worst = np.logical_and.reduce(list(right.values())).mean()
    assert first["external"] == f"{100 * worst:.2f}" and first["eps"] == "8/255"
    assert first["clean_acc"] == f"{100 * right['clean', '', ''].mean():.2f}"
    assert first["dataset"] == "fashion-mnist" and first["autoattack_acc"] == ""
    assert (first["unreliable"], second["unreliable"]) == (True, False)
    assert "suite quick version 1" in first["footnote"] and "80 images" in first["footnote"]


def test_each_norm_is_an_entry_and_autoattack_is_named_as_such(make_run, tmp_path):
    rates = {**HIRE, ("aa", "Linf", "0.031"): 0.3}
    right = draw(rates, 60, 1)
    entries = [{"label": "AA", "attack": "torchattacks:AutoAttack:version=standard"}]
    render(load_runs([make_run("a", right, suite="hire", entries=entries)]), tmp_path / "out")
    paths = (tmp_path / "out" / "tables").glob("robustbench-*.json")
    found = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in paths}
    assert {name.rpartition("-0-")[2] for name in found} == {"linf-0.031", "l2-0.868"}
    by_eps = {entry["eps"]: entry for entry in found.values()}
    assert by_eps["0.031"]["autoattack_acc"] == f"{100 * right['aa', 'Linf', '0.031'].mean():.2f}"
    assert by_eps["0.868"]["autoattack_acc"] == ""
