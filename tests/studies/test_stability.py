"""The stability study: scaled budgets, survivors of tiny networks, kept rows, and aims."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.common.randomness import Rng
from robustsnn.data.images import Images
from robustsnn.errors import InputError
from robustsnn.evaluation.inputs import images_of
from robustsnn.evaluation.suites import Suite, load_suite
from robustsnn.models.subject import Subject, subject_of
from studies.shared import survivors_in
from studies.stability import page as stability_page
from studies.stability import study as stability
from studies.stability.study import Study, Variant

CLASSES, SIDE, NUMBER = 5, 6, 10
#: A radius within which some of the images can be broken.
RADIUS = 0.01
MODEL, OTHER = "fashion-mnist/vgg5-ann", "fashion-mnist/vgg5-snn"


class Flat(nn.Module):
    """A linear network with equal classes at grey, which notes the sizes of its batches."""

    seen: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(SIDE * SIDE, CLASSES, generator=draws).double())

    def forward(self, images: Tensor) -> Tensor:
        Flat.seen.append(len(images))
        return (images.double().flatten(1) - 0.5) @ self.weight


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of(Flat(), name="tiny/flat")


@pytest.fixture(scope="module")
def images(subject: Subject) -> Images:
    """Images that are right when clean, with pixels far from the ends of the range."""
    pixels = 0.3 + 0.4 * torch.rand(
        NUMBER, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2)
    )
    return images_of((pixels, subject.load()(pixels).argmax(1)), subject)


@pytest.fixture(scope="module")
def short() -> Suite:
    """`standard` with a twentieth of every budget, at a size that breaks some of the images."""
    return stability.scaled(load_suite("standard").at(epsilon=str(RADIUS)), 0.05)


def within_reach(subject: Subject, images: Images, radius: float) -> set[int]:
    """Images that some corner of the ball breaks, computed from the weights alone."""
    network = subject.load()
    assert isinstance(network, Flat)
    weight, x = network.weight, images.tensor().double().flatten(1) - 0.5
    found = set()
    for image, label in zip(images.ids.tolist(), images.labels.tolist(), strict=True):
        gaps = weight[:, label, None] - weight
        least = x[image] @ gaps - radius * gaps.abs().sum(0)
        if (torch.cat([least[:label], least[label + 1 :]]) <= 0).any():
            found.add(image)
    return found


def written(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("factor", [0.5, 2])
def test_every_budget_of_standard_is_scaled_and_nothing_else(factor: float):
    suite = load_suite("standard")
    other = stability.scaled(suite, factor)
    assert other.name == {0.5: "standard-halved", 2: "standard-doubled"}[factor]
    assert len(other.entries) == len(suite.entries)
    for before, after in zip(suite.entries, other.entries, strict=True):
        assert after.model_copy(update={"attack": before.attack}) == before
        first: Any = load_attack(before.attack)
        second: Any = load_attack(after.attack)
        budgets = {name for name in ("steps", "queries") if hasattr(first, name)}
        assert budgets
        scaled = {name: int(factor * getattr(first, name)) for name in budgets}
        assert dataclasses.replace(first, **scaled) == second
    assert other.model_copy(update={"name": suite.name, "entries": suite.entries}) == suite


def test_the_suite_as_it_is_is_the_suite_itself_and_small_budgets_stay_above_zero():
    suite = load_suite("standard")
    assert stability.budgets(suite)[0].suite.digest() == suite.digest()
    least: list[Any] = [load_attack(e.attack) for e in stability.scaled(suite, 0.0001).entries]
    assert {getattr(attack, "steps", 1) for attack in least} == {1}


def test_budgets_leave_what_is_out_of_reach_and_resume(
    tmp_path: Path, subject: Subject, images: Images, short: Suite
):
    said: list[str] = []
    variants = stability.budgets(short)

    def study(finished_only: bool = False) -> Study:
        return stability.study(
            "budgets", subject, images, variants, tmp_path, say=said.append,
            finished_only=finished_only,
        )  # fmt: skip

    assert study(finished_only=True) == Study(()) and not said
    first = study()
    assert len(said) == 3
    reached = within_reach(subject, images, RADIUS)
    assert 0 < len(reached) < NUMBER
    for row in first.rows:
        assert survivors_in(row) == set(range(NUMBER)) - reached, row["variant"]
        assert row["clean"] == 1 and row["classes"] == CLASSES
    # The passes of survivors grow with the budgets.
    spent = {row["variant"]: row["backward_passes"] for row in first.rows}
    assert spent["halved"] < spent["as it is"] < spent["doubled"] < 3 * spent["as it is"]
    assert sum(stage["broken"] for stage in first.stages) == len(reached)
    assert first.stages[0]["reached"] == NUMBER
    assert {path.name for path in (tmp_path / f"tiny-flat-{NUMBER}").iterdir()} == {
        variant.suite.name for variant in variants
    }

    files = written(tmp_path)
    assert study() == first == study(finished_only=True)
    assert len(said) == 3 and written(tmp_path) == files


def test_a_ball_that_holds_everything_leaves_nothing(
    tmp_path: Path, subject: Subject, images: Images, short: Suite
):
    (variant,) = stability.everything(short)
    found = stability.study("epsilon", subject, images, [variant], tmp_path, say=lambda _: None)
    assert [(row["standing"], row["epsilon"]) for row in found.rows] == [("", "0.5")]
    table = stability.tabled([{**row, "variant": "epsilon 0.5"} for row in found.rows])
    assert stability_page.aims(table)["epsilon"].met


def test_draws_of_noise_are_taken_together_and_differ(
    tmp_path: Path, subject: Subject, images: Images, short: Suite, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stability, "DRAWS", 20)
    wide = short.at(epsilon="0.2")
    found = stability.study(
        "noise", subject, images, stability.noise(wide), tmp_path, say=lambda _: None
    )
    step, noise = found.rows
    network, threat = subject.load(), ThreatModel("Linf", "0.2")
    labels = torch.from_numpy(images.labels)
    right = torch.ones(NUMBER, dtype=torch.bool)
    alone = []
    for draw in range(1, 21):
        point = threat.random_point(images.tensor(), Rng(0, images.ids.tolist(), f"draw-{draw}"))
        alone.append(network(point).argmax(1) == labels)
        right &= alone[-1]
    assert survivors_in(noise) == set(right.nonzero().flatten().tolist())
    assert int(right.sum()) < min(int(one.sum()) for one in alone)
    assert len(survivors_in(step)) <= len(survivors_in(noise))


def test_batches_change_what_is_computed_together_and_no_verdict_of_a_linear_network(
    tmp_path: Path, subject: Subject, images: Images, short: Suite, monkeypatch: pytest.MonkeyPatch
):
    # These run batches of their own: whether logits depend on the batch, and which it may be.
    monkeypatch.setattr("robustsnn.evaluation.memory.preflight", lambda *_: [])
    monkeypatch.setattr("robustsnn.models.subject.fixed_batch", lambda *_: None)
    reached = within_reach(subject, images, RADIUS)
    for variant in stability.batches(short):
        Flat.seen.clear()
        found = stability.study("batches", subject, images, [variant], tmp_path, say=lambda _: None)
        (row,) = found.rows
        # A pass is not padded beyond the images of a run, or 32.
        assert row["batch"] == min(variant.batch_size or 32, 32)
        # A single image is padded to a batch of four.
        assert max(Flat.seen) == max(4, row["batch"])
        assert survivors_in(row) == set(range(NUMBER)) - reached


def test_reversed_images_keep_their_ids(images: Images):
    other = stability.backwards(images)
    assert other.ids.tolist() == list(reversed(images.ids.tolist()))
    for place, image in enumerate(other.ids.tolist()):
        assert torch.equal(other.tensor(slice(place, place + 1))[0], images.tensor()[image])
        assert other.labels[place] == images.labels[image]
    assert other.fingerprint != images.fingerprint


def test_each_network_is_run_once_at_a_number_of_ones_own():
    assert [(c.model, c.samples) for c in stability.cases_of("budgets")].count((OTHER, 1000)) == 1
    few = stability.cases_of("budgets", samples=7)
    assert len({case.model for case in few}) == len(few) == 5
    assert {(case.samples, case.variants) for case in few} == {(7, None)}
    assert [case.model for case in stability.cases_of("epsilon", [OTHER])] == [OTHER]
    with pytest.raises(InputError, match="nothing"):
        stability.studies(["nothing"], Path())
    with pytest.raises(InputError, match="resnet12-ann"):
        stability.studies(["batches"], Path(), ["fashion-mnist/resnet12-ann"])


# --- tables made by hand --------------------------------------------------------------------------


def row(part: str, variant: str, survivors: Sequence[int], samples: int = 200, **more: object):
    common = {
        "part": part, "model": MODEL, "samples": samples, "variant": variant,
        "basis": "012345678901", "epsilon": "8/255", "batch": 32, "classes": 10, "clean": 0.9,
        "forward_passes": 10.0, "backward_passes": 5.0, "seconds": 50.0, "level": "B",
        "standing": " ".join(map(str, survivors)),
    }  # fmt: skip
    return common | more


def stage(**more: object):
    common = {
        "model": MODEL, "samples": 200, "basis": "012345678901", "stage": "sa-pgd",
        "estimator": "bptt", "reached": 80, "broken": 3, "left": 0.385, "forward_passes": 9.0,
        "backward_passes": 4.0, "seconds": 2.0,
    }  # fmt: skip
    return common | more


def aim(*rows: stability.Row) -> stability_page.Aim:
    return stability_page.aims(stability.tabled(rows))[rows[0]["part"]]


def test_one_image_of_two_hundred_is_half_a_point_and_one_of_a_thousand_is_less():
    plain = row("budgets", "as it is", range(50), level="A")
    assert aim(plain).met is None
    fine = aim(plain, row("budgets", "doubled", range(50)))
    assert fine.met and str(fine).startswith("**Met so far.**")
    moved = aim(plain, row("budgets", "doubled", range(49)))
    assert moved.met is False and "0 of 1 comparison, at most by −0.5 points" in moved.sentence
    assert aim(
        row("budgets", "as it is", range(50), 1000, level="A"),
        row("budgets", "doubled", range(46), 1000),
    ).met
    # A level below A says that the number may fall.
    told = aim({**plain, "level": "B"}, row("budgets", "doubled", range(40)))
    assert told.met and "0 of 1 comparison" in told.sentence and "no level A" in told.sentence


def test_lost_and_gained_are_told_apart_by_image():
    table = stability.tabled(
        [row("budgets", "as it is", [1, 2, 3]), row("budgets", "doubled", [2, 3, 9, 11])]
    )
    assert table.loc[1, ["lost", "gained", "differ"]].tolist() == [1, 2, "1 9 11"]
    assert table["accuracy"].tolist() == [3 / 200, 4 / 200]


def test_chance_is_still_chance():
    assert aim(row("epsilon", "epsilon 0.5", range(20))).met
    assert aim(row("epsilon", "epsilon 0.5", range(21))).met is False


def test_noise_may_tie_with_a_step_but_not_beat_it():
    step = row("noise", "FGSM", range(30))
    assert aim(step, row("noise", "100 draws of noise", range(100, 130))).met
    beaten = aim(step, row("noise", "100 draws of noise", range(29)))
    assert beaten.met is False and f"not on {MODEL}" in beaten.sentence


def test_verdicts_may_differ_on_half_a_percent_of_the_images():
    first = row("batches", "100 a pass", range(30))
    assert aim(first, row("batches", "7 a pass", range(29))).met
    few = row("batches", "100 a pass", range(30), 100)
    more = aim(few, row("batches", "7 a pass", [*range(29), 77], 100))
    assert more.met is False and "29, 77" in more.sentence


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure is drawn, since that takes longer than everything else."""
    monkeypatch.setattr(stability_page, "figure", lambda *_: None)


