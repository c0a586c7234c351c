"""Accuracy against the size of the perturbation, one line with a Wilson band per model."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from robustsnn.common import wording
from robustsnn.records.runs import Runs
from robustsnn.records.schema import CLEAN_IMAGES, WORST_CASE, Condition
from robustsnn.reporting import figures
from robustsnn.reporting.comparison import Comparison, comparisons

#: The name of an attack, or of the worst case, and a norm.
Panel = tuple[str, str]


def render(runs: Runs, output: Path) -> list[Path]:
    """Draw one figure for each comparison that has an attack at three sizes or more."""
    written = []
    for comparison in comparisons(runs):
        if comparison.is_curve:
            written += _draw(comparison, runs.models, output)
    return written


def _draw(comparison: Comparison, models: tuple[str, ...], output: Path) -> list[Path]:
    panels = _panels(comparison)
    legend = [*comparison.models, "chance"]
    below = figures.legend_height(figures.WIDTH, legend)
    warning = figures.doubtful(comparison.runs)
    above = figures.MARK if warning else 0.0
    height = 2.9 * len(panels) + below + 0.1 + above
    with figures.style():
        figure = Figure(figsize=(figures.WIDTH, height))
        grid = figure.subplots(len(panels), 1, squeeze=False)
        for axes, panel in zip(grid[:, 0], panels, strict=True):
            _draw_panel(axes, comparison, models, panel)
        figure.subplots_adjust(
            left=0.115,
            right=0.975,
            top=1 - (0.32 + above) / height,
            bottom=(below + 0.62) / height,
            hspace=0.42,
        )
        figures.mark(figure, warning)
        handles = [
            figures.line(figures.colour(models, m), figures.marker(models, m))
            for m in comparison.models
        ]
        handles.append(figures.line(figures.MUTED, dashes=":"))
        figures.legend(figure, handles, legend, below)
    return figures.save(
        figure,
        output,
        f"accuracy-vs-epsilon-{comparison.slug}",
        "Accuracy against epsilon",
        f"{comparison.title}: the fraction of {wording.count(comparison.samples, 'image')} that is"
        " still classified right as the perturbation grows, with 95 % Wilson bands. The curve of a"
        " sound attack ends at or below chance (dotted); a curve that stays above it says more"
        " about the attack than about the model." + (f" {warning}" if warning else ""),
    )


def _panels(comparison: Comparison) -> list[Panel]:
    """The attacks with three sizes or more; the worst case comes first if a norm has several."""
    sizes: dict[Panel, set[str]] = {}
    for condition in comparison.attacks:
        sizes.setdefault((condition.attack, condition.norm), set()).add(condition.epsilon)
    panels = [panel for panel, found in sizes.items() if len(found) >= 3]
    for norm in dict.fromkeys(norm for _, norm in panels):
        if len({attack for attack, other in panels if other == norm}) > 1:
            panels.insert(0, (WORST_CASE, norm))
    return panels


def _draw_panel(axes: Axes, comparison: Comparison, models: tuple[str, ...], panel: Panel) -> None:
    attack, norm = panel
    conditions = [c for c in comparison.conditions if (c.attack, c.norm) == panel]
    conditions = sorted((c for c in conditions if math.isfinite(c.radius)), key=lambda c: c.radius)
    in_255 = norm == "Linf"
    unit = 255 if in_255 else 1
    for model in comparison.models:
        rows = [
            (c, comparison.cells[model, c]) for c in conditions if (model, c) in comparison.cells
        ]
        if not any(c.radius == 0 for c, _ in rows):
            rows.insert(0, (CLEAN_IMAGES, comparison.cells[model, CLEAN_IMAGES]))
        x = [c.radius * unit for c, _ in rows]
        shade = figures.colour(models, model)
        axes.fill_between(
            x,
            [row["ci_low"] for _, row in rows],
            [row["ci_high"] for _, row in rows],
            color=shade,
            alpha=0.18,
            linewidth=0,
        )
        axes.plot(
            x,
            [row["accuracy"] for _, row in rows],
            color=shade,
            marker=figures.marker(models, model),
            markersize=5,
            markeredgecolor=figures.PAPER,
            markeredgewidth=0.7,
            linewidth=1.8,
            clip_on=False,
            zorder=3,
        )
    axes.axhline(1 / comparison.runs[0].classes, color=figures.MUTED, linestyle=":", linewidth=1.4)
    figures.percent_axis(axes)
    axes.set_title(Condition(attack, norm, "").title)
    size = f"{wording.norm(norm)} size ε of the perturbation"
    axes.set_xlabel(f"{size}, in 1/255" if in_255 else size)
    ticks = sorted({c.radius * unit for c in conditions} | {0.0})
    if len(ticks) > 2 and ticks[-1] >= 8 * ticks[1]:
        # Sizes that double would crowd at the left of a linear axis. On this one the step from 0
        # to the first size is as wide as that from one size to the next.
        axes.set_xscale("symlog", base=2, linthresh=ticks[1], linscale=0.5)
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0, ticks[-1])
    axes.set_xticks(ticks, [f"{tick:.4g}" for tick in ticks])
