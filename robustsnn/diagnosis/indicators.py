"""Numbers that tell a failed attack from a robust network, as plain functions of arrays.

Source: Pintor et al., Indicators of Attack Failure, NeurIPS 2022; Carlini et al., On Evaluating
Adversarial Robustness, 2019.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: The number of last steps in which an attack should no longer gain, and the share of its whole
#: gain that they may still add.
LAST_STEPS, STILL_GAINS = 10, 0.05
_LARGE = float(np.finfo(np.float32).max)


def unstable(loss: Floats, noisy: Floats) -> Floats:
    """I2: the share of its loss that an image gains or loses under small noise, `[image]`.

    It is `mean over draws of |L(x + d) - L(x)| / |L(x)|`, clipped to [0, 1]; where the loss is 0,
    the change is divided by 1.

    Args:
        loss: The loss of each image, `[image]`.
        noisy: The loss of each image under each draw of noise, `[draw, image]`.

    Examples:
        >>> unstable(np.array([2.0, 1.0]), np.array([[1.0, 1.0], [3.0, 1.5]])).tolist()
        [0.5, 0.25]
    """
    size = np.abs(loss)
    change: Floats = np.mean(np.abs(noisy - loss) / np.where(size == 0, 1.0, size), 0)
    return np.minimum(change, 1.0)


def silent(fooled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """I3: whether an earlier iterate of an image was misclassified and the last is not, `[image]`.

    Args:
        fooled: Whether each iterate was misclassified, bool `[iterate, image]`.

    Examples:
        >>> silent(np.array([[True, True], [False, True]])).tolist()
        [True, False]
    """
    found: NDArray[np.bool_] = fooled[:-1].any(0) & ~fooled[-1]
    return found


def unfinished(loss: Floats) -> NDArray[np.bool_]:
    """I4: whether the largest loss of an image so far still rose at the end, bool `[image]`.

    The loss is rescaled to [0, 1]; it still rises if it gains more than 0.05 within the last 10
    iterates. A loss that never changed does not.

    Args:
        loss: The loss that the attack raises, `[iterate, image]`.
    """
    # An infinite loss cannot rise any further, and could not be rescaled.
    loss = np.clip(loss, -_LARGE, _LARGE)
    low, high = loss.min(0), loss.max(0)
    span = np.where(high > low, high - low, 1.0)
    path = np.maximum.accumulate((loss - low) / span, 0)
    last = path[-LAST_STEPS:]
    found: NDArray[np.bool_] = last[-1] - last[0] > STILL_GAINS
    return found


def spearman(one: Floats, other: Floats) -> Floats:
    """The rank correlation of the entries of each row, `[row]`; 0 where either is constant.

    Args:
        one: The first values, `[row, entry]`; ties share their mean rank.
        other: The second values, `[row, entry]`.

    Examples:
        >>> spearman(np.array([[1.0, 2.0, 3.0]]), np.array([[10.0, 30.0, 20.0]])).round(3).tolist()
        [0.5]
    """
    # Importing it takes a second, which a command that compares no ranks need not wait for.
    from scipy.stats import rankdata

    a, b = (rankdata(values, axis=1) for values in (one, other))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    together: Floats = np.divide((a * b).sum(1), scale, out=np.zeros(len(a)), where=scale > 0)
    return together


def cosine(one: Floats, other: Floats) -> Floats:
    """The cosine of the two vectors in each row, `[row]`; 0 where either is zero.

    Args:
        one: The first vectors, `[row, entry]`.
        other: The second vectors, `[row, entry]`.

    Examples:
        >>> cosine(np.array([[3.0, 4.0]]), np.array([[1.0, 0.0]])).tolist()
        [0.6]
    """
    wide, also = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(also, axis=1)
    found: Floats = np.divide(
        (wide * also).sum(1), lengths, out=np.zeros(len(wide)), where=lengths > 0
    )
    return found


def expected_cosine(directions: int, dimensions: int) -> float:
    """The cosine of the gradient of a linear loss and its estimate by differences.

    It is `sqrt(N / (N + d - 1))` for differences along N random signs in d dimensions, because the
    expected square of the length of the estimate is `|g|^2 (1 + (d - 1) / N)`.

    Args:
        directions: The number of random signs N.
        dimensions: The number of dimensions d.

    Examples:
        >>> expected_cosine(1, 4)
        0.5
    """
    return float(np.sqrt(directions / (directions + dimensions - 1)))


def slope(values: Floats) -> float:
    """The slope of the least-squares line through `values` at 0, 1, 2, ...; NaN below two values.

    Examples:
        >>> round(slope(np.array([1.0, 3.0, 5.0])), 6)
        2.0
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan")
    return float(np.polyfit(np.arange(len(values)), values, 1)[0])
