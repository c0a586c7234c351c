"""What became of each image in the worst case: which fell, which stood, and to what class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustsnn.records.runs import Run
from robustsnn.records.schema import CLEAN, WORST_CASE, Condition, Size
from robustsnn.reporting.comparison import Comparison
from robustsnn.reporting.sentences import headline_condition

#: The predicted class of an image that no class wins: two tie at the top, or a logit is not finite.
NO_CLASS = -1
#: The size at which a curve is looked at image by image; the largest breaks every image.
_USUAL = 8 / 255


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of the images of a run in the worst case at one norm and size.

    Args:
        run: The run.
        size: The norm and the size.
        frame: One row for each image, in the order of the ids: `image_id`, `label`, whether it is
            `right_when_clean`, whether it `stood`, and of the proposal that came closest to an
            error or made one, the `attack`, the `margin` and the `prediction`, which is `NO_CLASS`
            where no class wins.
    """

    run: Run
    size: Size
    frame: pd.DataFrame

    @property
    def fell(self) -> pd.DataFrame:
        """The images that are right when clean and did not stand."""
        return self.frame[self.frame["right_when_clean"] & ~self.frame["stood"]]

    @property
    def stood(self) -> pd.DataFrame:
        """The images that stood."""
        return self.frame[self.frame["stood"]]

    def confusion(self) -> pd.DataFrame:
        """The number of images by their class, in rows, and by the class that is predicted.

        An image that stood is predicted right, and any other one as its worst proposal is.
        """
        classes = range(self.run.classes)
        said = self.frame["prediction"].where(~self.frame["stood"], self.frame["label"])
        counts = pd.crosstab(self.frame["label"], said)
        columns = [*classes, *([NO_CLASS] if NO_CLASS in counts.columns else [])]
        return counts.reindex(index=list(classes), columns=columns, fill_value=0)


def size_shown(comparison: Comparison) -> Size | None:
    """The norm and size at which a report looks at single images; None without an attack."""
    attacked = [c for c in comparison.attacks if c.radius > 0]
    if not attacked:
        return None
    if not comparison.is_curve:
        chosen = headline_condition(comparison)
        chosen = chosen if chosen.radius > 0 else attacked[0]
        return Size(chosen.norm, chosen.epsilon)
    usual = [c for c in attacked if c.radius <= _USUAL + 1e-9] or attacked[:1]
    largest = max(usual, key=lambda c: c.radius)
    return Size(largest.norm, largest.epsilon)


def outcome_of(comparison: Comparison, run: Run, size: Size) -> Outcome | None:
    """What became of the images of a run; None if it was not attacked at that norm and size."""
    verdicts = comparison.verdicts[run.label]
    worst = Condition(WORST_CASE, size.norm, size.epsilon)
    if worst not in verdicts:
        return None
    records = run.records
    clean = records[records["attack"] == CLEAN]
    every = (clean if len(clean) else records).drop_duplicates("image_id")
    about = (records["norm"] == size.norm) & (records["epsilon"] == size.epsilon)
    # A margin that is not a number comes of logits that are not finite, which is an error.
    some = records[about | (records["attack"] == CLEAN)].assign(
        worst=lambda rows: rows["margin"].fillna(np.inf)
    )
    some = some.sort_values(["image_id", "worst"], ascending=[True, False], kind="stable")
    some = some.drop_duplicates("image_id").set_index("image_id")
    frame = every[["image_id", "label", "clean_prediction"]].sort_values("image_id")
    # An image that is wrong when clean need not have been attacked.
    frame = frame.join(some[["attack", "margin", "prediction"]], on="image_id")
    frame = frame.fillna({"attack": CLEAN}).reset_index(drop=True)
    frame["prediction"] = frame["prediction"].fillna(frame["clean_prediction"]).astype(int)
    frame["stood"] = verdicts[worst]
    frame["right_when_clean"] = frame["clean_prediction"] == frame["label"]
    none = ~frame["stood"] & (
        (frame["prediction"] == frame["label"]) | ~frame["prediction"].between(0, run.classes - 1)
    )
    frame["prediction"] = frame["prediction"].mask(none, NO_CLASS)
    columns = ["image_id", "label", "right_when_clean", "stood", "attack", "margin", "prediction"]
    return Outcome(run, size, frame[columns])


def outcomes_of(comparison: Comparison) -> list[Outcome]:
    """The outcomes of every run of a comparison at the size that is shown."""
    size = size_shown(comparison)
    if size is None:
        return []
    found = (outcome_of(comparison, run, size) for run in comparison.runs)
    return [outcome for outcome in found if outcome is not None]


def class_name(run: Run, index: int) -> str:
    """The name of a class, or its number if it has no name."""
    if index == NO_CLASS:
        return "no class"
    names = run.class_names
    return names[index] if 0 <= index < len(names) else str(index)
