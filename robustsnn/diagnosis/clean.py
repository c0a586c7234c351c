"""D10: whether what a network says of clean images depends on the images at all."""

from __future__ import annotations

import numpy as np
import pandas as pd

from robustsnn.common.statistics import binomial_tail
from robustsnn.common.wording import percent
from robustsnn.diagnosis.finding import Finding

#: The accuracy above chance that is not worth the name, and the level of both tests.
NO_BETTER, LEVEL = 0.01, 0.01


def clean_at_chance(clean: pd.DataFrame, classes: int) -> Finding:
    """Whether clean accuracy is that of predictions that do not depend on the image.

    Chance is what the same predictions would reach in any other order, so a network that always
    says the most frequent class is at chance however frequent that is. It is flagged only if the
    images suffice to tell: accuracy must not be above chance, and of the images that do not belong
    to the class that is said most often, significantly fewer must be right than half way from
    chance to all.

    Args:
        clean: The records of the clean images, with `label` and `prediction`.
        classes: The number of classes.

    Examples:
        >>> labels = [0, 1, 2, 3] * 10
        >>> good = pd.DataFrame({"label": labels, "prediction": labels})
        >>> clean_at_chance(good, 4).flagged
        False
        >>> clean_at_chance(good.assign(prediction=1), 4).flagged
        True
    """
    labels, said = clean["label"].to_numpy(), clean["prediction"].to_numpy()
    right = labels == said
    names, counts = np.unique(said, return_counts=True)
    rest = labels != names[counts.argmax()]
    if rest.any():
        shares = {name: float((said == name).mean()) for name in np.unique(labels)}
        chance = float(np.mean([shares[label] for label in labels]))
        of_rest = float(np.mean([shares[label] for label in labels[rest]]))
    else:
        # With one class in the data, only the number of classes says what chance is.
        rest = np.ones_like(right)
        chance = of_rest = 1 / classes
    above = binomial_tail(int(right.sum()), len(right), min(chance + NO_BETTER, 1.0))
    wrong = binomial_tail(int((rest & ~right).sum()), int(rest.sum()), (1 - of_rest) / 2)
    flagged = above > LEVEL and wrong < LEVEL
    accuracy = float(right.mean())
    return Finding(
        "D10",
        "clean-at-chance",
        flagged,
        "caution",
        f"On clean images the network is right on {percent(accuracy)}, no more than predictions "
        f"that do not depend on the image ({percent(chance)}): its weights, its input range or the "
        "numbers of its classes are not those of its training.",
        accuracy,
        {"chance": chance, "p above chance": above, "images": len(right)},
        passed=f"On clean images the network is right on {percent(accuracy)}; predictions that do "
        f"not depend on the image would be on {percent(chance)}.",
    )
