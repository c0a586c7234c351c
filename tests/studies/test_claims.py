"""What the study of the claims says, on rows that are made up here and on tiny networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from robustsnn.evaluation.suites import Suite, load_suite
from robustsnn.models.checkpoint import load_network, read_checkpoint, save_checkpoint
from robustsnn.models.subject import subject_of
from robustsnn.models.zoo import zoo_names
from robustsnn.snn.conversion import convert
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.training.recipe import load_recipe
from studies.claims import members, overhead, study, sweeps
from studies.claims.members import ANN, HIRE, LINF, PERIODS, TRADITIONAL, Member
from studies.claims.page import page, write
from studies.claims.statements import Pair, claims, gain, pair, spikes_by_layer, verdict


def row(kind: str, attack: str, kept: range, seed: int = 1, **more: Any) -> dict[str, Any]:
    """A row about 100 images with the ids 0 to 99, of which some are kept."""
    member = Member("cifar10", "vgg5", kind, seed)
    suite = "standard" if attack == "worst-case" else "hire-iccv21"
    return {
        **study.about(study.ZOO, member), "suite": suite, "attack": attack, "norm": "Linf",
        "epsilon": "8/255", "samples": 100, "last_id": 99, "accuracy": len(kept) / 100,
        "low": 0.0, "high": 1.0, "level": "A", "steps": 4, "encoding": "direct",
        "standing": " ".join(map(str, kept)), **more,
    }  # fmt: skip


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(rows)


def line(found: pd.DataFrame, start: str) -> str:
    (one,) = [claim.line for claim in claims(found) if claim.said.startswith(start)]
    return one


WON = "HIRE training is more robust than traditional"


def test_without_runs_every_claim_is_not_measured() -> None:
    empty = study._table([]).reindex(columns=["part", "kind", "attack", "layer"])
    found = claims(study._table([]))
    assert len(found) == 13 and {c.standard for c in found} == {"not measured"}
    assert "Nothing of this was run yet." in page(
        pd.DataFrame(columns=[*empty.columns]).reindex(columns=_columns()), "command"
    )


def _columns() -> list[str]:
    from studies.claims.page import COLUMNS

    return list(COLUMNS)


def test_a_pair_is_tested_image_by_image() -> None:
    both = table(row(HIRE, "pgd-7", range(40)), row(TRADITIONAL, "pgd-7", range(30, 50)))
    made = pair(both, "cifar10/vgg5-snn-hire", "cifar10/vgg5-snn", "pgd-7")
    assert made is not None and (made.gained, made.lost) == (30, 10)
    assert made.points == pytest.approx(20.0)
    # The exact test on 40 differing images: twice the chance of at most 10 heads.
    assert made.p == pytest.approx(0.002220, rel=1e-3)
    assert made.more and not made.fewer
    assert pair(both, "cifar10/vgg5-snn-hire", "cifar10/vgg5-ann", "pgd-7") is None


def test_a_shorter_run_is_compared_on_its_own_images() -> None:
    short = row(HIRE, "worst-case", range(10), samples=20, last_id=19)
    both = table(short, row(TRADITIONAL, "worst-case", range(60)))
    made = pair(both, "cifar10/vgg5-snn-hire", "cifar10/vgg5-snn", "worst-case")
    assert made == Pair("cifar10/vgg5-snn-hire", "cifar10/vgg5-snn", 20, 0, 10)


def test_a_claim_can_hold_under_one_attack_and_fail_under_another() -> None:
    rows = [
        row(HIRE, "pgd-7", range(60)), row(TRADITIONAL, "pgd-7", range(20)),
        row(HIRE, "worst-case", range(5)), row(TRADITIONAL, "worst-case", range(4)),
    ]  # fmt: skip
    said = line(table(*rows), WON)
    assert "under PGD-7 as published **holds**" in said
    assert "under `standard` **does not hold**" in said
    second = [
        row(HIRE, "worst-case", range(60), seed=2), row(TRADITIONAL, "worst-case", range(4), seed=2)
    ]  # fmt: skip
    assert "under `standard` **depends**" in line(table(*rows, *second), WON)
    (one,) = [c for c in claims(table(*rows)) if c.said.startswith(WON)]
    assert any(what.endswith("(one seed)") for what in one.shown)


def test_the_gain_and_its_causes_are_told_apart() -> None:
    rows = [
        row(HIRE, "pgd-7", range(60)), row(TRADITIONAL, "pgd-7", range(20)),
        row(HIRE, "worst-case", range(30)), row(TRADITIONAL, "worst-case", range(10)),
        row(PERIODS, "worst-case", range(12)), row(LINF, "worst-case", range(20)),
    ]  # fmt: skip
    said = "\n".join(gain(table(*rows)))
    assert "+40.0 points" in said and "+20.0 under `standard`" in said and "50% of it" in said
    assert "the periods and updates alone: +2.0 points" in said
    assert "noise of that size, against none: +8.0 points" in said
    assert "that the noise is crafted: +10.0 points" in said
    assert "crafted: not measured" in "\n".join(gain(table(*rows[:5])))


def test_published_numbers_stand_next_to_ours_with_their_source() -> None:
    rows = [row(kind, "pgd-7", range(n)) for kind, n in ((HIRE, 30), (TRADITIONAL, 20), (ANN, 10))]
    text = page(table(*rows).reindex(columns=_columns()), "command")
    # Table 1 of the paper: 9.1 for HIRE, 3.8 more than traditional and 7.1 more than the ANN.
    assert "| PGD-7 | 30.0 | 9.1 | +10.0 | +3.8 | +20.0 | +7.1 |" in text
    assert "Kundu et al., ICCV 2021" in text
    assert "Its numbers for Gaussian noise are not known" in text
    assert "cifar10/resnet12-ann" in text.rpartition("Not in the zoo")[2]


def test_spikes_and_time_are_judged_by_their_numbers() -> None:
    def spikes(kind: str, *values: float) -> list[dict[str, Any]]:
        return [
            {**study.about(study.ZOO, Member("fashion-mnist", "vgg5", kind)), "suite": "rand",
             "attack": "activity", "layer": f"features.{i}", "value": value}
            for i, value in enumerate(values)
        ]  # fmt: skip

    said = "Direct-input networks of few steps spike more"
    some = table(*spikes(members.FROM_RATE, 0.2, 0.1), *spikes(members.RATE, 0.1, 0.3))
    assert spikes_by_layer(some, "fashion-mnist", "vgg5", members.RATE)["features.1"] == 0.3
    assert "**depends**" in line(some, said)
    some = table(*spikes(members.FROM_RATE, 0.2, 0.4), *spikes(members.RATE, 0.1, 0.3))
    assert "**holds**" in line(some, said)
    for value, word in ((1.05, "holds"), (1.4, "does not hold")):
        # The time of a kind is measured on a network of another, which must not stand for it.
        one = {"part": study.OVERHEAD, "model": "a/b", "kind": HIRE, "value": value, "low": 1.0,
               "high": 1.5, "samples": 12, "data": "a", "architecture": "b", "seed": 1,
               "suite": "training", "attack": "time"}  # fmt: skip
        assert f"**{word}**" in line(table(one), "HIRE training costs nothing extra")
        own = row(TRADITIONAL, "pgd-7", range(40))
        both = table(own, {**one, "model": own["model"], "data": "cifar10", "architecture": "vgg5"})
        assert "published **not measured**" in line(both, WON)


def test_a_converted_network_is_shown_with_all_its_steps() -> None:
    member = Member("fashion-mnist", "vgg5", members.CONVERTED)
    rows = [
        {**study.about(study.CONVERSION, member), "model": f"{member.name} at T = {steps}",
         "suite": "long", "attack": "activity", "layer": "features.1", "value": 1 / steps}
        for steps in study.LONG
    ]  # fmt: skip
    found = spikes_by_layer(table(*rows), "fashion-mnist", "vgg5", members.CONVERTED)
    assert found == {"features.1": 1 / 256}
    # Under averages over draws it would take days.
    assert study.zoo_rows(member, study.Bench(Path("none"))) == []


def test_verdicts() -> None:
    assert verdict([True]) == "holds" and verdict([False, True]) == "depends"


def test_time_is_measured_for_every_way_of_training() -> None:
    network = load_network(read_checkpoint("fashion-mnist/vgg5-snn"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = overhead.ratios(network, torch.rand(4, 1, 28, 28), torch.arange(4), rounds=3)
    assert found.keys() == overhead.UPDATES.keys()
    assert found[TRADITIONAL] == (1.0, 1.0, 1.0)
    # Adversarial training has a pass more.
    assert found[members.SNN_AT][1] > 1.2
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_network_runs_over_other_time_steps() -> None:
    subject = sweeps.at_steps("fashion-mnist/vgg5-snn", 2)
    network, known = subject.load(), load_network(read_checkpoint("fashion-mnist/vgg5-snn"))
    images = torch.rand(3, 1, 28, 28)
    known.time_steps = 2
    torch.testing.assert_close(network(images), known(images))
    assert subject.name == "fashion-mnist/vgg5-snn at T = 2"
    assert subject.identity != subject_of("fashion-mnist/vgg5-snn").identity


def test_thresholds_and_leaks_of_the_grid_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(sweeps, "train", lambda *given, **more: asked.append((given, more)))
    bench = study.Bench(tmp_path, data_root=tmp_path / "data")
    sweeps.trained_with(0.15, 0.75, tmp_path / "made", bench)
    ((path, _, folder), more) = asked[0]
    recipe = load_recipe(path, more["overrides"])
    assert recipe.dynamics == "held" and recipe.epochs == 3 and folder == tmp_path / "made"
    assert recipe.conversion is not None
    assert (recipe.conversion.scale, recipe.conversion.leak) == (0.15, 0.75)
    # The first layer sees the same currents, so that its threshold follows the factor exactly.
    network = load_network(read_checkpoint("fashion-mnist/vgg5-ann"))
    images = torch.rand(8, 1, 28, 28)
    found = [
        convert(network, recipe.network, [images], scale=scale, steps=4, leak=0.75)
        for scale in sweeps.SCALES
    ]
    first = [next(iter(net.spiking_layers().values())).threshold.item() for net in found]
    assert [t / first[0] for t in first] == pytest.approx([1.0, 2.0, 4.0], rel=1e-5)
    # Every later layer differs too, if not by the same factor: it sees other spikes.
    for layers in zip(*(net.spiking_layers().values() for net in found), strict=True):
        assert len({layer.threshold.item() for layer in layers}) == 3
        assert all(layer.leak.item() == pytest.approx(0.75) for layer in layers)


def test_names_are_those_of_the_zoo() -> None:
    assert {m.name for m in members.present()} <= set(zoo_names())
    assert Member("fashion-mnist", "vgg5", HIRE).other_seed.name == "fashion-mnist/vgg5-snn-hire-b"
    assert "cifar10/vgg5-snn" not in members.absent()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Member]:
    """A zoo of two tiny networks in the place of the one that ships; one of them draws."""
    zoo = tmp_path / "zoo"
    for end, fields in (
        ("snn", {"mean": (0.286,), "std": (0.353,)}),
        ("snn-rate", {"mean": (0.5,), "std": (0.5,), "encoding": "poisson"}),
    ):
        torch.manual_seed(0)
        config = NetworkConfig.model_validate(
            {"architecture": "vgg5", "kind": "snn", "classes": 10, "image": (1, 28, 28),
             "widths": (2, 2, 2), "classifier": (8,), "time_steps": 2, **fields}
        )  # fmt: skip
        save_checkpoint(
            Network(config), zoo / "fashion-mnist" / f"vgg5-{end}", data="fashion-mnist",
            class_names=tuple("abcdefghij"), provenance={"method": "hybrid"},
        )  # fmt: skip
    monkeypatch.setattr("robustsnn.models.zoo.folder", lambda _: zoo)
    kinds = (TRADITIONAL, members.RATE)
    return [Member("fashion-mnist", "vgg5", kind) for kind in kinds]


@pytest.mark.slow
def test_a_study_runs_is_read_again_and_is_not_repeated(
    tiny: list[Member], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short suites stand for the long ones: what is run, kept and written is the same."""

    def short(name: str) -> Suite:
        suite = load_suite(name)
        return suite.model_copy(update={"entries": suite.entries[:1]})

    monkeypatch.setattr(study, "load_suite", short)
    said: list[str] = []
    bench = study.Bench(tmp_path / "runs", samples=4, say=said.append)
    *_, found = study.collected(bench, tiny, (study.ZOO,))
    assert [one.rpartition(", ")[2] for one in said] == ["hire-iccv21", "standard", "rand"]
    # A network that draws is under averaged gradients only.
    drawn = found[found["kind"] == members.RATE]
    assert set(drawn["suite"]) == {"rand"} and set(drawn["encoding"].dropna()) == {"poisson"}
    clean = found[(found["attack"] == "clean") & (found["suite"] == "standard")].iloc[0]
    assert clean["samples"] == 4 and clean["spikes"] >= 0 and clean["energy_uj"] > 0
    write(found, tmp_path / "out", "python -m studies claims")
    kept = pd.read_csv(tmp_path / "out" / "claims.csv")
    for again in (
        replace(bench, earlier=kept, finished_only=True, runs=tmp_path / "none"),
        replace(bench, finished_only=True),
    ):
        said.clear()
        *_, read = study.collected(again, tiny, (study.ZOO,))
        assert said == [] and len(read) == len(found)
        write(read, tmp_path / "again", "python -m studies claims")
        for name in ("claims.csv", "claims.md"):
            one, other = ((tmp_path / where / name).read_text() for where in ("out", "again"))
            assert one == other
