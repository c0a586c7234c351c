"""Clean accuracy at chance: flagged where the images can tell, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import robustsnn
from robustsnn.common.statistics import binomial_tail
from robustsnn.diagnosis.clean import clean_at_chance

Labels = NDArray[np.int64]
RNG = np.random.default_rng(0)


def flagged(labels: Labels, said: Labels, classes: int) -> bool:
    clean = pd.DataFrame({"label": labels, "prediction": said})
    return clean_at_chance(clean, classes).flagged


def right_on(share: float) -> Callable[[Labels, int], Labels]:
    """Predictions that are right on that share of images and drawn for the others."""

    def said(labels: Labels, classes: int) -> Labels:
        drawn = RNG.integers(0, classes, len(labels))
        return np.where(RNG.random(len(labels)) < share, labels, drawn)

    return said


def always(labels: Labels, classes: int) -> Labels:
    return np.zeros_like(labels)


def moved(labels: Labels, classes: int) -> Labels:
    """Every class under the number of the next, as where labels are counted from 1."""
    return (labels + 1) % classes


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("said", [right_on(0), always, moved])
def test_what_does_not_depend_on_the_image_is_flagged(classes, said):
    labels = np.arange(400) % classes
    assert flagged(labels, said(labels, classes), classes)


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("share", [0.4, 0.7, 1.0])
def test_networks_that_see_something_are_not(classes, share):
    labels = np.arange(400) % classes
    assert not flagged(labels, right_on(share)(labels, classes), classes)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_few_images_cannot_tell(count):
    labels = np.arange(count)
    for said in (labels, labels + 1, np.zeros_like(labels)):
        assert not flagged(labels, said, 10)


def test_an_imbalance_does_not_hide_a_network_that_says_one_class():
    labels = (np.arange(400) % 20 == 0).astype(np.int64)
    assert flagged(labels, np.zeros_like(labels), 2)  # 95 % right
    some = labels.copy()
    some[labels == 1] = np.arange(20) % 2  # half of the rare class, and 97.5 % right
    assert not flagged(labels, some, 2)
    assert not flagged(labels, labels, 2)


def test_images_of_one_class():
    labels = np.zeros(100, dtype=np.int64)
    assert not flagged(labels, labels, 10)
    assert not flagged(labels, (np.arange(100) % 10 == 0).astype(np.int64), 10)  # 90 % right
    assert flagged(labels, np.arange(100) % 10, 10)


def test_binomial_tails_against_their_sums():
    for n, p in ((1, 0.3), (7, 0.5), (30, 0.05)):
        terms = [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        for least in range(n + 1):
            assert binomial_tail(least, n, p) == pytest.approx(sum(terms[least:]))
    assert binomial_tail(3, 2, 0.5) == 0 and binomial_tail(2, 2, 1.0) == 1
    assert binomial_tail(1, 5, 0.0) == 0 and binomial_tail(0, 5, 0.0) == 1


def test_a_run_at_chance_says_so():
    torch.manual_seed(0)
    images, labels = torch.rand(60, 1, 4, 4), torch.arange(60) % 3
    untrained = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    found = robustsnn.evaluate(untrained, (images, labels), attack="fgsm")
    (flag,) = [f for f in found.flags if f["flag"] == "clean-at-chance"]
    assert flag["severity"] == "caution" and "do not depend on the image" in flag["sentence"]
    assert found.results["flags"].str.contains("clean-at-chance").all() and found.level == "B"
    with torch.no_grad():
        labels = untrained(images).argmax(1)
    found = robustsnn.evaluate(untrained, (images, labels), attack="fgsm")
    assert not any(f["flag"] == "clean-at-chance" for f in found.flags)
