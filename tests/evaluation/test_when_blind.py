"""Entries that run only where the score of a network is blind, and that read it inside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from robustsnn.diagnosis.stages import Stage, missing
from robustsnn.evaluation.run import Evaluation, evaluate
from robustsnn.evaluation.suites import Suite
from robustsnn.records.summary import survivors
from tests.evaluation.test_cascade import Some, data_of, entry, suite_of
from tests.evaluation.test_resume import Stop, same

APGD = "apgd:steps=10,loss=margin"


class Plain(nn.Module):
    """A score of four classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score = nn.Linear(16, 4)
        self.score.weight.data *= 3
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        z: Tensor = self.score(images.flatten(1) - 0.5)
        return z


class Vote(nn.Module):
    """Its winner alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Plain()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return F.one_hot(self.inner(images).argmax(1), 4).to(images)


def suite(*more: dict[str, Any], epsilon: Any = "16/256") -> Suite:
    inner = entry("Inner", APGD, when="blind", reads="inner")
    rays = entry("RayS", "rays:queries=40", when="blind")
    return suite_of(entry("APGD", APGD), *more, inner, rays, epsilon=epsilon)


def data() -> Some:
    return data_of(Plain())


def spent(found: Evaluation) -> dict[str, int]:
    return {row["attack"]: row["attacked"] for row in found.manifest.ledger}


def left(found: Evaluation) -> set[int]:
    return survivors(found.records)


def test_a_vote_is_attacked_in_front_as_if_it_were_not_there() -> None:
    # The same attack, with the same draws, on what was voted about.
    truth = evaluate(Plain(), data(), suite_of(entry("Inner", APGD)))
    only = suite_of(entry("Inner", APGD, when="blind", reads="inner"))
    found = evaluate(Vote(), data(), only)
    assert left(found) == left(truth) and 0 < len(left(truth)) < 40
    rows = [f.records[f.records["attack"] == "inner"] for f in (found, truth)]
    for column in ("prediction", "linf", "forward_passes"):
        assert rows[0][column].tolist() == rows[1][column].tolist(), column
    # The vote is still the judge: its margin is that of one voice against none.
    assert set(rows[0]["margin"]) == {-1.0, 1.0}


def test_nothing_is_spent_where_the_score_is_not_blind() -> None:
    found = evaluate(Plain(), data(), suite())
    assert spent(found)["apgd"] > 0
    assert spent(found)["inner"] == spent(found)["rays"] == 0
    assert "blind-score" not in {flag["flag"] for flag in found.flags}
    plain = evaluate(Plain(), data(), suite_of(entry("APGD", APGD)))
    assert left(found) == left(plain)


def test_it_is_flagged_and_answered_where_it_is() -> None:
    found = evaluate(Vote(), data(), suite())
    counts = spent(found)
    assert counts["apgd"] > 0 and counts["inner"] > 0 and counts["rays"] > 0
    (flag,) = [flag for flag in found.flags if flag["flag"] == "blind-score"]
    assert flag["details"]["layer"] == "inner"
    assert found.level != "A"


def test_without_a_layer_in_front_only_labels_are_searched() -> None:
    class Bare(Vote):
        def forward(self, images: Tensor) -> Tensor:
            z = (images.flatten(1) - 0.5) @ self.inner.score.weight.T + self.inner.score.bias
            return F.one_hot(z.argmax(1), 4).to(images)

    found = evaluate(Bare(), data(), suite())
    assert spent(found)["inner"] == 0 and spent(found)["rays"] > 0
    before, after = (row["left"] for row in found.manifest.ledger if row["attack"] != "inner")
    assert after < before


def test_a_blind_score_that_nothing_survives_is_no_flag() -> None:
    found = evaluate(Vote(), data(), suite(epsilon="200/256"))
    assert left(found) == set()
    assert "blind-score" not in {flag["flag"] for flag in found.flags}


def test_a_run_that_was_stopped_goes_on_as_one_that_was_not(tmp_path: Any) -> None:
    whole = evaluate(Vote(), data(), suite(), output=tmp_path / "whole", batch_size=8)

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("Inner"):
            raise Stop

    with pytest.raises(Stop):
        evaluate(Vote(), data(), suite(), output=tmp_path / "parts", batch_size=8, progress=stop)
    again = evaluate(Vote(), data(), suite(), output=tmp_path / "parts", batch_size=8)
    assert left(again) == left(whole)
    same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"reads": "inner"}, "add when: blind"),
        ({"when": "blind", "probe": True}, "a probe always runs"),
        ({"when": "blind", "substitute": True}, "a substitute always runs"),
        ({"when": "always"}, "blind"),
        ({"when": "blind", "reads": "outer"}, "inner"),
    ],
)
def test_what_cannot_be_meant_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        suite_of(entry("A", APGD, **more))


def test_it_works_in_a_cascade_only() -> None:
    with pytest.raises(ValidationError, match="cascade"):
        suite_of(entry("A", APGD, when="blind"), cascade=False)


def test_a_suite_without_it_keeps_its_digest() -> None:
    plain = suite_of(entry("A", APGD))
    assert '"when"' not in plain.model_dump_json(exclude_none=True)
    assert plain.digest() == suite_of(entry("A", APGD, when=None, reads=None)).digest()
    assert plain.digest() != suite_of(entry("A", APGD, when="blind")).digest()


def test_what_runs_on_a_condition_makes_no_suite_a_full_one() -> None:
    search = Stage("square", "Linf", "8/255", "fixed-epsilon", True, queries=5000)
    long = Stage("apgd", "Linf", "8/255", "fixed-epsilon", False, steps=200)
    assert missing([long, search], spiking=False) == []
    waiting = Stage.of({**search.row(), "when": "blind"})
    assert waiting.row()["when"] == "blind" and "when" not in search.row()
    assert missing([long, waiting], spiking=False) != []
