"""What counted images say about an accuracy, and about the difference of two accuracies."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: The least p-value: the smallest float with all its digits.
LEAST_P = sys.float_info.min


class Interval(NamedTuple):
    """A confidence interval of a fraction; both ends in [0, 1]."""

    low: float
    high: float


class Paired(NamedTuple):
    """Two models on the same images: the discordant counts and the p-value of their difference.

    `gained` counts the images only the first model gets right, `lost` those only the second does.
    """

    gained: int
    lost: int
    p: float


def wilson(correct: int, n: int, level: float = 0.95) -> Interval:
    """The Wilson score interval of `correct` successes among `n` trials.

    >>> low, high = wilson(90, 100)
    >>> round(low, 4), round(high, 4)
    (0.8256, 0.9448)

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference,
    JASA 22 (1927); without continuity correction.

    Raises:
        ValueError: If `n` is not positive, `correct` is outside [0, n] or `level` outside (0, 1).
    """
    if n <= 0 or not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} is not a fraction of a positive number of trials")
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not {level}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    fraction = correct / n
    scale = 1 + z * z / n
    centre = (fraction + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n))
    # At 0 and n one end is exact; rounding must not push it off by an ulp.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == n else min(1.0, centre + half)
    return Interval(low, high)


def binomial_tail(least: int, n: int, p: float) -> float:
    """The probability of at least so many successes among `n` trials of probability `p`.

    >>> round(binomial_tail(2, 3, 0.5), 6)
    0.5

    Raises:
        ValueError: If `p` is outside [0, 1] or a count is negative.
    """
    if least < 0 or n < 0 or not 0 <= p <= 1:
        raise ValueError(f"no tail of {least} or more of {n} trials of probability {p}")
    if least == 0 or p == 1:
        return float(least <= n)
    if p == 0:
        return 0.0
    scale = math.lgamma(n + 1)
    terms = [
        scale - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p)
        + (n - k) * math.log1p(-p)
        for k in range(least, n + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(map(math.exp, terms)))


def mcnemar_exact(b: int, c: int) -> float:
    """The two-sided exact McNemar p-value for discordant counts `b` and `c`.

    Under the null hypothesis each discordant pair falls either way with probability one half, so p
    is twice the smaller binomial tail, and at most 1; without discordant pairs there is no evidence
    and p is 1.

    A value too small for a float, such as 1e-516, becomes the smallest normal float, 2.2e-308,
    which is an upper bound. It would be 0 otherwise, and no outcome is impossible.

    >>> mcnemar_exact(0, 5)
    0.0625

    Source: Q. McNemar, Psychometrika 12 (1947), in its exact (binomial) form.

    Raises:
        ValueError: If a count is negative.
    """
    if b < 0 or c < 0:
        raise ValueError(f"discordant counts cannot be negative: {b}, {c}")
    n = b + c
    # Only whole numbers are used: as floats, a binomial tail of thousands of pairs underflows.
    term = tail = 1
    for k in range(min(b, c)):
        term = term * (n - k) // (k + 1)
        tail += term
    return max(LEAST_P, min(1.0, float(2 * tail / (1 << n))))


def paired(first: ArrayLike, second: ArrayLike) -> Paired:
    """Compare two models by which images each gets right.

    Args:
        first: Whether the first model is right on each image, [images].
        second: Whether the second model is right, on the same images in the same order.

    Raises:
        ValueError: If the two do not cover the same number of images.
    """
    one, two = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if one.shape != two.shape:
        raise ValueError(f"a paired test needs the same images: {one.shape} and {two.shape}")
    gained, lost = int((one & ~two).sum()), int((~one & two).sum())
    return Paired(gained, lost, mcnemar_exact(gained, lost))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p-values, in the order given.

    >>> holm([0.01, 0.04])
    [0.02, 0.04]

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Stat. 6
    (1979).
    """
    adjusted = [0.0] * len(ps)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        running = max(running, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = running
    return adjusted


def worst_case(margins: ArrayLike) -> NDArray[np.bool_]:
    """Which images are classified right under every attack, the clean image included.

    >>> worst_case([[-1.0, -1.0], [-0.5, 0.0]])
    array([ True, False])

    Args:
        margins: The best other logit minus that of the label, [attacks, images]; positive means
            misclassified. A tie at the top (0) counts as an error here, and so does NaN.

    Returns:
        Whether every margin of the image is negative, [images].
    """
    return np.asarray(np.all(np.asarray(margins, dtype=float) < 0, axis=0), dtype=bool)
