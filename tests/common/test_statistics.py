import numpy as np
import pytest
from scipy import stats

from robustsnn.common.statistics import holm, mcnemar_exact, paired, wilson, worst_case


@pytest.mark.parametrize("n", [1, 2, 10, 97, 500, 10_000])
def test_wilson_is_scipys_interval(n):
    for correct in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        for level in (0.9, 0.95, 0.99):
            truth = stats.binomtest(correct, n).proportion_ci(level, method="wilson")
            assert wilson(correct, n, level) == pytest.approx((truth.low, truth.high), abs=1e-12)


def test_wilson_ends_are_exact_and_hold_the_fraction():
    assert wilson(0, 40).low == 0
    assert wilson(40, 40).high == 1
    for correct in range(41):
        low, high = wilson(correct, 40)
        assert 0 <= low <= correct / 40 <= high <= 1


@pytest.mark.parametrize(("correct", "n", "level"), [(0, 0, 0.95), (3, 2, 0.95), (1, 2, 1.0)])
def test_wilson_refuses_what_is_no_fraction(correct, n, level):
    with pytest.raises(ValueError, match=r"fraction|level"):
        wilson(correct, n, level)


def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs():
    for b in range(0, 40, 3):
        for c in range(0, 40, 4):
            if b + c:
                truth = stats.binomtest(b, b + c, 0.5).pvalue
                assert mcnemar_exact(b, c) == pytest.approx(truth, rel=1e-9)


def test_mcnemar_without_discordant_pairs_is_no_evidence():
    assert mcnemar_exact(0, 0) == 1


def test_mcnemar_of_thousands_of_pairs_neither_overflows_nor_underflows():
    truth = stats.binomtest(4800, 10_000, 0.5).pvalue
    assert mcnemar_exact(4800, 5200) == pytest.approx(truth, rel=1e-6)
    # 2 ** -9999 is 1e-3010, which no float holds; no outcome is impossible all the same.
    assert 0 < mcnemar_exact(0, 10_000) < 1e-300
    assert 0 < holm([mcnemar_exact(0, 10_000), 1.0])[0] < 1e-300
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(-1, 2)


def test_paired_counts_each_direction():
    first = np.array([1, 1, 1, 0, 0, 1], dtype=bool)
    second = np.array([1, 0, 0, 1, 0, 0], dtype=bool)
    assert paired(first, second)[:2] == (3, 1)
    assert paired(first, second).p == pytest.approx(stats.binomtest(1, 4).pvalue)
    assert paired(second, first)[:2] == (1, 3)
    with pytest.raises(ValueError, match="same images"):
        paired(first, second[:-1])


def test_holm_on_a_worked_example():
    # By rank: 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; then none is below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_lies_between_raw_and_bonferroni():
    rng = np.random.default_rng(0)
    for _ in range(20):
        ps = list(rng.random(7) ** 3)
        adjusted = holm(ps)
        assert all(p <= a <= min(1, 7 * p) + 1e-15 for p, a in zip(ps, adjusted, strict=True))
        order = np.argsort(ps)
        assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_worst_case_needs_every_margin_negative():
    margins = [[-1.0, -1.0, -1.0, -1.0, -2.0], [-0.5, 0.0, 1.0, float("nan"), -3.0]]
    assert worst_case(margins).tolist() == [True, False, False, False, True]
