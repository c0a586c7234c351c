"""Accuracy under every attack as grouped bars with Wilson intervals, one colour per model."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from robustsnn.common import wording
from robustsnn.records.runs import Runs
from robustsnn.records.schema import WORST_CASE, Condition
from robustsnn.reporting import figures
from robustsnn.reporting.comparison import Comparison, comparisons

if TYPE_CHECKING:
    import pandas as pd

#: The number of characters of a label that fit next to the bars.
WIDEST = 20
#: The share of the figure's width that a character takes, with the space around the label.
MARGIN = 0.0175
CUMULATIVE = "Each bar is the accuracy that is left after that attack and all attacks above it."


def render(runs: Runs, output: Path) -> list[Path]:
    """Draw one figure for each comparison that is not a curve."""
    written = []
    for comparison in comparisons(runs):
        if comparison.attacks and not comparison.is_curve:
            written += _draw(comparison, runs.models, output)
    return written


def _draw(comparison: Comparison, models: tuple[str, ...], output: Path) -> list[Path]:
    # The worst case over a single attack repeats that attack.
    conditions = [
        c for c in comparison.conditions if c.attack != WORST_CASE or _several(comparison, c)
    ]
    count = len(comparison.models)
    cascade = any(run.manifest.cascade for run in comparison.runs)
    # Bars are horizontal, so that names of attacks are too and the figure grows with their number.
    thickness = 0.17 if count > 1 else 0.24
    row = count * thickness + 0.19
    legend_labels = list(comparison.models)
    below = figures.legend_height(figures.WIDTH, legend_labels) if count > 1 else 0.0
    warning = figures.doubtful(comparison.runs)
    above = figures.MARK if warning else 0.0
    height = len(conditions) * row + below + 0.72 + above
    with figures.style():
        figure = Figure(figsize=(figures.WIDTH, height))
        axes = figure.subplots()
        for index, model in enumerate(comparison.models):
            shade = figures.colour(models, model)
            for place, condition in enumerate(conditions):
                cell = comparison.cells.get((model, condition))
                if cell is not None:
                    y = place * row + (index - (count - 1) / 2) * thickness
                    _draw_bar(axes, cell, y, thickness, shade)
        names = [_name(condition) for condition in conditions]
        _set_axes(axes, names, row, 1 / comparison.runs[0].classes)
        if cascade:
            axes.set_xlabel("accuracy after this attack and all above it, %")
        longest = max(len(line) for name in names for line in name.split("\n"))
        figure.subplots_adjust(
            left=max(0.235, MARGIN * longest),
            right=0.985,
            top=1 - (0.08 + above) / height,
            bottom=(below + 0.56) / height,
        )
        figures.mark(figure, warning)
        if count > 1:
            handles = [Patch(color=figures.colour(models, m)) for m in comparison.models]
            figures.legend(figure, handles, legend_labels, below)
    return figures.save(
        figure,
        output,
        f"attack-bars-{comparison.slug}",
        "Accuracy under each attack",
        f"{comparison.title}: the fraction of {wording.count(comparison.samples, 'image')} that is"
        " classified right, with 95 % Wilson intervals. The dotted line is chance. The worst case"
        " counts an image only if it survives every attack of that norm and size."
        + (f" {CUMULATIVE}" if cascade else "")
        + (f" {warning}" if warning else ""),
    )


def _draw_bar(axes: Axes, cell: pd.Series[float], y: float, thickness: float, shade: str) -> None:
    """Draw an accuracy as a bar at height `y`, with its interval and its number."""
    accuracy = float(cell["accuracy"])
    axes.barh(y, accuracy, height=thickness * 0.86, color=shade)
    axes.plot(
        [cell["ci_low"], cell["ci_high"]],
        [y, y],
        color=figures.INK,
        linewidth=1.1,
        solid_capstyle="butt",
    )
    axes.text(
        float(cell["ci_high"]) + 0.012,
        y,
        f"{100 * accuracy:.1f}",
        va="center",
        fontsize=8.5,
        bbox={"facecolor": figures.PAPER, "edgecolor": "none", "pad": 0.8},
    )


def _set_axes(axes: Axes, names: list[str], row: float, chance: float) -> None:
    """Give the axes their ticks, limits, grid and the line of chance.

    Args:
        axes: The axes with the bars.
        names: The labels of the rows from top to bottom.
        row: The height of a row in units of the axis.
        chance: The accuracy of a guess.
    """
    axes.set_yticks([place * row for place in range(len(names))], names)
    axes.set_ylim((len(names) - 0.5) * row, -0.5 * row)
    axes.set_xlim(0, 1.1)
    axes.spines["bottom"].set_bounds(0, 1)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0", "20", "40", "60", "80", "100"])
    axes.set_xlabel("accuracy, %")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.axvline(chance, color=figures.MUTED, linestyle=":", linewidth=1.4, zorder=0.6)


def _name(condition: Condition) -> str:
    """The attack and its size, in lines that fit next to the bars."""
    title = textwrap.fill(condition.title, WIDEST, break_long_words=False)
    return f"{title}\n{condition.size}" if condition.size else title


def _several(comparison: Comparison, worst: Condition) -> bool:
    """Whether a worst case is over several attacks."""
    same = [c for c in comparison.attacks if (c.norm, c.epsilon) == (worst.norm, worst.epsilon)]
    return len(same) > 1
