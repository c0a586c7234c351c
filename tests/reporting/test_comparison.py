"""Every number of a comparison against one that is computed from the verdicts of its runs."""

import math

import numpy as np
import pytest
from scipy import stats

from robustsnn.errors import InputError
from robustsnn.records.runs import load_runs
from robustsnn.records.schema import CLEAN_IMAGES, Condition
from robustsnn.reporting.comparison import comparison_frame, comparisons, strongest
from robustsnn.reporting.published import published
from robustsnn.reporting.sentences import flag_sentences, headlines, lead

CLEAN = ("clean", "", "")
FGSM = ("fgsm", "Linf", "8/255")
PGD = ("pgd-10", "Linf", "8/255")
WORST = ("worst-case", "Linf", "8/255")


def verdicts_of(seed, n=120, clean=0.9, fgsm=0.5, pgd=0.2):
    rng = np.random.default_rng(seed)
    # The verdicts are independent: an attack may mend an image that is wrong when clean.
    return {CLEAN: rng.random(n) < clean, FGSM: rng.random(n) < fgsm, PGD: rng.random(n) < pgd}


@pytest.fixture
def two(make_run):
    ours, theirs = verdicts_of(1, fgsm=0.7), verdicts_of(2)
    runs = load_runs(
        [
            make_run("a", theirs, model="m/base", kind="ann"),
            make_run("b", ours, model="m/snn", ties=[0, 1, 2]),
        ]
    )
    return ours, theirs, runs


def row(frame, model, key):
    found = frame[
        (frame["model"] == model) & (frame["attack"] == key[0]) & (frame["epsilon"] == key[2])
    ]
    assert len(found) == 1
    return found.iloc[0]


def test_accuracies_and_intervals(two):
    ours, theirs, runs = two
    frame = comparison_frame(runs)
    for model, right in (("snn", ours), ("base", theirs)):
        for key in (CLEAN, FGSM, PGD):
            found = row(frame, model, key)
            truth = stats.binomtest(int(right[key].sum()), 120).proportion_ci(method="wilson")
            assert found["accuracy"] == pytest.approx(right[key].mean())
            assert found["ci_low"] == pytest.approx(truth.low)
            assert found["ci_high"] == pytest.approx(truth.high)


def test_worst_case_counts_ties_as_errors(two):
    ours, theirs, runs = two
    robust = ours[CLEAN] & ours[FGSM] & ours[PGD]
    robust[[0, 1, 2]] = False
    frame = comparison_frame(runs)
    assert row(frame, "snn", WORST)["accuracy"] == pytest.approx(robust.mean())
    robust = theirs[CLEAN] & theirs[FGSM] & theirs[PGD]
    assert row(frame, "base", WORST)["accuracy"] == pytest.approx(robust.mean())


def test_paired_tests_against_the_binomial_test(two):
    ours, theirs, runs = two
    frame = comparison_frame(runs)
    ps = {}
    for key in (CLEAN, FGSM, PGD):
        found = row(frame, "snn", key)
        gained = int((ours[key] & ~theirs[key]).sum())
        lost = int((~ours[key] & theirs[key]).sum())
        ps[key] = stats.binomtest(gained, gained + lost).pvalue
        assert (found["gained"], found["lost"]) == (gained, lost)
        assert found["p"] == pytest.approx(ps[key])
        assert found["difference"] == pytest.approx((gained - lost) / 120)
    # Three tests are adjusted: FGSM, PGD and their worst case; clean is not an attack.
    family = sorted([ps[FGSM], ps[PGD], row(frame, "snn", WORST)["p"]])
    adjusted = np.maximum.accumulate([min(1, p * (3 - i)) for i, p in enumerate(family)])
    for key in (FGSM, PGD):
        expected = adjusted[family.index(pytest.approx(ps[key]))]
        assert row(frame, "snn", key)["p_holm"] == pytest.approx(expected)
    assert row(frame, "snn", CLEAN)["p_holm"] == pytest.approx(ps[CLEAN])
    assert frame[frame["model"] == "base"]["difference"].isna().all()


