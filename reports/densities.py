"""The density of each layer of the sparse models."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustsnn.common import wording
from robustsnn.records.runs import Runs
from robustsnn.reporting import figures

#: The ratio of the largest density to the smallest from which an axis of logarithms is used.
WIDE = 5.0
#: The ratio of the ends of that axis from which only whole decades are named.
FEW_DECADES = 200.0


def render(runs: Runs, output: Path) -> list[Path]:
    """Draw one figure of all models with zeros among their weights, or none if there is none."""
    frame = runs.densities
    share = frame.groupby("model", sort=False)[["kept", "weights"]].sum()
    compressed = {run.label for run in runs.runs if run.sparse}
    # A network that lost whole channels is dense in what is left of it.
    zeros = share["kept"] < share["weights"]
    with_zeros = [model for model in share.index if model in compressed and zeros[model]]
    if not with_zeros:
        return []
    return _draw(runs, frame[frame["model"].isin(with_zeros)], compressed - {*with_zeros}, output)


def _draw(runs: Runs, frame: pd.DataFrame, removed: set[str], output: Path) -> list[Path]:
    layers = list(dict.fromkeys(frame["layer"]))
    models = list(dict.fromkeys(frame["model"]))
    below = figures.legend_height(figures.WIDTH, models)
    longest = max(len(name) for name in layers)
    slanted = longest * len(layers) > 58
    under = 0.075 * min(longest, 16) + 0.1 if slanted else 0.2
    height = 2.8 + under + below
    present = frame["density"][frame["density"] > 0]
    logarithmic = len(present) > 0 and present.max() / present.min() > WIDE
    with figures.style():
        figure = Figure(figsize=(figures.WIDTH, height))
        axes = figure.subplots()
        for model, rows in frame.groupby("model", sort=False):
            shown = rows[(rows["density"] > 0) | (not logarithmic)]
            axes.plot(
                [layers.index(name) for name in shown["layer"]],
                100 * shown["density"],
                color=figures.colour(runs.models, str(model)),
                marker=figures.marker(runs.models, str(model)),
                linestyle=_dashes(runs, str(model)),
                linewidth=1.2,
                markersize=6.5,
                markeredgecolor=figures.PAPER,
                markeredgewidth=0.8,
            )
        axes.set_xticks(range(len(layers)), [figures.shorten(name, 16) for name in layers])
        if slanted:
            for text in axes.get_xticklabels():
                text.set(rotation=40, ha="right", rotation_mode="anchor")
        axes.set_xlim(-0.55, len(layers) - 0.45)
        _density_axis(axes, 100 * present.min() if logarithmic else None)
        figure.subplots_adjust(
            left=0.135, right=0.985, top=1 - 0.1 / height, bottom=(below + under + 0.12) / height
        )
        handles = [
            figures.line(
                figures.colour(runs.models, m), figures.marker(runs.models, m), _dashes(runs, m)
            )
            for m in models
        ]
        figures.legend(figure, handles, models, below)
    return figures.save(
        figure,
        output,
        "densities",
        "Weights that are left in each layer",
        _caption(frame, sorted(removed, key=runs.models.index), logarithmic),
    )


def _dashes(runs: Runs, model: str) -> Literal["-", ":"]:
    """A dotted line for a model whose colour belongs to an earlier one already."""
    return "-" if runs.models.index(model) < len(figures.PALETTE) else ":"


def _density_axis(axes: Axes, smallest: float | None) -> None:
    """An axis of percentages, of logarithms from the smallest value on if there is one."""
    axes.set_ylabel("weights that are not zero, %")
    if smallest is None:
        axes.set_ylim(bottom=0)
        axes.margins(y=0.1)
        return
    axes.set_yscale("log")
    decades = 100 / smallest > FEW_DECADES
    ticks = [t * 10.0**e for e in range(-6, 3) for t in ((1,) if decades else (1, 2, 5))]
    ticks = [tick for tick in ticks if 0.8 * smallest <= tick <= 100]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0.8 * smallest, 125)


def _caption(frame: pd.DataFrame, removed: list[str], logarithmic: bool) -> str:
    text = "The marker is the share of the weights of a layer that are not zero."
    if logarithmic:
        text += " The axis is logarithmic."
        for model, rows in frame[frame["density"] == 0].groupby("model", sort=False):
            names = wording.listing([str(name) for name in rows["layer"]])
            text += f" {model} has no weight left in {names}."
    if removed:
        have, their, are = ("has", "its", "is") if len(removed) == 1 else ("have", "their", "are")
        text += (
            f" {wording.listing(removed)} {have} fewer channels but every weight of {their} layers,"
            f" and {are} not drawn."
        )
    return text
