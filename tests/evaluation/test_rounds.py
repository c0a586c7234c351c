"""Entries that go on until they have converged, on a network whose every answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from robustsnn.evaluation.run import Evaluation, evaluate
from robustsnn.evaluation.suites import Suite
from robustsnn.evaluation.until import rounds_of, steps_in
from tests.evaluation.test_cascade import Line, Some, entry, suite_of
from tests.evaluation.test_resume import Stop, same

#: Each step darkens every pixel by 1/65536, so that `Line` turns after as many steps as it says.
DARKER = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Darker:
    kind: ClassVar[str] = "fixed-epsilon"
    steps: int = 1

    def __call__(self, victim, images, labels, threat, rng):
        victim.gradient(images, labels)
        return images - self.steps / 65536

ATTACK = Darker
"""
#: A search without gradient that turns the images that are darker than a limit.
SEEKER = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Seeker:
    kind: ClassVar[str] = "fixed-epsilon"
    gradient_free: ClassVar[bool] = True
    limit: float = 0.51
    queries: int = 1000

    def __call__(self, victim, images, labels, threat, rng):
        victim.logits(images)
        found = images.flatten(1).mean(1) < self.limit
        return images - threat.radius * found.reshape(-1, 1, 1, 1)

ATTACK = Seeker
"""
#: The steps after which the first images turn; the others need more than a ball holds.
TURNS = {400: 20, 800: 10, 1600: 2, 3200: 1}
IMAGES = 200


def images(turns: dict[int, int]) -> Some:
    """Images of the second class that turn after the steps that are asked for, just so."""
    needed = [steps for steps, count in turns.items() for _ in range(count)]
    needed += [20_000] * (IMAGES - len(needed))
    means = 0.5 + torch.tensor(needed, dtype=torch.float32) / 65536
    pixels = means.reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
    return Some(pixels, np.ones(IMAGES, dtype=np.int64), np.arange(IMAGES))


@pytest.fixture
def darker(tmp_path: Path) -> str:
    path = tmp_path / "darker.py"
    path.write_text(DARKER)
    return f"{path}:steps=400"


def suite(attack: str, **until: Any) -> Suite:
    return suite_of(entry("Darker", attack, until=until))


def spent(found: Evaluation) -> dict[str, int]:
    rows = found.records
    return {
        attack: int(rows[rows["attack"] == attack]["forward_passes"].sum())
        for attack in dict.fromkeys(rows["attack"])
        if attack != "clean"
    }


def left(found: Evaluation) -> dict[str, int]:
    accuracy = dict(zip(found.results["attack"], found.results["accuracy"], strict=True))
    return {name: round(IMAGES * value) for name, value in accuracy.items() if "darker" in name}


def flagged(found: Evaluation) -> list[dict[str, Any]]:
    return [dict(flag) for flag in found.flags if flag["flag"] == "not-converged"]


def test_rounds_double_until_one_breaks_too_little(darker: str) -> None:
    turns = {**TURNS, 1600: 0}
    found = evaluate(Line(), images(turns), suite(darker, gain=0.5))
    assert left(found) == {
        "darker-400": 180, "darker-800": 170, "darker-1600": 170, "darker-3200": 170,
    }  # fmt: skip
    # The image that turns after 3,200 steps is not looked for, and nothing is spent on it.
    assert spent(found) == {
        "darker-400": 200, "darker-800": 180, "darker-1600": 170, "darker-3200": 0,
    }  # fmt: skip


def test_the_last_round_says_what_it_still_broke(darker: str) -> None:
    found = evaluate(Line(), images(TURNS), suite(darker, gain=0.5))
    assert spent(found)["darker-3200"] == 168
    assert left(found)["darker-3200"] == 167
    # One image of 200 is half a point, which is not less than the gain.
    (flag,) = flagged(found)
    assert "broke 0.5 points (1 image)" in flag["sentence"]
    assert flag["details"]["by steps"] == {"400": 0.1, "800": 0.05, "1600": 0.01, "3200": 0.005}
    assert found.level == "B"


@pytest.mark.parametrize(
    ("turns", "gain", "rounds", "flags"),
    [
        ({400: 20}, 0.5, 2, False),
        ({400: 20, 800: 1}, 0.6, 2, False),
        # Two images are below a gain of 1.5 points, and more than the one image of a level A.
        ({400: 20, 800: 2}, 1.5, 2, True),
        ({800: 20}, 0.5, 3, False),
        ({}, 0.5, 2, False),
    ],
)
def test_when_it_ends(darker: str, turns: Any, gain: float, rounds: int, flags: bool) -> None:
    found = evaluate(Line(), images(turns), suite(darker, gain=gain))
    assert sum(passes > 0 for passes in spent(found).values()) == rounds
    assert bool(flagged(found)) == flags


def test_at_least_and_at_most_so_many_rounds(darker: str) -> None:
    found = evaluate(Line(), images({}), suite(darker, least=3, most=3))
    assert list(spent(found)) == ["darker-400", "darker-800", "darker-1600"]
    assert all(spent(found).values())


def test_sizes_converge_apart(darker: str) -> None:
    """What one size needs does not end the rounds of another."""
    some = suite_of(entry("Darker", darker, until={}), epsilon=["16/256", "0"])
    rows = evaluate(Line(), images(TURNS), some).records
    used = rows.groupby(["attack", "epsilon"])["forward_passes"].sum()
    assert used["darker-3200", "16/256"] == 168 and used["darker-400", "0"] == 0


def test_a_killed_run_goes_on(darker: str, tmp_path: Path) -> None:
    turns = {**TURNS, 1600: 0}
    settings: dict[str, Any] = {"batch_size": 64, "save_images": True}
    some = images(turns)
    evaluate(Line(), some, suite(darker), output=tmp_path / "whole", **settings)
    seen: list[str] = []

    def stop(what: str, done: int, total: int) -> None:
        if done > len(seen):
            seen.append(what)
            raise Stop

    for _ in range(60):
        try:
            evaluate(
                Line(), some, suite(darker), output=tmp_path / "parts", progress=stop, **settings
            )
        except Stop:
            continue
        break
    assert any("1600" in what for what in seen) and not any("3200" in what for what in seen)
    same(tmp_path / "whole", tmp_path / "parts")


# --- a sample before the rest -------------------------------------------------------------------


@pytest.fixture
def seeker(tmp_path: Path) -> str:
    path = tmp_path / "seeker.py"
    path.write_text(SEEKER)
    return str(path)


def seeking(seeker: str, turns: dict[int, int], size: int = 64) -> Evaluation:
    some = images(turns)
    return evaluate(Line(), some, suite_of(entry("Seeker", seeker, sample=size)))


def test_a_sample_that_stands_spares_the_others(seeker: str) -> None:
    found = seeking(seeker, {})
    rows = found.records[found.records["forward_passes"] > 0]
    (asked,) = [set(some["image_id"]) for name, some in rows.groupby("attack") if name != "clean"]
    assert len(asked) == 64 and rows["attack"].unique().tolist()[-1] == "seeker-sample"
    # It is drawn from all images by their ids, so that the first ones are not preferred.
    assert len(asked & set(range(100))) < 50 and len(asked & set(range(100, 200))) < 50
    assert spent(seeking(seeker, {})) == spent(found) == {"seeker-sample": 64, "seeker": 0}


def test_one_that_falls_sends_the_search_to_all(seeker: str) -> None:
    found = seeking(seeker, {400: 60})
    assert spent(found) == {"seeker-sample": 64, "seeker": 136}
    assert round(IMAGES * found.accuracy) == 140


def test_few_survivors_are_all_attacked(seeker: str) -> None:
    assert spent(seeking(seeker, {}, size=200)) == {"seeker-sample": 200, "seeker": 0}
    assert spent(seeking(seeker, {}, size=1000)) == {"seeker-sample": 200, "seeker": 0}


def test_an_image_has_the_same_draws_in_a_sample(checkpoints: Path) -> None:
    """What a search finds for an image does not depend on who else was attacked first."""
    settings: dict[str, Any] = {"samples": 40, "save_images": True}
    square = entry("Square", "square:queries=20")
    whole = evaluate(checkpoints / "snn", suite=suite_of(square), **settings).records
    parted = evaluate(checkpoints / "snn", suite=suite_of({**square, "sample": 39}), **settings)
    rows = parted.records[parted.records["forward_passes"] > 0].drop_duplicates(
        "image_id", keep="last"
    )
    alone = whole[whole["attack"] == "square"].set_index("image_id")["margin"]
    rows = rows[rows["attack"] != "clean"].set_index("image_id")
    assert len(rows) > 20
    np.testing.assert_allclose(rows["margin"], alone.loc[rows.index], atol=1e-5)


def test_what_a_sample_says_of_the_others(seeker: str, darker: str) -> None:
    some = suite_of(entry("Darker", darker), entry("Seeker", seeker, sample=50))
    found = evaluate(Line(), images({400: 20}), some)
    (measure,) = [m for m in found.manifest.diagnostics if m["slug"] == "black-box-finds-more"]
    (part,) = measure["details"]["samples"]
    assert (part["asked"], part["of"]) == (50, 180)
    # Wilson: with z = 1.96, none of n gives at most z^2 / (n + z^2).
    z2 = 1.959964**2
    assert part["at most"] == pytest.approx(z2 / (50 + z2) * 180 / 200, rel=1e-4)
    assert not measure["flagged"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"until": {"least": 1}}, "least"),
        ({"until": {"gain": 0}}, "gain"),
        ({"until": {"least": 4, "most": 3}}, "3 rounds are fewer than least, 4"),
        ({"until": {}, "probe": True}, "a probe runs once"),
        ({"until": {}, "attack": "sa-pgd"}, "names none: write steps=400"),
        ({"until": {}, "attack": "square:queries=100"}, "names none: write steps=400"),
        ({"until": {}, "sample": 64}, "an entry with until attacks all survivors"),
        ({"probe": True, "sample": 64}, "an entry with probe attacks all survivors"),
        ({"sample": 0}, "sample"),
    ],
)
def test_what_cannot_be_repeated_is_refused(fields: dict[str, Any], message: str) -> None:
    attack = fields.pop("attack", "sa-pgd:steps=400")
    with pytest.raises(ValidationError, match=message):
        suite_of(entry("Long", attack, **fields))


def test_labels_of_rounds_may_not_collide() -> None:
    one = entry("Long", "sa-pgd:steps=400", until={})
    with pytest.raises(ValidationError, match="two have the label 'long-800'"):
        suite_of(one, entry("Long 800", "pgd"))
    for field, value in (("until", {}), ("sample", 64)):
        with pytest.raises(ValidationError, match=f"{field} works in a cascade only"):
            suite_of(entry("Long", "sa-pgd:steps=400", **{field: value}), cascade=False)


def test_only_the_steps_of_the_attack_itself_are_doubled() -> None:
    attack = "my/steps=9.py:loss=margin, steps=400,more_steps=3"
    assert steps_in(attack) == 400
    (_, _), (_, second) = rounds_of("Long", attack, 2)
    assert second == "my/steps=9.py:loss=margin,steps=800,more_steps=3"
    assert steps_in("x:more_steps=3") is None
