"""The figures of the study of the claims."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustsnn.common import wording
from robustsnn.common.epsilon import parse_epsilon
from robustsnn.records.schema import WORST_CASE
from robustsnn.reporting.figures import MARKERS, PALETTE, style
from studies.claims.members import CONVERTED, DRAWN, FAMILIES, FROM_RATE, LEVELS, RATE
from studies.claims.statements import spikes_by_layer
from studies.claims.study import EPSILON, GRID, STEPS, ZOO

#: The figures by the name of their file, with the text for those who do not see them.
TITLES: Mapping[str, str] = {
    "epsilon": "Accuracy against epsilon, with 95 % intervals",
    "approximation": "Accuracy under the strongest attack, by levels and by time steps",
    "activity": "Spikes per neuron and step by layer",
    "grid": "Accuracy under the strongest attack by held thresholds and leaks",
}


def drawn(table: pd.DataFrame) -> dict[str, Figure | None]:
    """Every figure by the name of its file; None for those that nothing was run for."""
    with style(), mpl.rc_context({"font.size": 9}):
        return {
            "epsilon": epsilon(table),
            "approximation": approximation(table),
            "activity": activity(table),
            "grid": grid(table),
        }


def epsilon(table: pd.DataFrame, data: str = "cifar10") -> Figure | None:
    """Accuracy against epsilon of the main kinds on one data set, a line a kind."""
    some = table[
        (table["part"] == EPSILON)
        & (table["data"] == data)
        & (table["architecture"] == "vgg5")
        & (table["seed"] == 1)
        & (table["attack"] == WORST_CASE)
    ]
    kinds = [kind for kind in DRAWN if (some["kind"] == kind).any()]
    if not kinds:
        return None
    figure = Figure(figsize=(6.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for kind in kinds:
        rows = some[some["kind"] == kind].copy()
        rows["size"] = [255 * parse_epsilon(str(e)) for e in rows["epsilon"]]
        rows = rows.sort_values("size")
        place = DRAWN.index(kind)
        axes.plot(
            rows["size"], 100 * rows["accuracy"], label=kind, color=PALETTE[place],
            marker=MARKERS[place], markersize=4,
        )  # fmt: skip
        axes.fill_between(
            rows["size"], 100 * rows["low"], 100 * rows["high"], color=PALETTE[place], alpha=0.15,
            linewidth=0,
        )  # fmt: skip
    samples = int(some["samples"].max())
    axes.set_title(f"{wording.data(data)}: accuracy in % under PGD-20, {samples} images")
    axes.set_xlabel("epsilon, in 1/255 (Linf)")
    axes.set_xscale("symlog", linthresh=1, base=2)
    axes.set_xticks([0, 1, 2, 4, 8, 16, 32], [str(e) for e in (0, 1, 2, 4, 8, 16, 32)])
    axes.set_ylim(0, 100)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def approximation(table: pd.DataFrame) -> Figure | None:
    """Accuracy under the strongest attack against the levels of the input and the time steps."""
    left = _by_levels(table)
    right = table[(table["part"] == STEPS) & (table["attack"] == WORST_CASE)]
    if not left and right.empty:
        return None
    sets = [data for data in ("cifar10", "fashion-mnist") if (right["data"] == data).any()]
    titles = ["under rand, by levels N", *(f"{wording.data(d)}, by steps T" for d in sets)]
    figure = Figure(figsize=(3.2 * len(titles), 4), layout="constrained")
    first, *others = figure.subplots(1, len(titles), squeeze=False)[0]
    for place, (label, rows) in enumerate(left.items()):
        _line(first, list(range(len(rows))), rows, label, place)
        first.set_xticks(range(len(rows)), [str(int(n)) for n in rows["levels"]])
    first.set_xlabel("N: from Poisson to direct")
    kinds = list(dict.fromkeys(right["kind"]))
    for axes, data in zip(others, sets, strict=True):
        for place, kind in enumerate(kinds):
            rows = right[(right["data"] == data) & (right["kind"] == kind)].sort_values("steps")
            if len(rows):
                _line(axes, [int(t) for t in rows["steps"]], rows, kind, place)
        ticks = sorted({int(t) for t in right["steps"]})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.set_xlabel("T")
    for axes, title in zip((first, *others), titles, strict=True):
        axes.set_title(f"%, {title}")
        axes.set_ylim(bottom=0)
        if axes.get_legend_handles_labels()[0]:
            # Below the axes, where it covers nothing.
            axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return figure


def _by_levels(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    found = {}
    for data, architecture in FAMILIES:
        some = table[
            (table["part"] == ZOO)
            & (table["data"] == data)
            & (table["architecture"] == architecture)
            & (table["attack"] == WORST_CASE)
            & (table["seed"] == 1)
        ]
        levels = {f"quantised, N = {n}": n for n in LEVELS}
        rows = some[some["kind"].isin(list(levels))].copy()
        if len(rows):
            rows["levels"] = rows["kind"].map(levels)
            found[f"{wording.data(data)}, {architecture}"] = rows.sort_values("levels")
    return found


def _line(axes: Axes, x: list[int], rows: pd.DataFrame, label: str, place: int) -> None:
    errors = [100 * (rows["accuracy"] - rows["low"]), 100 * (rows["high"] - rows["accuracy"])]
    axes.errorbar(
        x, 100 * rows["accuracy"], yerr=errors, label=label, color=PALETTE[place],
        marker=MARKERS[place], markersize=4, capsize=2,
    )  # fmt: skip


def activity(table: pd.DataFrame) -> Figure | None:
    """Spikes per neuron and step of each layer: direct input next to rate-coded, a row a family."""
    kinds = (FROM_RATE, RATE, CONVERTED)
    found = {
        (data, architecture): {
            kind: layers
            for kind in kinds
            if (layers := spikes_by_layer(table, data, architecture, kind))
        }
        for data, architecture in FAMILIES
    }
    there = {family: by for family, by in found.items() if len(by) > 1}
    if not there:
        return None
    figure = Figure(figsize=(7, 2.6 * len(there) + 0.5), layout="constrained")
    grid_of = figure.subplots(len(there), 1, squeeze=False)
    for (axes,), ((data, architecture), by) in zip(grid_of, there.items(), strict=True):
        names = list(next(iter(by.values())))
        for place, (kind, values) in enumerate(by.items()):
            x = [i + 0.27 * (place - (len(by) - 1) / 2) for i in range(len(names))]
            heights = [values.get(name, 0.0) for name in names]
            axes.bar(x, heights, 0.25, color=PALETTE[kinds.index(kind)], label=kind)
        axes.set_xticks(range(len(names)), names)
        axes.set_title(f"{wording.data(data)}, {architecture}: spikes per neuron and step")
    fullest = max((row[0] for row in grid_of), key=lambda axes: len(axes.containers))
    handles, labels = fullest.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def grid(table: pd.DataFrame) -> Figure | None:
    """Accuracy under the strongest attack by held thresholds and leaks, a cell a network."""
    some = table[(table["part"] == GRID) & (table["attack"] == WORST_CASE)]
    if some.empty:
        return None
    values = some.pivot_table(index="leak", columns="scale", values="accuracy")
    figure = Figure(figsize=(4.2, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.grid(False)
    axes.imshow(100 * values.to_numpy(), cmap="Blues", vmin=0, aspect="auto")
    axes.set_xticks(range(len(values.columns)), [f"{v:g}" for v in values.columns])
    axes.set_yticks(range(len(values.index)), [f"{v:g}" for v in values.index])
    axes.set_xlabel("factor on every threshold")
    axes.set_ylabel("leak of every layer")
    axes.set_title("% under standard")
    most = float(values.max().max())
    for i, row in enumerate(values.to_numpy()):
        for j, value in enumerate(row):
            if value == value:
                colour = "white" if value > 0.6 * most else "black"
                axes.text(j, i, f"{100 * value:.1f}", ha="center", va="center", color=colour)
    return figure
