"""Clean images, what the strongest attack adds to them, and the images the models then see."""

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

#: The number of images in a gallery.
IMAGES = 5


def render(runs: Runs, output: Path) -> list[Path]:
    """Draw one figure for each comparison whose runs hold example images of a common attack.

    A curve shows the same attacks at other sizes, so it gets a figure only if there is no other.
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
    """The name of a condition in the example images of a run."""
    return f"{condition.attack}@{condition.epsilon}"


def _condition(comparison: Comparison, shown: list[Run]) -> Condition | None:
    """The attack that leaves the least accuracy, of those that every run holds images of."""
    common = [
        condition
        for condition in comparison.attacks
        if condition.radius > 0
        and all(f"adversarial/{_key(condition)}" in run.examples for run in shown)
        and all(condition in comparison.verdicts[run.label] for run in shown)
    ]
    if not common:
        return None
    # The largest size of a curve breaks every image and shows little; 8/255 is the usual size.
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
    with figures.style():
        grid = _Grid(rows=len(ids), columns=1 + 2 * len(shown))
        _draw_headings(grid, comparison, shown)
        for row, image_id in enumerate(ids):
            first, at = shown[0], places[0][image_id]
            label = int(first.examples["label"][at])
            axes = grid.axes(row, 0)
            _image(axes, first.examples["clean"][at])
            _under(axes, _class(first, label), figures.INK, grid.cell)
            for index, (run, at_run) in enumerate(zip(shown, places, strict=True)):
                _added(grid.axes(row, 1 + 2 * index), added[run.label, image_id], largest)
                axes = grid.axes(row, 2 + 2 * index)
                _image(axes, run.examples[f"adversarial/{key}"][at_run[image_id]])
                predicted = int(run.examples[f"prediction/{key}"][at_run[image_id]])
                wrong = predicted != label
                sign, shade = ("✗", figures.WRONG) if wrong else ("✓", figures.RIGHT)
                _under(axes, f"{sign} {_class(run, predicted)}", shade, grid.cell)
    return figures.save(
        grid.figure,
        output,
        f"gallery-{comparison.slug}",
        f"Images under {condition.title} at {condition.size}",
        f"{comparison.title}: the clean image with its label; what the attack adds, scaled by"
        f" {0.5 / largest:.3g} (red is brighter, blue is darker; colour images are shown around"
        " grey); and the image that the model sees, with its prediction. Where possible, every"
        " model is right on the clean image.",
    )


class _Grid:
    """A figure of square images with a caption below each, under two lines of headings.

    Args:
        rows: The number of rows of images.
        columns: The number of columns of images.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.cell = max(0.78, min(1.1, figures.WIDTH / columns))
        self._head, self._caption = 0.6, 0.29
        self._width = columns * self.cell + 0.1
        self._height = self._head + rows * (self.cell + self._caption)
        self.figure = Figure(figsize=(self._width, self._height))

    def axes(self, row: int, column: int) -> Axes:
        """Add the axes of an image."""
        top = self._head + row * (self.cell + self._caption)
        box = (
            (0.05 + column * self.cell + 0.03) / self._width,
            1 - (top + self.cell - 0.03) / self._height,
            (self.cell - 0.06) / self._width,
            (self.cell - 0.06) / self._height,
        )
        axes = self.figure.add_axes(box)
        axes.set_axis_off()
        return axes

    def heading(self, column: float, span: float, y: float, text: str, **style: Any) -> None:
        """Write a text above `span` columns, its middle `y` inches below the upper edge."""
        self.figure.text(
            (0.05 + (column + span / 2) * self.cell) / self._width,
            1 - y / self._height,
            figures.shorten(text, max(8, int(span * self.cell / 0.1))),
            ha="center",
            va="center",
            **style,
        )


def _draw_headings(grid: _Grid, comparison: Comparison, shown: list[Run]) -> None:
    grid.heading(0, 1, 0.45, "clean", fontsize=8.5, color=figures.MUTED)
    for index, run in enumerate(shown):
        shade = figures.colour(comparison.models, run.label)
        left = 1 + 2 * index
        grid.heading(left, 2, 0.2, run.label, fontsize=9.5, weight="bold", color=shade)
        grid.heading(left, 1, 0.45, "added", fontsize=8.5, color=figures.MUTED)
        grid.heading(left + 1, 1, 0.45, "seen", fontsize=8.5, color=figures.MUTED)


def _places(run: Run) -> dict[int, int]:
    """The place of each example image of a run, by image id."""
    ids = run.examples.get("image_id", np.arange(len(run.examples["clean"])))
    return {int(image_id): place for place, image_id in enumerate(ids)}


def _choose(shown: list[Run], places: list[dict[int, int]], key: str) -> list[int]:
    """The ids of the images to show, all of which every run holds.

    Images that all models get right when clean come first, and among them those that fool the
    most models.
    """

    def rank(image_id: int) -> tuple[int, int]:
        clean_wrong = fooled = 0
        for run, at in zip(shown, places, strict=True):
            label = run.examples["label"][at[image_id]]
            clean_wrong += run.examples["prediction/clean"][at[image_id]] != label
            fooled += run.examples[f"prediction/{key}"][at[image_id]] != label
        return int(clean_wrong), -int(fooled)

    common = [i for i in places[0] if all(i in at for at in places)]
    ranked = sorted(common, key=rank)
    # Images of different classes show more than five images of one class.
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
    """The name of a class, or its number if it has no name."""
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
        # The ends of the colour map are nearly black and are left unused.
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
