"""The figures of the study of sparsity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustsnn.common import wording
from robustsnn.reporting.figures import MARKERS, PALETTE, style
from robustsnn.snn.sparsity import LayerDensity
from studies.sparsity.study import AGC, ENERGY, PUBLISHED, STRONGEST

#: What is drawn against compression: column, factor, title.
PANELS = (
    (f"{STRONGEST}:clean", 100.0, "clean accuracy, %"),
    (f"{PUBLISHED}:pgd-7", 100.0, "under PGD-7 (published), %"),
    (f"{STRONGEST}:robust", 100.0, "under standard, %"),
    (f"{ENERGY}:spikes", 1.0, "spikes per neuron and step"),
    (f"{ENERGY}:operations", 1e-3, "synaptic operations, thousands"),
    (f"{ENERGY}:worst_operations", 1e-3, "worst-case operations, thousands"),
)


def against_compression(table: pd.DataFrame) -> Figure | None:
    """Spiking networks: accuracies, spikes and operations against compression, a row a data set.

    The figure is None if nothing was run.
    """
    some = table[table["kind"] == "snn"]
    panels = [p for p in PANELS if p[0] in some and some[p[0]].notna().any()]
    if some.empty or not panels:
        return None
    sets = list(dict.fromkeys(some["data"]))
    methods = list(dict.fromkeys(some["method"]))
    columns = 3
    rows = -(-len(panels) // columns)
    with style(), mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(10, 2.7 * rows * len(sets) + 0.7), layout="constrained")
        grid = figure.subplots(rows * len(sets), columns, squeeze=False)
        for place, data in enumerate(sets):
            here = some[some["data"] == data]
            flat = [axes for line in grid[place * rows : (place + 1) * rows] for axes in line]
            for axes, panel in zip(flat, panels, strict=False):
                _panel(axes, here, methods, panel, wording.data(str(data)))
            for axes in flat[len(panels) :]:
                axes.set_visible(False)
        handles = [_handle(methods, method) for method in methods]
        figure.legend(handles, methods, loc="outside lower center", ncols=min(5, len(methods)))
    return figure


def _panel(
    axes: Axes, here: pd.DataFrame, methods: list[str], panel: tuple[str, float, str], data: str
) -> None:
    """One quantity; the line joins the means of AGC over seeds."""
    column, factor, title = panel
    known = here[here[column].notna()]
    for method in methods:
        own = known[known["method"] == method]
        look = _look(methods, method)
        axes.plot(own["compression"], factor * own[column], linestyle="", **look)
    guided = known[known["method"].isin([AGC, "dense"])]
    means = guided.groupby(guided["compression"].round(1))[column].mean().sort_index()
    axes.plot(
        means.index, factor * means, color=_look(methods, AGC)["color"], linewidth=1, zorder=1
    )
    axes.set_xscale("log")
    ticks = [1, 2.5, 10, 33]
    axes.set_xticks(ticks, [f"{t:g}x" for t in ticks])
    axes.minorticks_off()
    axes.set_title(f"{data}: {title}", fontsize=9)
    axes.set_ylim(bottom=0)


def _look(methods: list[str], method: str) -> dict[str, Any]:
    place = methods.index(method) if method in methods else 0
    return {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)]}


def _handle(methods: list[str], method: str) -> mpl.lines.Line2D:
    return mpl.lines.Line2D([], [], linestyle="", **_look(methods, method))


def of_layers(found: Mapping[str, tuple[LayerDensity, ...]]) -> Figure | None:
    """The density of each layer of each network with masked weights, on a logarithmic axis.

    The function returns None if no network has masked weights.
    """
    sparse = {
        name: layers
        for name, layers in found.items()
        if any(layer.kept < layer.weights for layer in layers)
    }
    if not sparse:
        return None
    sets = list(dict.fromkeys(name.partition("/")[0] for name in sparse))
    with style(), mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(10, 4.2 * len(sets)), layout="constrained")
        grid = figure.subplots(len(sets), 1, squeeze=False)
        for axes, data in zip(grid[:, 0], sets, strict=True):
            here = {n: x for n, x in sparse.items() if n.partition("/")[0] == data}
            names = list(here)
            for name, layers in here.items():
                short = name.partition("/")[2]
                axes.plot(
                    [layer.name for layer in layers],
                    [100 * layer.density for layer in layers],
                    label=short,
                    linewidth=1.2,
                    **_look(names, name),
                )
            axes.set_yscale("log")
            axes.set_ylabel("weights kept, %")
            axes.set_title(f"{wording.data(data)}: density of each layer", fontsize=10)
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
    return figure