def test_the_three_success_rates(two):
    ours, _, runs = two
    found = row(comparison_frame(runs), "snn", FGSM)
    clean, right = ours[CLEAN], ours[FGSM]
    assert found["attack_success_rate"] == pytest.approx((clean & ~right).sum() / clean.sum())
    assert found["net_success_rate"] == pytest.approx(1 - right.sum() / clean.sum())
    assert found["error_rate"] == pytest.approx(1 - right.mean())


def test_spikes_are_weighted_by_neurons_and_energy_follows_the_kind(two):
    _, _, runs = two
    frame = comparison_frame(runs)
    activity = runs.runs[1].activity
    per_step = activity.groupby("step").apply(
        lambda rows: np.average(rows["spikes_per_neuron"], weights=rows["neurons"])
    )
    found = row(frame, "snn", FGSM)
    assert found["spikes_per_neuron_and_step"] == pytest.approx(per_step.mean())
    assert (found["energy_uj"], found["energy_same_layer_uj"]) == (21.25, 18.0)
    base = row(frame, "base", FGSM)
    assert math.isnan(base["spikes_per_neuron_and_step"])
    assert base["energy_uj"] == 120.5


def test_equal_models_cannot_be_told_apart(make_run):
    right = verdicts_of(3)
    runs = load_runs([make_run("a", right, model="a"), make_run("b", right, model="b")])
    frame = comparison_frame(runs).query("model == 'b'")
    assert (frame["p"] == 1).all()
    assert (frame["gained"] + frame["lost"] == 0).all()
    assert "cannot be told apart from a" in headlines(comparisons(runs)[0])[1].sentence


def test_images_that_were_not_attacked_stay_wrong(make_run, tmp_path):
    right = verdicts_of(4)
    right[FGSM] &= right[CLEAN]
    folder = make_run("a", right)
    import pandas as pd

    records = pd.read_parquet(folder / "records.parquet")
    attacked = (records["attack"] == "clean") | (records["clean_prediction"] == records["label"])
    records[attacked].to_parquet(folder / "records.parquet")
    found = row(comparison_frame(load_runs([folder])), load_runs([folder]).models[0], FGSM)
    assert found["accuracy"] == pytest.approx(right[FGSM].mean())
    records[attacked].iloc[:-30].to_parquet(folder / "records.parquet")
    with pytest.raises(InputError, match="incomplete"):
        comparison_frame(load_runs([folder]))


def test_an_image_twice_under_one_condition_is_refused(make_run):
    folder = make_run("a", verdicts_of(5))
    import pandas as pd

    records = pd.read_parquet(folder / "records.parquet")
    pd.concat([records, records.query("attack == 'fgsm'")]).to_parquet(folder / "records.parquet")
    with pytest.raises(InputError, match="two records of an image"):
        comparison_frame(load_runs([folder]))


def test_only_runs_on_the_same_images_are_compared(make_run):
    right = verdicts_of(6)
    runs = load_runs(
        [
            make_run("a", right, model="a"),
            make_run("b", right, model="b", data_fingerprint="sha256:other"),
            make_run("c", right, model="c"),
            make_run("d", right, model="d", seed=9),
        ]
    )
    assert [c.models for c in comparisons(runs)] == [("a", "c"), ("b",), ("d",)]
    assert len({c.slug for c in comparisons(runs)}) == 3


def test_the_strongest_attack_and_the_headline(two):
    ours, theirs, runs = two
    comparison = comparisons(runs)[0]
    assert strongest(comparison, "snn") == Condition(*PGD)
    robust = (theirs[CLEAN] & theirs[FGSM] & theirs[PGD]).mean()
    text = lead(comparison).replace("\u00a0", " ")
    assert f"base stays right on {100 * robust:.1f} %" in text
    assert "120 images" in text
    assert "upper bound" in text
    clean = f"accuracy on clean images is {100 * ours[CLEAN].mean():.1f} %"
    assert clean in headlines(comparison)[1].sentence.replace("\u00a0", " ")


