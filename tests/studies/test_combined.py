"""Combinations of gradients and search stay within ball and budget; tables made by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng
from robustsnn.estimators.make import make_estimator
from robustsnn.models.scoring import margin
from robustsnn.snn.network import Network, NetworkConfig
from studies.combined import study as combined
from studies.combined.page import wins, write

PASSES = 60


@pytest.mark.parametrize("method", ["warm Square", "guided", "corrected"])
def test_a_combination_stays_in_the_ball_and_within_its_passes(method: str):
    torch.manual_seed(0)
    network = Network(
        NetworkConfig(
            architecture="vgg5", kind="snn", classes=3, image=(1, 8, 8), widths=(4, 4, 4),
            classifier=(8,), mean=(0.5,), std=(0.25,), time_steps=2,
        )
    ).eval()  # fmt: skip
    images = torch.rand(6, 1, 8, 8)
    labels = network(images).argmax(1)
    threat, ids = ThreatModel("Linf", "2/255"), range(6)
    victim = Victim(network, make_estimator("bptt", network), ids)
    attack = load_attack(
        {**combined.SEARCHES, **combined.COMBINATIONS}[method].format(passes=PASSES)
    )
    found = attack(victim, images, labels, threat, Rng(0, ids))
    assert bool(threat.admits(found, images).all())
    spent = victim.forward_passes + victim.backward_passes
    assert int(spent.max()) <= PASSES
    with torch.no_grad():
        after, before = margin(network(found), labels), margin(network(images), labels)
    unbroken = after <= 0
    # Some images survive in the tiny ball; without them the search would have nothing to do.
    assert bool(unbroken.any()) and bool((after[unbroken] >= before[unbroken]).all())
    assert int(spent[unbroken].min()) > PASSES - 10


def test_the_methods_are_given_the_same_passes():
    for passes in combined.PASSES:
        for entry in combined.suite(passes, "4/255").entries:
            attack = load_attack(entry.attack)
            if hasattr(attack, "steps"):
                cost = 3 if entry.estimator == "twin" else 2
                assert passes - cost <= cost * attack.steps + 1 <= passes
            else:
                assert passes in (getattr(attack, "queries", 0), getattr(attack, "passes", 0))


def row(method: str, survivors: str, passes: int = 300, **more: object) -> dict[str, object]:
    return {
        "model": "m", "epsilon": "4/255", "samples": 10, "clean": 0.9, "passes": passes,
        "method": method, "accuracy": len(survivors.split()) / 10, "ci_low": 0.0, "ci_high": 1.0,
        "forward_passes": 1.0, "backward_passes": 1.0, "seconds": 1.0, "standing": survivors,
        **more,
    }  # fmt: skip


def test_a_combination_wins_only_below_everything_else(tmp_path: Path):
    others = [row("ASSG 0.45", "1 2 3"), row("warm Square", "2 3 4")]
    for survivors, said in (("1 2", "on 1 of 1 network"), ("1 2 3", "on 0 of 1 network")):
        table = pd.DataFrame([*others, row("guided", survivors)], columns=combined.COLUMNS)
        (sentence,) = wins(table)
        assert said in sentence
    write([table], tmp_path, "a command")
    again = write([], tmp_path, "a command")
    assert again["standing"].tolist() == table["standing"].tolist()
    # Images 2 and 3 survive all three methods.
    assert "20.0 % stand under all" in (tmp_path / "combined.md").read_text(encoding="utf-8")
