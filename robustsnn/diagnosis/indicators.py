"""Numbers that tell a failed attack from a robust network, as plain functions of arrays.

Source: Pintor et al., Indicators of Attack Failure, NeurIPS 2022; Carlini et al., On Evaluating
Adversarial Robustness, 2019.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]

#: The last steps of an attack that must no longer gain, and how much of the whole they may.
LAST_STEPS, STILL_GAINS = 10, 0.05
_LARGE = float(np.finfo(np.float32).max)


def unstable(loss: Floats, noisy: Floats) -> Floats:
    """I2: how much of its loss an image gains or loses under small noise, in [0, 1], `[image]`.

    `mean over draws of |L(x + d) - L(x)| / |L(x)|`, at most 1; a loss of 0 is divided by 1.

    Args:
        loss: Of each image, `[image]`.
        noisy: Of each draw, `[draw, image]`.
    """
    size = np.abs(loss)
    change: Floats = np.mean(np.abs(noisy - loss) / np.where(size == 0, 1.0, size), 0)
    return np.minimum(change, 1.0)


def silent(fooled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """I3: images that an earlier iterate had fooled and the last one does not, bool `[image]`.

    Args:
        fooled: Whether each iterate was adversarial, `[iterate, image]`.
    """
    found: NDArray[np.bool_] = fooled[:-1].any(0) & ~fooled[-1]
    return found


def unfinished(loss: Floats) -> NDArray[np.bool_]:
    """I4: images whose loss, rescaled to [0, 1] and never falling, still rose at the end.

    More than 0.05 within the last 10 iterates; a path that never moved is finished.

    Args:
        loss: What the attack raises, `[iterate, image]`.
    """
    # An infinite loss has reached all it can.
    loss = np.clip(loss, -_LARGE, _LARGE)
    low, high = loss.min(0), loss.max(0)
    span = np.where(high > low, high - low, 1.0)
    path = np.maximum.accumulate((loss - low) / span, 0)
    last = path[-LAST_STEPS:]
    found: NDArray[np.bool_] = last[-1] - last[0] > STILL_GAINS
    return found


def spearman(one: Floats, other: Floats) -> Floats:
    """Rank correlation of each row's entries, `[row]`; 0 where either is constant.

    Args:
        one: `[row, entry]`; ties share their mean rank.
        other: As large.
    """
    a, b = (rankdata(values, axis=1) for values in (one, other))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    together: Floats = np.divide((a * b).sum(1), scale, out=np.zeros(len(a)), where=scale > 0)
    return together


def cosine(one: Floats, other: Floats) -> Floats:
    """Cosine of each row's vectors, `[row]`; 0 where either is zero."""
    wide, also = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(also, axis=1)
    found: Floats = np.divide(
        (wide * also).sum(1), lengths, out=np.zeros(len(wide)), where=lengths > 0
    )
    return found


def expected_cosine(directions: int, dimensions: int) -> float:
    """Cosine that differences along random signs reach with the gradient of a linear loss.

    `sqrt(N / (N + d - 1))`, for N directions in d dimensions: `E |g|^2 (1 + (d - 1) / N)` is the
    square of the estimate's length.
    """
    return float(np.sqrt(directions / (directions + dimensions - 1)))


def slope(values: Floats) -> float:
    """Slope of the least-squares line through `values` at 0, 1, 2, ...; NaN below two."""
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan")
    return float(np.polyfit(np.arange(len(values)), values, 1)[0])