def curve(fall):
    n = 200
    right = {CLEAN: np.arange(n) < 180}
    for size, kept in fall.items():
        right["pgd-20", "Linf", size] = np.arange(n) < kept
    return right


def test_a_curve_says_where_chance_is_reached(make_run):
    falls = curve({"0": 180, "2/255": 100, "8/255": 20, "32/255": 0})
    stays = curve({"0": 180, "2/255": 170, "8/255": 160, "32/255": 150})
    runs = load_runs([make_run("a", falls, model="falls"), make_run("b", stays, model="stays")])
    (comparison,) = comparisons(runs)
    assert comparison.is_curve
    text = lead(comparison).replace("\u00a0", " ")
    assert "falls falls to chance (10 %) at L∞ 8/255" in text
    assert "stays stays above chance (10 %) even at L∞ 32/255" in text
    assert "accuracy is 90.0 % on clean images, 50.0 % at 2/255" in headlines(comparison)[
        0
    ].sentence.replace("\u00a0", " ")


def test_an_attack_of_size_zero_is_outside_the_family_of_tests(make_run):
    a = curve({"0": 180, "2/255": 100, "8/255": 20, "32/255": 0})
    b = {key: np.roll(value, 3) for key, value in a.items()}
    frame = comparison_frame(
        load_runs([make_run("a", a, model="a"), make_run("b", b, model="b")])
    ).query("model == 'b'")
    # Three images are gained and three lost, so p = 1; at the largest size there are none.
    assert (frame["p"] == 1).all()
    assert set(frame["attack"]) == {"clean", "pgd-20"}


def test_no_attack_at_all(make_run):
    runs = load_runs([make_run("a", {CLEAN: np.ones(30, dtype=bool)})])
    (comparison,) = comparisons(runs)
    assert comparison.attacks == ()
    assert lead(comparison).startswith("No attack was run")
    assert comparison.cells[comparison.baseline, CLEAN_IMAGES]["accuracy"] == 1


def accuracy(*key):
    found = published(*key)
    return None if found is None else found.accuracy


def test_published_numbers_need_architecture_data_method_and_attack(make_run):
    right = {CLEAN: np.ones(30, dtype=bool), FGSM: np.ones(30, dtype=bool)}
    (ours,) = load_runs([make_run("a", right, model="cifar10/vgg5-snn-hire", data="cifar10")]).runs
    assert accuracy(ours, Condition(*FGSM)) == 0.38
    assert accuracy(ours, Condition("fgsm", "Linf", "0.031")) == 0.38
    assert published(ours, Condition("fgsm", "Linf", "4/255")) is None
    assert published(ours, Condition("pgd-10", "Linf", "8/255")) is None
    assert accuracy(ours, CLEAN_IMAGES) == 0.875
    (other,) = load_runs([make_run("b", right, model="x/vgg5-snn-hire")]).runs
    assert published(other, Condition(*FGSM)) is None
    assert accuracy(other, Condition(*FGSM), "cifar10") == 0.38
    (unknown,) = load_runs([make_run("c", right, model="x/mine", data="cifar10")]).runs
    assert published(unknown, Condition(*FGSM)) is None
    (said,) = load_runs([make_run("d", right, model="x/m", data="cifar10", method="hire")]).runs
    assert accuracy(said, Condition(*FGSM)) == 0.38


def test_a_failed_check_that_is_also_a_flag_is_said_once(make_run):
    check = {"check": "batch", "passed": False, "evidence": 0.1, "sentence": "Not as in a batch."}
    flag = {"flag": "batch", "severity": "invalid", "sentence": "Not as in a batch."}
    folder = make_run("a", verdicts_of(7), preflight=[check], flags=[flag])
    runs = load_runs([folder])
    assert [said[3] for said in flag_sentences(runs.runs)] == ["Not as in a batch."]
    assert headlines(comparisons(runs)[0])[0].caution.startswith("1 flag speaks")
