"""Figures of throughput and memory against the number of time steps."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import pandas as pd

from benchmarks.tables import TITLES

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from robustsnn.common.files import write_atomically

STYLES = {
    "robustsnn": ("#d62728", "o", "-"),
    "robustsnn-whole": ("#d62728", "v", "--"),
    "snntorch": ("#1f77b4", "s", "-"),
    "spikingjelly": ("#2ca02c", "^", "-"),
    "hire-loop": ("#9467bd", "D", "-"),
    "layers-alone": ("#555555", "x", "--"),
}


def throughput(table: pd.DataFrame, path: Path, batches: tuple[int, ...] = (1, 8, 32)) -> None:
    """Draw input gradients per second of VGG5 against T, with quartiles, by batch size."""
    rows = table[(table["measure"] == "input-gradient") & (table["architecture"] == "vgg5")]
    shown = [b for b in batches if (rows["batch"] == b).any()]
    if not shown:
        return
    figure, axes = plt.subplots(
        1, len(shown), figsize=(4 * len(shown) + 0.6, 4.2), sharey=True, squeeze=False
    )
    for axis, batch in zip(axes[0], shown, strict=True):
        for library, (color, marker, line) in STYLES.items():
            some = rows[(rows["library"] == library) & (rows["batch"] == batch)]
            some = some.sort_values("steps")
            if some.empty:
                continue
            speed = batch / some["value"]
            bars = [speed - batch / some["upper_quartile"], batch / some["lower_quartile"] - speed]
            axis.errorbar(
                some["steps"],
                speed,
                yerr=bars,
                color=color,
                marker=marker,
                linestyle=line,
                capsize=2,
                label=TITLES[library],
            )
        axis.set_title(f"batch {batch}")
        _steps_axis(axis, sorted(rows["steps"].unique()))
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.grid(True, which="both", alpha=0.25)
    axes[0][0].set_ylabel("input gradients per second (images)")
    axes[0][0].legend(fontsize=8)
    figure.suptitle("VGG5, input gradient: median and quartiles", fontsize=11)
    _save(figure, path)


def memory(table: pd.DataFrame, path: Path) -> None:
    """Draw the peak memory of an input gradient of VGG5 against T."""
    rows = table[table["measure"] == "peak-memory"]
    if rows.empty:
        return
    figure, axis = plt.subplots(figsize=(5.6, 4.2))
    for library, (color, marker, line) in STYLES.items():
        some = rows[rows["library"] == library].sort_values("steps")
        if not some.empty:
            axis.plot(
                some["steps"],
                some["value"] / 2**30,
                color=color,
                marker=marker,
                linestyle=line,
                label=TITLES[library],
            )
    _steps_axis(axis, sorted(rows["steps"].unique()))
    axis.set_ylabel("peak memory of one input gradient (GiB)")
    axis.set_ylim(bottom=0)
    axis.grid(True, alpha=0.25)
    axis.legend(fontsize=8)
    batches = sorted(int(b) for b in rows["batch"].unique())
    axis.set_title(f"VGG5, batch {', '.join(map(str, batches))}", fontsize=11)
    _save(figure, path)


def _steps_axis(axis: Axes, steps: list[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator([float(s) for s in steps]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_xlabel("time steps T")


def _save(figure: plt.Figure, path: Path) -> None:  # type: ignore[name-defined]
    figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=130, format="png")
    plt.close(figure)
    write_atomically(path, drawn.getvalue())
