"""Indicators of attack failure against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from robustsnn.diagnosis.indicators import (
    cosine,
    expected_cosine,
    silent,
    slope,
    spearman,
    unfinished,
    unstable,
)


def test_unstable_predictions():
    loss = np.array([-2.0, -1.0, 0.0, -1.0])
    noisy = np.array([[-1.0, -1.0, 0.2, -9.0], [-3.0, -1.0, -0.4, 9.0]])
    # (|1| + |1|) / 2 / 2; no change; a loss of 0 is divided by 1; 9 times itself is clipped.
    np.testing.assert_allclose(unstable(loss, noisy), [0.5, 0.0, 0.3, 1.0])


def test_silent_success():
    fooled = np.array([[0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1]], dtype=bool)
    assert silent(fooled).tolist() == [False, True, False, False]


def test_incomplete_optimisation():
    steps = np.arange(40)
    rising = steps / 39.0  # (39 - 30) / 39 within the last ten
    done = np.minimum(steps, 20) / 20.0
    nearly = np.where(steps < 39, 1.0, 1.05)  # of a rise from 0 to 1.05 the last is 0.048
    nearly[0] = 0
    peaked = np.where(steps == 10, 1.0, 0.0)  # falls again, but is made never to
    still = np.full(40, -3.0)
    paths = np.stack([rising, done, nearly, peaked, still], 1)
    assert unfinished(paths).tolist() == [True, False, False, False, False]
    over = np.where(steps < 39, 1.0, 1.06)
    over[0] = 0
    assert unfinished(over[:, None]).tolist() == [True]
    # Shorter than ten iterates: all of it counts.
    assert unfinished(np.array([[0.0], [1.0]])).tolist() == [True]


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    one = rng.integers(0, 5, (6, 30)).astype(float)
    other = one + rng.normal(size=one.shape)
    want = [scipy.stats.spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(spearman(one, other), want)
    assert spearman(np.ones((1, 9)), rng.normal(size=(1, 9))).tolist() == [0.0]


def test_cosine():
    one = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    other = np.array([[4.0, 3.0], [0.0, 2.0], [1.0, 1.0]])
    np.testing.assert_allclose(cosine(one, other), [24 / 25, 0.0, 0.0])


@pytest.mark.parametrize(("directions", "dimensions"), [(64, 784), (8, 16), (200, 50)])
def test_expected_cosine_is_what_differences_reach(directions, dimensions):
    rng = np.random.default_rng(1)
    gradient = rng.normal(size=dimensions)
    found = []
    for _ in range(300):
        signs = rng.choice([-1.0, 1.0], (directions, dimensions))
        estimate = (signs @ gradient) @ signs / directions
        found.append(cosine(gradient[None], estimate[None])[0])
    assert np.mean(found) == pytest.approx(expected_cosine(directions, dimensions), rel=0.03)


def test_slope():
    assert slope(np.array([1.0, 3.0, 5.0])) == pytest.approx(2.0)
    assert np.isnan(slope(np.array([1.0]))) and np.isnan(slope(np.array([1.0, -np.inf])))
