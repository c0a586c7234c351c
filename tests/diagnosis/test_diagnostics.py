"""What records say of a run, and the level that follows: every rule, by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustsnn.diagnosis import flags as flagging
from robustsnn.diagnosis import level as levels
from robustsnn.diagnosis.finding import Finding, Severity, of_check, plain
from robustsnn.diagnosis.ledger import few_classes, ledger, total
from robustsnn.diagnosis.level import CRITERIA, FEWEST_IMAGES, SUITE, TITLES, Level, criterion_of
from robustsnn.diagnosis.stages import (
    Stage,
    as_recorded,
    black_box,
    by_size,
    convergence,
    missing,
    noise_survives,
    surrogate_gap,
)
from robustsnn.evaluation.run import Evaluation, evaluate
from robustsnn.evaluation.suites import Suite
from robustsnn.records.schema import Condition, Size
from robustsnn.records.summary import broken_by, right_when_clean, summarise, survivors
from tests.records.test_records import record

E8 = "8/255"
SIZE = Size("Linf", E8)


def stage(attack: str, estimator: str = "bptt", **changes: Any) -> Stage:
    own = Stage(attack, "Linf", E8, "fixed-epsilon", False, estimator=estimator, steps=10)
    return dataclasses.replace(own, **changes)


#: As `standard` on a spiking network, in short.
PROBES = [
    stage("probe-bptt", probe=True),
    stage("probe-arctan", "bptt:arctan(width=0.0796,amplitude=1)", probe=True),
    stage("probe-rga", "rga", probe=True),
]
LONG = [
    stage("apgd-ce", "best", steps=100),
    stage("apgd-margin", "assg:vanishing=0.45", steps=200),
    stage("apgd-again", "bptt:arctan(width=0.0796,amplitude=1):reset=attached", steps=200),
]
SEARCH = [stage("square", "none", black=True, steps=None, queries=5000)]
CASCADE = [*PROBES, *LONG, *SEARCH]


def cascade(broken: Mapping[str, int], images: int = 1000, **changes: Any) -> pd.DataFrame:
    """Rows that each stage made itself: it breaks the next so many images that are left."""
    rows = [record(i, "clean", 0, 0, 0, -1, estimator="none") for i in range(images)]
    left = list(range(images))
    for one in CASCADE:
        number = broken.get(one.attack, 0)
        for place, image in enumerate(left):
            fooled = place < number
            backward = 0 if one.black else 2
            made = {"backward_passes": backward, "estimator": one.estimator, **changes}
            margin = 1 if fooled else -1
            rows.append(record(image, one.attack, 0, int(fooled), 0, margin, **made))
        left = left[number:]
    return pd.DataFrame(rows)


def separate(right: Mapping[str, Sequence[int]], images: int = 1000) -> pd.DataFrame:
    """Rows of attacks that all see every image; `right` are those that stay so."""
    rows = [record(i, "clean", 0, 0, 0, -1) for i in range(images)]
    for attack, kept in right.items():
        some = set(kept)
        for i in range(images):
            ok = i in some
            rows.append(record(i, attack, 0, 0 if ok else 1, 0, -1 if ok else 1))
    return pd.DataFrame(rows)


# --- what records count -------------------------------------------------------------------------


def test_a_tie_and_a_missing_logit_are_broken_and_a_wrong_clean_image_is_not():
    rows = [
        *(record(i, "clean", 0, 0, 0, -1) for i in (0, 1, 2)),
        record(3, "clean", 0, 5, 5, 2),
        record(4, "clean", 0, 0, 0, 0.0),
        record(0, "a", 0, 0, 0, 0.0),
        record(1, "a", 0, -1, 0, np.nan),
        record(2, "a", 0, 0, 0, -1),
        record(3, "a", 0, 5, 5, 2),
        record(4, "a", 0, 0, 0, -1),
    ]
    records = pd.DataFrame(rows)
    assert broken_by(records) == {("a", "Linf", E8): {0, 1}}
    assert right_when_clean(records) == {0, 1, 2}
    assert survivors(records, SIZE) == {2}
    assert survivors(records, Size("L2", "1")) == {0, 1, 2}


def test_stages_know_their_kind():
    assert [s.own for s in CASCADE] == [True, False, False, False, False, False, False]
    assert stage("x", "bptt:reset=attached,cut=1").own and stage("x", "backprop").own
    assert not stage("x", "bptt:triangle(width=0.5,amplitude=1)").own
    assert [s.white for s in CASCADE] == [True] * 6 + [False]
    assert not stage("noise", kind="noise").white and not stage("noise", kind="noise").black
    seen = as_recorded([stage("a"), stage("b"), stage("gone")], separate({"a": [], "b": []}))
    assert [s.black for s in seen] == [False, False, False]
    records = separate({"a": []}).assign(backward_passes=0)
    assert as_recorded([stage("a")], records)[0].black


def test_an_attack_on_energy_is_not_compared_with_attacks_on_the_class():
    """It leaves every label where it is, and that says nothing about gradients or noise."""
    spent = stage("energy", kind="energy", steps=100)
    assert not spent.white and not spent.own and not spent.black
    assert missing([spent], spiking=False)[0] == "a gradient attack of 100 steps or more"
    rows = [record(i, "clean", 0, 0, 0, -1) for i in range(10)]
    rows += [record(i, "noise", 0, int(i < 5), 0, 1 if i < 5 else -1) for i in range(10)]
    rows += [record(i, "energy", 0, 0, 0, -1, zero_grad=2) for i in range(10)]
    records = pd.DataFrame(rows)
    noisy = stage("noise", "none", kind="noise", steps=None)
    found = {}
    for kind in ("energy", "fixed-epsilon"):
        some = [noisy, dataclasses.replace(spent, kind=kind)]
        results = summarise(records, "d", {"energy": (100, 1)})
        kinds = {one.attack: one.kind for one in some}
        flags = flagging.flags_of(records, results, kinds, 10, stages=some)
        found[kind] = {flag.slug: flag.severity for flag in flags}
    # Gradients that are all zero are told all the same: the attack stood still.
    assert found["energy"] == {"zero-gradient": "caution"}
    assert found["fixed-epsilon"] == {"zero-gradient": "invalid", "noise-beats-gradient": "invalid"}


# --- D3: the surrogate gap ----------------------------------------------------------------------


@pytest.mark.parametrize(("others", "flagged"), [(100, False), (101, True), (0, False)])
def test_surrogate_gap_of_a_cascade(others, flagged):
    records = cascade({"probe-bptt": 300, "probe-arctan": others, "apgd-ce": 400})
    found = surrogate_gap(records, CASCADE, cascade=True)
    assert found is not None and found.id == "D3"
    # What later stages break is no matter of the surrogate.
    assert found.evidence == pytest.approx(others / 1000) and found.flagged == flagged
    assert found.details["own"] == pytest.approx(0.7) and "70.0" in found.sentence
    assert found.severity == "caution"


def test_surrogate_gap_of_separate_attacks():
    some = [stage("own"), stage("other", "rga"), stage("third", "bptr")]
    kept = {"own": range(500), "other": range(300, 1000), "third": range(100, 1000)}
    found = surrogate_gap(separate(kept), some, cascade=False)
    # Others break images 0 to 299, all of which the own one left.
    assert found is not None and found.evidence == pytest.approx(0.3)
    assert found.flagged and found.severity == "invalid"


@pytest.mark.parametrize(
    "some",
    [
        [stage("own")],
        [stage("other", "rga")],
        [stage("own"), stage("square", black=True)],
        [stage("other", "rga", probe=True), stage("own", probe=True)],
    ],
)
def test_no_gap_without_both(some):
    records = separate({s.attack: range(500) for s in some})
    assert surrogate_gap(records, some, cascade=any(s.probe for s in some)) is None


# --- D5: convergence ----------------------------------------------------------------------------


@pytest.mark.parametrize(("last", "flagged"), [(5, False), (6, True)])
def test_what_the_last_long_attack_still_broke(last, flagged):
    records = cascade({"probe-bptt": 300, "apgd-ce": 90, "apgd-margin": 80, "apgd-again": last})
    found = convergence(records, CASCADE, cascade=True)
    assert found is not None and found.id == "D5" and found.flagged == flagged
    assert found.evidence == pytest.approx(last / 1000)
    assert found.details["by stage"]["apgd-margin"] == pytest.approx(0.08)


def test_no_convergence_without_two_long_attacks_of_a_cascade():
    records = cascade({"apgd-ce": 90})
    assert convergence(records, [*PROBES, LONG[0], *SEARCH], cascade=True) is None
    assert convergence(records, CASCADE, cascade=False) is None


def test_an_attack_that_waited_in_vain_is_not_the_last_one():
    waiting = dataclasses.replace(LONG[-1], attack="inner", when="blind")
    records = cascade({"probe-bptt": 300, "apgd-ce": 90, "apgd-margin": 80, "apgd-again": 20})
    assert "inner" not in set(records["attack"])
    found = convergence(records, [*CASCADE, waiting], cascade=True)
    assert found is not None and found.flagged and found.details["attack"] == "apgd-again"


# --- D7: black box against white box ------------------------------------------------------------


@pytest.mark.parametrize(("square", "flagged"), [(2, False), (3, True)])
def test_what_only_a_search_without_gradients_broke(square, flagged):
    found = black_box(cascade({"apgd-ce": 500, "square": square}), CASCADE)
    assert found is not None and found.id == "D7" and found.flagged == flagged
    assert found.evidence == pytest.approx(square / 1000)


def test_what_only_a_search_broke_of_separate_attacks():
    some = [stage("pgd"), stage("bb", black=True, kind="transfer"), stage("noise", kind="noise")]
    kept = {"pgd": range(500), "bb": range(10, 1000), "noise": range(20, 1000)}
    found = black_box(separate(kept), some)
    assert found is not None and found.evidence == pytest.approx(0.01)
    assert black_box(separate({"pgd": []}), some[:1]) is None


# --- D6: noise against the whole run ------------------------------------------------------------


def test_noise_that_fools_what_every_attack_left():
    records = cascade({"apgd-ce": 500})
    found = noise_survives(records, SIZE, [1, 2, 499], 100)
    assert found.id == "D6" and not found.flagged and found.evidence == 0
    found = noise_survives(records, SIZE, [499, 500, 7], 100)
    assert found.flagged and found.details["images"] == [500] and found.severity == "invalid"


# --- D14: the ledger ----------------------------------------------------------------------------


def test_ledger():
    records = cascade({"probe-bptt": 300, "square": 200}, zero_grad=1)
    rows = {row["attack"]: row for row in ledger(records, CASCADE)}
    first, search = rows["probe-bptt"], rows["square"]
    assert (first["attacked"], first["broken"], first["left"]) == (1000, 300, 0.7)
    assert (search["attacked"], search["broken"], search["left"]) == (700, 200, 0.5)
    assert first["forward_passes"] == 3 and first["backward_passes"] == 2
    assert first["zero_gradients"] == 0.5 and search["zero_gradients"] == 0
    assert first["seconds_per_image"] == 0.5
    assert first["seconds_per_survivor"] == pytest.approx(500 / 700)
    spent = total(list(rows.values()), 1000, {"forward_passes": 1000, "backward_passes": 240})
    assert (spent.id, spent.slug) == ("D14", "ledger") and not spent.flagged
    # 1000 images, then 700 in each of six stages.
    assert spent.details["forward passes"] == pytest.approx(3 * (1000 + 6 * 700) / 1000)
    passes = 3 * 5200 + 2 * (1000 + 5 * 700)
    assert spent.details["share of the probe"] == pytest.approx(1240 / (1240 + passes))


def test_few_classes():
    assert few_classes(2, []).sentence.startswith("With 2 classes the loss dlr")
    found = few_classes(3, ["APGD targeted"])
    assert found.id == "AA" and found.severity == "note" and "APGD targeted" in found.sentence
    assert found.slug == "few-classes" and found.flagged


# --- what a full suite is -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("some", "spiking", "words"),
    [
        (CASCADE, True, []),
        ([*LONG[:1], *SEARCH], False, []),
        ([*LONG[:1], *SEARCH], True, ["ways to differentiate"]),
        ([*PROBES, *SEARCH], True, ["100 steps"]),
        ([*PROBES, *LONG], True, ["without any gradient"]),
        (
            [*PROBES, *LONG, dataclasses.replace(SEARCH[0], queries=500)],
            True,
            ["without any gradient"],
        ),
        # From where gradients stopped is not from nothing.
        (
            [*PROBES, *LONG, dataclasses.replace(SEARCH[0], warm=True)],
            True,
            ["without any gradient"],
        ),
        ([stage("pgd")], False, ["100 steps", "without any gradient"]),
        ([], True, ["an attack"]),
        # At another size there is none of it.
        ([*CASCADE, stage("pgd", epsilon="4/255")], False, ["100 steps", "without any gradient"]),
    ],
)
def test_what_a_suite_lacks(some, spiking, words):
    found = missing(some, spiking)
    assert len(found) == len(words) and all(w in f for w, f in zip(words, found, strict=True))


def test_a_network_that_draws_is_sent_to_the_suite_that_averages(checkpoints):
    from robustsnn.evaluation.diagnose import stages_of
    from robustsnn.evaluation.plan import prepare
    from robustsnn.evaluation.request import Request

    found = stages_of(prepare(Request.of(checkpoints / "snn", None, "rand", samples=8)))
    # Fifty steps, each of them an average over twenty draws.
    assert missing(found, True, stochastic=True) == []
    assert any("100 steps" in words for words in missing(found, True))
    assert "suite rand" in levels.level_of([], ["a long attack"], 5, "rand").next


@pytest.mark.parametrize("kind", ["ann", "snn"])
@pytest.mark.parametrize(
    ("suite", "full"), [("standard", True), ("plus", True), ("light", False), ("quick", False)]
)
def test_which_shipped_suites_are_full(suite, full, kind, checkpoints):
    from robustsnn.evaluation.diagnose import stages_of
    from robustsnn.evaluation.plan import prepare
    from robustsnn.evaluation.request import Request

    pytest.importorskip("foolbox")
    plan = prepare(Request.of(checkpoints / kind, None, suite, samples=8))
    found = stages_of(plan)
    assert (missing(found, kind == "snn") == []) == full


# --- flags in context ---------------------------------------------------------------------------

KINDS = {one.attack: one.kind for one in CASCADE}


def flags_of(
    records: pd.DataFrame, some: Sequence[Stage], cascade: bool = True, **more: Any
) -> dict[str, str]:
    results = summarise(records, "d", {})
    found = flagging.flags_of(records, results, KINDS, 10, cascade=cascade, stages=some, **more)
    for flag in found:
        assert flag.sentence.endswith(".") and flag.id and flag.as_flag()["id"] == flag.id
    return {flag.slug: flag.severity for flag in found}


def still(*attacks: str) -> pd.DataFrame:
    """A cascade whose stages of these names never got a gradient."""
    records = cascade({}, images=50)
    records.loc[records["attack"].isin(attacks), "zero_grad"] = 2
    return records


def test_zero_gradients_of_one_attack_of_several():
    whites = [s.attack for s in CASCADE if s.white]
    assert flags_of(still(), CASCADE) == {}
    # Its own derivative stands still and others move: a footnote.
    assert flags_of(still("probe-bptt"), CASCADE) == {"zero-gradient": "caution"}
    # Another one does: in the ledger only.
    assert flags_of(still("probe-rga"), CASCADE) == {}
    # None moves.
    assert flags_of(still(*whites), CASCADE) == {"zero-gradient": "invalid"}
    # The only one there is.
    alone = still("apgd-ce")
    alone = alone[alone["attack"].isin(["clean", "apgd-ce"])]
    assert flags_of(alone, [], cascade=False) == {"zero-gradient": "invalid"}
    assert flags_of(alone, LONG[:1], cascade=False) == {"zero-gradient": "invalid"}


def test_checks_of_one_gradient_matter_less_where_there_are_several():
    def failed(check: str) -> list[Finding]:
        row = {"check": check, "passed": False, "sentence": "So.", "evidence": 1, "id": "D1"}
        return [of_check(row)]

    for check, one, several in (
        ("zero-gradient", "invalid", "caution"),
        ("repeatable", "invalid", "invalid"),
        ("ties", "caution", "caution"),
    ):
        checks = failed(check)
        assert flags_of(still(), CASCADE, checks=checks) == {check: several}
        assert flags_of(still(), PROBES[:1], checks=checks) == {check: one}


def test_findings_become_flags_of_their_rows():
    def finding(slug: str, severity: Any, *rows: Condition, flagged: bool = True) -> Finding:
        return Finding("D4", slug, flagged, severity, "So.", 0.1, {"a": float("nan")}, rows)

    records = cascade({}, images=20)
    results = summarise(records, "d", {})
    about = Condition("", "Linf", E8)
    findings = [
        finding("gradient-fidelity", "caution", about),
        finding("something", "invalid"),
        finding("of-one-row", "caution", Condition("apgd-ce", "Linf", E8)),
        finding("noted", "note", about),
        finding("unflagged", "invalid", about, flagged=False),
    ]
    flags = flagging.flags_of(
        records, results, KINDS, 10, cascade=True, stages=CASCADE, findings=findings
    )
    by_slug = {flag.slug: flag for flag in flags}
    assert set(by_slug) == {"gradient-fidelity", "something", "of-one-row"}
    rows = by_slug["gradient-fidelity"].rows
    assert {key[0] for key in rows} == {s.attack for s in CASCADE} | {"worst-case"}
    assert by_slug["something"].rows == ()
    assert by_slug["of-one-row"].rows == (("apgd-ce", "Linf", E8),)
    assert by_slug["of-one-row"].as_flag()["details"] == {"a": None}
    # Where only that gradient was followed, its fault is that of the number.
    flags = flagging.flags_of(records, results, KINDS, 10, stages=PROBES[:1], findings=findings[:1])
    assert next(f.severity for f in flags if f.slug == "gradient-fidelity") == "invalid"


def test_a_network_that_draws_is_flagged_unless_attacks_average():
    assert flags_of(still(), CASCADE, stochastic=True) == {"stochastic": "caution"}
    assert flags_of(still(), CASCADE, stochastic=True, draws=20) == {}


def test_numbers_are_ready_for_json():
    assert plain({"a": (1.23456789, float("inf")), 2: None, "b": True}) == {
        "a": [1.23457, None],
        "2": None,
        "b": True,
    }


# --- levels -------------------------------------------------------------------------------------


def flag(slug: str, severity: Severity = "invalid") -> Finding:
    return Finding("D0", slug, True, severity, f"It is {slug}.", 1.0)


def level_of(*flags: Finding, lacking: Sequence[str] = (), left: int = 9) -> Level:
    found = levels.level_of(flags, lacking, left)
    assert found.sentence.startswith(f"{found.level}, {TITLES[found.level]}: ")
    assert found.next.endswith(".") and found.row()["title"] == TITLES[found.level]
    return found


def test_no_flag_is_level_a():
    assert level_of().level == "A" and level_of().reasons == ()


def test_a_level_needs_images_before_anything_else_is_right():
    few = levels.level_of([], [], 0, images=FEWEST_IMAGES - 1)
    assert few.level == "B" and "200 images" in few.next
    # Where something else is wrong, that is said alone.
    worse = levels.level_of([flag("not-converged")], [], 3, images=10)
    assert [reason.flag for reason in worse.reasons] == ["not-converged"]


#: The diagnostic, its slug, and the level by severity.
LEVELS = [
    ("D1", "no-gradient", "C", "C"),
    ("D1", "zero-gradient", "C", "B"),
    ("D1", "nonfinite-gradient", "C", "B"),
    ("D1", "neurons-not-reached", "B", "B"),
    ("D2", "out-of-support", "B", "B"),
    ("D3", "surrogate-gap", "C", "B"),
    ("D15", "blind-score", "C", "B"),
    ("D16", "surrogate-misplaced", "C", "B"),
    ("D4", "gradient-fidelity", "C", "B"),
    ("D5", "not-converged", "B", "B"),
    ("D6", "noise-beats-suite", "C", "B"),
    ("D6", "noise-beats-gradient", "C", "B"),
    ("D6", "one-step-beats-many", "C", "B"),
    ("D6", "far-above-chance", "C", "B"),
    ("D6", "curve-not-monotone", "C", "B"),
    ("D6", "curve-above-chance", "C", "B"),
    ("D7", "black-box-finds-more", "B", "B"),
    ("D7", "black-box-beats-white-box", "B", "B"),
    ("D8", "randomised", "C", "C"),
    ("D8", "stochastic", "C", "C"),
    ("D8", "too-few-draws", "C", "C"),
    ("D8", "gradient-draws", "C", "B"),
    ("D9", "repeatable", "C", "C"),
    ("D9", "alone-as-in-batch", "C", "C"),
    ("D9", "attack-mode", "C", "C"),
    ("D9", "state-leak", "C", "C"),
    ("D9", "batch-statistics", "C", "C"),
    ("D9", "neuron-modes", "B", "B"),
    ("D10", "logits", "C", "C"),
    ("D10", "ties", "B", "B"),
    ("D10", "saturated", "B", "B"),
    ("D10", "clean-at-chance", "C", "B"),
    ("D12", "vanishing-through-layers", "B", "B"),
    ("D12", "underflow", "B", "B"),
    ("AA", "dynamic", "C", "C"),
    ("I2", "unstable-predictions", "B", "B"),
    ("I5", "attack-does-not-transfer", "C", "C"),
    ("I6", "unconstrained-failure", "B", "B"),
]


@pytest.mark.parametrize(("name", "slug", "invalid", "caution"), LEVELS)
def test_every_flag_has_its_level(name, slug, invalid, caution):
    for severity, level in (("invalid", invalid), ("caution", caution)):
        found = level_of(flag(slug, severity))
        assert found.level == level
        assert [(r.id, r.flag, r.level) for r in found.reasons] == [(name, slug, level)]
        assert slug in found.sentence and found.next == criterion_of(slug)[1].next


def test_every_criterion_is_tested_and_says_what_to_do():
    assert {slug for one in CRITERIA for slug in one.flags} == {slug for _, slug, _, _ in LEVELS}
    for one in CRITERIA:
        assert one.next.endswith(".") and one.next.count(". ") == 0, one.next


def test_a_flag_without_a_criterion_counts_by_its_severity():
    assert level_of(flag("new")).level == "C" and level_of(flag("new", "caution")).level == "B"


def test_a_suite_that_is_not_full_is_an_upper_bound():
    found = level_of(lacking=["a long attack"])
    assert found.level == "B" and "standard" in found.next
    assert found.reasons[0].id == SUITE and "a long attack" in found.sentence
    # It is to be run before anything else, unless the number is worse than an upper bound.
    assert "standard" in level_of(flag("not-converged", "caution"), lacking=["x"]).next
    assert level_of(flag("repeatable"), lacking=["x"]).level == "C"


def test_the_worst_reason_speaks_first():
    found = level_of(flag("ties", "caution"), flag("zero-gradient"), flag("repeatable"))
    assert [r.flag for r in found.reasons] == ["repeatable", "zero-gradient", "ties"]
    assert found.sentence.endswith("There are 2 more reasons.")
    twice = level_of(flag("zero-gradient", "caution"), flag("zero-gradient"))
    assert [r.level for r in twice.reasons] == ["C"]


def test_where_nothing_is_left_nothing_is_overestimated():
    assert level_of(flag("zero-gradient"), left=0).level == "B"
    assert level_of(flag("no-gradient"), left=0).level == "B"
    # But what was measured may still be another network.
    assert level_of(flag("repeatable"), left=0).level == "C"


# --- end to end ---------------------------------------------------------------------------------


class Two(nn.Module):
    """Two classes by a linear margin."""

    classes = 2

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(16, 2)
        self.linear.weight.data *= scale

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1) - 0.5)
        return logits


class Constant(nn.Module):
    """One class for all."""

    classes = 2

    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor([[2.0, -3.0]]).repeat(len(images), 1)


class Bare(Two):
    """Comparisons without derivative; a search finds its way all the same."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward((images * 255).round() / 255)