def test_what_is_left_by_stage_is_drawn(tmp_path: Path):
    stages = pd.DataFrame([stage(), stage(stage="square", reached=77, broken=0)])
    stability_page.figure(stages, tmp_path / "stages.png")
    assert (tmp_path / "stages.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("undrawn")
def test_earlier_rows_are_kept_as_they_were_written(tmp_path: Path):
    rows = [
        row("budgets", "as it is", [55], level="A"),
        row("budgets", "doubled", []),
        row("noise", "FGSM", [4, 7], model=OTHER, basis="0012e5678901"),
    ]
    table = stability_page.write([Study(tuple(rows), (stage(),))], tmp_path, "a command")
    names = ("stability.csv", "stages.csv", "stability.md")
    before = [(tmp_path / name).read_bytes() for name in names]
    again = stability_page.write([], tmp_path, "a command")
    assert [(tmp_path / name).read_bytes() for name in names] == before
    assert again["standing"].tolist() == table["standing"].tolist() == ["55", "", "4 7"]
    assert again["basis"].tolist() == ["012345678901"] * 2 + ["0012e5678901"]
    text = (tmp_path / "stability.md").read_text()
    assert "| SA-PGD | bptt | 80 | 3 | 38.5 | 9 / 4 |" in text
    assert "a command" in text and "**Met so far.**" not in text
    assert f"{MODEL} on 200 images (halved)" in text

    # A variant that is run now is compared with the first variant of an earlier run.
    now = stability_page.write(
        [Study((row("budgets", "halved", [55, 56]),))], tmp_path, "a command"
    )
    assert now["variant"].tolist() == ["as it is", "halved", "doubled", "FGSM"]
    assert now["gained"].tolist()[:3] == [0, 1, 0]


@pytest.mark.usefixtures("undrawn")
def test_rows_of_another_suite_or_network_are_dropped_where_it_was_run_anew(tmp_path: Path):
    rows = (row("budgets", "as it is", [1]), row("budgets", "doubled", [1]))
    other = row("budgets", "as it is", [5], model=OTHER)
    stability_page.write(
        [Study((*rows, other), (stage(), stage(model=OTHER)))], tmp_path, "a command"
    )
    anew = row("budgets", "as it is", [1, 2], basis="another")
    table = stability_page.write([Study((anew,), (stage(basis="another"),))], tmp_path, "a command")
    assert table[["model", "basis"]].to_numpy().tolist() == [
        [MODEL, "another"],
        [OTHER, "012345678901"],
    ]
    stages = pd.read_csv(tmp_path / "stages.csv", dtype=str)
    assert stages["basis"].tolist() == ["another", "012345678901"]


def test_every_part_has_its_page_and_names_its_variants_apart():
    suite = load_suite("standard")
    folders: list[str] = []
    for name, part in stability.PARTS.items():
        variants: Sequence[Variant] = part.variants(suite)
        assert len({variant.name for variant in variants}) == len(variants)
        folders += [variant.folder for variant in variants]
        for case in part.cases:
            assert case.variants is None or set(case.variants) <= {v.name for v in variants}
        assert name in stability_page.AIMS
    assert len(set(folders)) == len(folders)
