"""The columns of every file of a run folder, and the names that are used in them."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

import pyarrow as pa

from robustsnn.common import wording

MANIFEST = "manifest.json"

COMPARISON = "comparison.json"

#: The names in the column `attack` of rows that do not belong to one attack.
CLEAN, WORST_CASE = "clean", "worst-case"

FORMAT = "robustsnn-run-1"

RUNNING, DONE = "running", "done"


RECORDS = pa.schema(
    [
        *((name, pa.string()) for name in ("model",)),
        ("image_id", pa.int64()),
        ("label", pa.int64()),
        *((name, pa.string()) for name in "suite attack estimator substitute norm epsilon".split()),
        ("seed", pa.int64()),
        ("clean_prediction", pa.int64()),
        ("prediction", pa.int64()),
        ("margin", pa.float64()),
        ("success", pa.bool_()),
        ("linf", pa.float64()),
        ("l2", pa.float64()),
        *(
            (name, pa.int64())
            for name in "forward_passes backward_passes zero_grad nonfinite_grad projected".split()
        ),
        ("seconds", pa.float64()),
        ("draws_right", pa.float64()),
    ]
)
"""One row for each image and attack; `margin` is the best other logit minus that of the label.

A stochastic network may be judged on several draws: `prediction` is then the class that most draws
give, `margin` the lead of the best other class in votes, and `draws_right` the fraction of draws
that are right.

`prediction` is -1 if the logits were not finite. `success` says that the image is right when clean
and its proposal is wrong, and `projected` that the proposal was outside the ball or the range.
"""

#: The column of `records.parquet` and `results.csv` that only runs of suites with `energy: true`
#: have: the synaptic operations of an image, and in results their mean; in the worst case, that of
#: the largest of each image.
OPERATIONS = "synaptic_operations"


def records_schema(columns: Iterable[str]) -> pa.Schema:
    """The columns of `records.parquet` for rows with those columns.

    Examples:
        >>> records_schema(["model", "synaptic_operations"]).names[-1]
        'synaptic_operations'
    """
    return RECORDS.append(pa.field(OPERATIONS, pa.float64())) if OPERATIONS in columns else RECORDS


RESULTS = (
    "model data samples suite attack estimator substitute norm epsilon steps restarts seed "
    "accuracy ci_low ci_high attack_success_rate mean_linf mean_l2 forward_passes "
    "backward_passes flags seconds draws_accuracy"
).split()


#: The columns of `results.csv` that are text; even an epsilon of `0` is text there.
RESULTS_TEXT = (
    "model data suite attack estimator substitute norm epsilon steps restarts flags"
).split()
ACTIVITY = ("layer", "neurons", "step", "spikes_per_neuron")


class Condition(NamedTuple):
    """One row of a comparison: an attack (or clean, or the worst case) at its norm and size.

    Examples:
        >>> Condition("pgd", "Linf", "51/255").radius
        0.2
    """

    attack: str
    norm: str
    epsilon: str

    @property
    def title(self) -> str:
        """The name of the attack as it is printed."""
        return wording.attack(self.attack)

    @property
    def size(self) -> str:
        """The norm and epsilon as they are printed; empty for clean images."""
        return "" if self.attack == CLEAN else wording.threat(self.norm, self.epsilon)

    @property
    def radius(self) -> float:
        """Epsilon as a number in pixel units of [0, 1]; 0 for clean images, NaN for text."""
        if self.attack == CLEAN:
            return 0.0
        try:
            return float(Fraction(self.epsilon))
        except (ValueError, ZeroDivisionError):
            return float("nan")


CLEAN_IMAGES = Condition(CLEAN, "", "")


#: The columns that name a condition in `records.parquet` and `results.csv`.
CONDITION = list(Condition._fields)


class Size(NamedTuple):
    """A norm, and epsilon, as the user wrote it, which bounds perturbations in that norm."""

    norm: str
    epsilon: str
