"""Clean images, what the strongest attack adds to them, and what the models then see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from robustsnn.records.runs import Run, Runs
from robustsnn.records.schema import Condition
from robustsnn.reporting import figures
from robustsnn.reporting.comparison import Comparison, comparisons

IMAGES = 5


def render(runs: Runs, output: Path) -> list[Path]:
    """One figure for each comparison whose runs hold example images of a common attack.

    A curve shows the same attacks at other sizes, so it has one only where there is no other.
    """
    written: list[Path] = []
    for comparison in sorted(comparisons(runs), key=lambda c: c.is_curve):
        if comparison.is_curve and written:
            break
        shown = [run for run in comparison.runs if "clean" in run.examples]
        if shown and (condition := _condition(comparison, shown)) is not None:
            written += _draw(comparison, shown, condition, output)
    return written


def _key(condition: Condition) -> str:
    return f"{condition.attack}@{condition.epsilon}"


def _condition(comparison: Comparison, shown: list[Run]) -> Condition | None:
    """The attack all runs hold examples of that leaves the least accuracy; visible sizes first."""
    common = [
        condition
        for condition in comparison.attacks
        if condition.radius > 0
        and all(f"adversarial/{_key(condition)}" in run.examples for run in shown)
        and all(condition in comparison.verdicts[run.label] for run in shown)
    ]
    if not common:
        return None
    # In a curve the largest size breaks everything and shows nothing; 8/255 is the usual one.
    if comparison.is_curve:
        common = [c for c in common if c.radius <= 8 / 255 + 1e-9] or common

    def mean_accuracy(condition: Condition) -> float:
        return float(np.mean([comparison.verdicts[run.label][condition].mean() for run in shown]))

    return min(common, key=mean_accuracy)


def _draw(
    comparison: Comparison, shown: list[Run], condition: Condition, output: Path
) -> list[Path]:
    key = _key(condition)
    places = [_places(run) for run in shown]
    ids = _choose(shown, places, key)
    added = {
        (run.label, i): run.examples[f"adversarial/{key}"][at[i]] - run.examples["clean"][at[i]]
        for run, at in zip(shown, places, strict=True)
        for i in ids
    }
    largest = max(float(np.abs(delta).max()) for delta in added.values()) or 1.0
    columns = 1 + 2 * len(shown)
    cell = max(0.78, min(1.1, figures.WIDTH / columns))
    head, caption = 0.6, 0.29
    width, height = columns * cell + 0.1, head + len(ids) * (cell + caption)
    with figures.style():
        figure = Figure(figsize=(width, height))

        def place(row: int, column: int) -> Axes:
            top = head + row * (cell + caption)
            box = (
                (0.05 + column * cell + 0.03) / width,
                1 - (top + cell - 0.03) / height,
                (cell - 0.06) / width,
                (cell - 0.06) / height,
            )
            axes = figure.add_axes(box)
            axes.set_axis_off()
            return axes

        def heading(column: float, span: float, y: float, text: str, **style: Any) -> None:
            figure.text(
                (0.05 + (column + span / 2) * cell) / width,
                1 - y / height,
                figures.shorten(text, max(8, int(span * cell / 0.1))),
                ha="center",
                va="center",
                **style,
            )

        heading(0, 1, 0.45, "clean", fontsize=8.5, color=figures.MUTED)
        for index, run in enumerate(shown):
            shade = figures.colour(comparison.models, run.label)
            left = 1 + 2 * index
            heading(left, 2, 0.2, run.label, fontsize=9.5, weight="bold", color=shade)
            heading(left, 1, 0.45, "added", fontsize=8.5, color=figures.MUTED)
            heading(left + 1, 1, 0.45, "seen", fontsize=8.5, color=figures.MUTED)
        for row, image_id in enumerate(ids):
            first, at = shown[0], places[0][image_id]
            label = int(first.examples["label"][at])
            axes = place(row, 0)
            _image(axes, first.examples["clean"][at])
            _under(axes, _class(first, label), figures.INK, cell)
            for index, (run, at_run) in enumerate(zip(shown, places, strict=True)):
                _added(place(row, 1 + 2 * index), added[run.label, image_id], largest)
                axes = place(row, 2 + 2 * index)
                _image(axes, run.examples[f"adversarial/{key}"][at_run[image_id]])
                predicted = int(run.examples[f"prediction/{key}"][at_run[image_id]])
                wrong = predicted != label
                sign, shade = ("✗", figures.WRONG) if wrong else ("✓", figures.RIGHT)
                _under(axes, f"{sign} {_class(run, predicted)}", shade, cell)
    return figures.save(
        figure,
        output,
        f"gallery-{comparison.slug}",
        f"Images under {condition.title} at {condition.size}",
        f"{comparison.title}: the clean image with its label, what the attack adds (scaled"
        f" {0.5 / largest:.3g}-fold; red is brighter, blue darker, colour images around grey), and"
        " the image the model sees with its prediction. Where possible the images are ones every"
        " model gets right when clean.",
    )


def _places(run: Run) -> dict[int, int]:
    ids = run.examples.get("image_id", np.arange(len(run.examples["clean"])))
    return {int(image_id): place for place, image_id in enumerate(ids)}


def _choose(shown: list[Run], places: list[dict[int, int]], key: str) -> list[int]:
    """Images all runs hold: those all get right when clean first, then those most are fooled by."""

    def rank(image_id: int) -> tuple[int, int]:
        clean_wrong = fooled = 0
        for run, at in zip(shown, places, strict=True):
            label = run.examples["label"][at[image_id]]
            clean_wrong += run.examples["prediction/clean"][at[image_id]] != label
            fooled += run.examples[f"prediction/{key}"][at[image_id]] != label
        return int(clean_wrong), -int(fooled)

    common = [i for i in places[0] if all(i in at for at in places)]
    ranked = sorted(common, key=rank)
    # Different classes say more than the same one five times.
    labels = shown[0].examples["label"]
    chosen: list[int] = []
    for fresh in (True, False):
        for image_id in ranked:
            used = {int(labels[places[0][i]]) for i in chosen}
            new = int(labels[places[0][image_id]]) not in used
            if len(chosen) < IMAGES and image_id not in chosen and new is fresh:
                chosen.append(image_id)
    return chosen


def _class(run: Run, index: int) -> str:
    names = run.class_names
    return names[index] if 0 <= index < len(names) else str(index)


def _image(axes: Axes, image: NDArray[Any]) -> None:
    if image.shape[0] == 1:
        axes.imshow(image[0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        pixels = np.clip(np.moveaxis(image[:3], 0, -1), 0, 1)
        axes.imshow(pixels, interpolation="nearest")


def _added(axes: Axes, delta: NDArray[Any], largest: float) -> None:
    if delta.shape[0] == 1:
        # Short of the ends of the map, which are nearly black.
        reach = 1.4 * largest
        axes.imshow(delta[0], cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest")
    else:
        shown = np.clip(0.5 + 0.5 * np.moveaxis(delta[:3], 0, -1) / largest, 0, 1)
        axes.imshow(shown, interpolation="nearest")


def _under(axes: Axes, text: str, colour: str, cell: float) -> None:
    axes.annotate(
        figures.shorten(text, max(8, int(cell / 0.06))),
        (0.5, 0),
        xytext=(0, -4),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=8,
        color=colour,
    )
