"""The worst case class by class: accuracies, and what each class is taken for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from robustsnn.common import wording
from robustsnn.reporting.comparison import Comparison
from robustsnn.reporting.outcomes import NO_CLASS, Outcome, class_name, outcomes_of
from robustsnn.reporting.text_table import Cell, TextTable

#: With more classes than this, a confusion matrix fits no page and is in a file only.
MOST_CLASSES = 20


def class_tables(comparison: Comparison) -> Iterator[TextTable]:
    """Accuracy by class of all models, then the confusion matrix of each."""
    outcomes = outcomes_of(comparison)
    if not outcomes:
        return
    yield _classes(comparison, outcomes)
    if outcomes[0].run.classes <= MOST_CLASSES:
        for number, outcome in enumerate(outcomes):
            yield _confusion(comparison, outcome, number)


def class_frame(comparisons: list[Comparison]) -> pd.DataFrame:
    """Accuracies by class as numbers: one row for each comparison, model and class."""
    rows = [
        {**_about(comparison, outcome), "label": label, "class": row.name, **row.to_dict()}
        for comparison in comparisons
        for outcome in outcomes_of(comparison)
        for label, (_, row) in enumerate(by_class(outcome).iterrows())
    ]
    return pd.DataFrame(rows)


def confusion_frame(comparisons: list[Comparison]) -> pd.DataFrame:
    """Confusion matrices as numbers: one row for each model and pair of classes that occurs."""
    rows: list[dict[str, Any]] = []
    for comparison in comparisons:
        for outcome in outcomes_of(comparison):
            counts = outcome.confusion()
            cells = counts.to_numpy()
            rows += [
                {
                    **_about(comparison, outcome),
                    "class": class_name(outcome.run, int(counts.index[row])),
                    "predicted": class_name(outcome.run, int(counts.columns[column])),
                    "images": int(cells[row, column]),
                }
                for row, column in zip(*cells.nonzero(), strict=True)
            ]
    return pd.DataFrame(rows)


def image_frame(comparisons: list[Comparison]) -> pd.DataFrame:
    """Every image in the worst case: whether it stood, and what its worst proposal was."""
    frames = []
    for comparison in comparisons:
        for outcome in outcomes_of(comparison):
            frame = outcome.frame
            names = {c: class_name(outcome.run, c) for c in (*frame["label"], *frame["prediction"])}
            frames.append(
                frame.assign(
                    label=frame["label"].map(names),
                    prediction=frame["prediction"].map(names),
                    **_about(comparison, outcome),
                )
            )
    if not frames:
        return pd.DataFrame()
    whole = pd.concat(frames, ignore_index=True)
    front = ["comparison", "model", "norm", "epsilon"]
    return whole[[*front, *(name for name in whole.columns if name not in front)]]


def _about(comparison: Comparison, outcome: Outcome) -> dict[str, str]:
    named = {"comparison": comparison.slug, "model": outcome.run.label}
    return {**named, "norm": outcome.size.norm, "epsilon": outcome.size.epsilon}


def by_class(outcome: Outcome) -> pd.DataFrame:
    """The images and accuracies of each class: `images`, `clean`, `worst_case`, by its name."""
    groups = outcome.frame.groupby("label")
    counts = pd.DataFrame(
        {
            "images": groups.size(),
            "clean": groups["right_when_clean"].mean(),
            "worst_case": groups["stood"].mean(),
        }
    ).reindex(range(outcome.run.classes))
    counts["images"] = counts["images"].fillna(0).astype(int)
    counts.index = pd.Index([class_name(outcome.run, label) for label in counts.index])
    return counts


def _classes(comparison: Comparison, outcomes: list[Outcome]) -> TextTable:
    frames = [by_class(outcome) for outcome in outcomes]
    size = wording.threat(*outcomes[0].size)
    rows = []
    for place, name in enumerate(frames[0].index):
        cells = []
        for frame in frames:
            row = frame.iloc[place]
            clean = "" if math.isnan(row["clean"]) else f"({wording.percent(row['clean'])} clean)"
            cells.append(Cell(wording.percent(row["worst_case"]), clean))
        rows.append((Cell(str(name)), Cell(f"{frames[0].iloc[place]['images']:.0f}"), *cells))
    return TextTable(
        name=f"classes-{comparison.slug}",
        title=f"Accuracy by class in the worst case, {size}",
        head=(Cell("Class"), Cell("Images"), *(Cell(o.run.label) for o in outcomes)),
        rows=tuple(rows),
        notes=(
            "Each cell holds the accuracy over the images of one class in the worst case, and that"
            " on clean images in brackets. Few images of a class say little about it.",
        ),
        caption=f"Accuracy by class in the worst case at {size}, with clean accuracy in brackets.",
    )


def _confusion(comparison: Comparison, outcome: Outcome, number: int) -> TextTable:
    counts = outcome.confusion()
    size = wording.threat(*outcome.size)
    rows = tuple(
        (
            Cell(class_name(outcome.run, int(label))),
            *(Cell(str(images) if images else "–") for images in row),
        )
        for label, row in zip(counts.index, counts.to_numpy().tolist(), strict=True)
    )
    none = (
        " No class wins where two tie at the top or a logit is not finite."
        if NO_CLASS in counts.columns
        else ""
    )
    return TextTable(
        name=f"confusion-{comparison.slug}-{number}",
        title=f"What {outcome.run.label} takes each class for in the worst case, {size}",
        head=(Cell("Class"), *(Cell(class_name(outcome.run, int(c))) for c in counts.columns)),
        rows=rows,
        notes=(
            "Rows are true classes, columns are predictions, and cells count images. An image that"
            " stood counts as right; any other one counts as what its worst proposal is taken for."
            + none,
        ),
        caption=f"Images of each class (rows) by prediction (columns) of {outcome.run.label} in the"
        f" worst case at {size}.",
    )