SMALL = Suite.model_validate(
    {
        "name": "small",
        "epsilon": "8/255",
        "cascade": True,
        "entries": [
            {"label": "Probe", "attack": "apgd:steps=4,loss=margin", "probe": True},
            {"label": "CE", "attack": "apgd:steps=100,loss=cross-entropy"},
            {"label": "Margin", "attack": "apgd:steps=100,loss=margin"},
            {"label": "Square", "attack": "square:queries=1000"},
        ],
    }
)


def run(network: nn.Module, suite: Suite | str = SMALL, count: int = 40, **more: Any) -> Evaluation:
    torch.manual_seed(3)
    images = torch.rand(count, 1, 4, 4)
    with torch.no_grad():
        labels = network(images).argmax(1)
    return evaluate(network, (images, labels), suite, **more)


def test_an_honest_network_gets_an_a(tmp_path):
    found = run(Two(), count=FEWEST_IMAGES, output=tmp_path / "run")
    manifest = found.manifest
    assert manifest.verdict["level"] == "A" and manifest.flags == ()
    assert manifest.verdict["because"] == []
    ids = {row["id"] for row in (*manifest.probe, *manifest.diagnostics)}
    ids |= {check["id"] for check in manifest.preflight}
    assert {"D1", "D4", "D5", "D6", "D7", "D8", "D9", "D10", "D14", "D15", "AA"} <= ids
    assert {"I1", "I2", "I3", "I4", "I5", "I6"} <= ids
    assert manifest.probe_cost["forward_passes"] > 0
    worst = found.results.set_index("attack").loc["worst-case", "accuracy"]
    assert manifest.ledger[-1]["left"] == pytest.approx(worst)
    again = run(Two(), count=FEWEST_IMAGES, output=tmp_path / "run")
    assert again.reprinted and again.manifest.verdict == manifest.verdict


def test_few_images_are_never_level_a():
    found = run(Two(), count=FEWEST_IMAGES - 1).manifest
    assert found.level == "B" and found.flags == ()
    (because,) = found.diagnosis["because"]
    assert because["id"] == "images" and "199" in because["sentence"]


def test_a_short_suite_gets_a_b():
    assert run(Two(), "quick").manifest.verdict["level"] == "B"


@pytest.mark.parametrize("network", [Constant(), Bare()])
def test_where_no_gradient_exists_no_a_is_given(network):
    verdict = run(network).manifest.verdict
    assert verdict["level"] == "C" and verdict["because"][0]["flag"] == "no-gradient"
    assert "gradient" in verdict["next"]


def test_the_level_stands_beside_the_number(tmp_path):
    from robustsnn.records.runs import load_runs
    from robustsnn.reporting.comparison import comparisons
    from robustsnn.reporting.render import render
    from robustsnn.reporting.sentences import headlines

    run(Constant(), output=tmp_path / "run", name="stuck")
    runs = load_runs([tmp_path / "run"])
    (said,) = headlines(comparisons(runs)[0])
    assert said.level == "C, not reliable" and "(C, not reliable)" in said.sentence
    assert runs.runs[0].manifest.verdict["next"] in said.trust
    page = render(runs, tmp_path / "page").read_text(encoding="utf-8")
    assert 'class="level level-C">C, not reliable' in page and "no gradient" in page.lower()
    tables = tmp_path / "page" / "tables"
    for name in ("comparison.md", "comparison.tex", "comparison.txt"):
        rows = (tables / name).read_text(encoding="utf-8").splitlines()
        worst = next(r for r in rows if r.strip("| ").startswith("Worst case") and "[" in r)
        assert "C" in worst, worst


def test_by_size_keeps_their_order():
    other = stage("apgd-ce", epsilon="4/255")
    assert list(by_size([*PROBES, other])) == [SIZE, ("Linf", "4/255")]
