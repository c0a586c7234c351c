"""The common parts of all figures: colours, type, legends, and how they are saved."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustsnn.common import wording
from robustsnn.records.runs import Run

#: The colours of text and axes, secondary text, grid and background. The page replaces them by its
#: own in dark mode.
INK, MUTED, GRID, PAPER = "#1f2933", "#66717d", "#dde2e7", "#fefefe"

#: The colours of right and wrong predictions, which always have a sign next to them too.
RIGHT, WRONG = "#1a7f4b", "#c0392b"

#: Colours that differ for any colour vision on light and dark paper (after Okabe and Ito, 2008).
PALETTE = ("#0b72b5", "#d1590c", "#0a9270", "#b565a7", "#b58900", "#46a5d8")

MARKERS = ("o", "s", "D", "^", "v", "P")

#: The inches that a warning takes at the top of a figure.
MARK = 0.22
#: The width of a figure in inches; it is narrow, so that its text is legible on a phone.
WIDTH = 5.0

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "figure.facecolor": PAPER,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.labelcolor": INK,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    "svg.hashsalt": "robustsnn",
    "text.color": INK,
    # A model may be called a$b$c, which is a name and not a formula.
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 9.5,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 9.5,
    "ytick.left": False,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """A context with the style of our figures; afterwards the matplotlib settings are restored.

    Settings of the user, or of a `matplotlibrc` in the working folder, have no effect inside.
    """
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        # The page has its own fonts, so it can show a name in a script that this font lacks.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing")
        yield


def colour(models: Sequence[str], model: str) -> str:
    """The colour of a model, the same in every figure of a report."""
    return PALETTE[list(models).index(model) % len(PALETTE)]


def marker(models: Sequence[str], model: str) -> str:
    """The marker of a model, the same in every figure of a report."""
    index = list(models).index(model)
    return MARKERS[(index + index // len(PALETTE)) % len(MARKERS)]


def shorten(text: str, length: int = 26) -> str:
    """The text cut to `length` characters in its middle, because names often differ at the ends."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[head + 1 - length :]}"


def legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], top: float) -> None:
    """A legend below the axes in as many columns as its longest label leaves room for.

    Args:
        figure: The figure.
        handles: The line or patch of each label.
        labels: The texts; long ones are cut in the middle.
        top: The distance in inches from the lower edge of the figure to the top of the legend.
    """
    texts = [shorten(label) for label in labels]
    columns = legend_columns(figure.get_figwidth(), texts)
    figure.legend(
        list(handles),
        # matplotlib leaves out labels that start with an underscore.
        [f"\u2009{text}" if text.startswith("_") else text for text in texts],
        loc="upper center",
        bbox_to_anchor=(0.5, top / figure.get_figheight()),
        ncols=columns,
        handlelength=1.6,
        columnspacing=1.6,
        borderaxespad=0,
    )


def legend_columns(width: float, labels: Sequence[str]) -> int:
    """The number of columns of a legend in a figure of this width in inches."""
    widths = [0.62 + 0.082 * len(shorten(label)) for label in labels]
    if sum(widths) <= width:
        return len(labels)
    fit = max(1, min(len(labels), int(width / max(widths))))
    rows = -(-len(labels) // fit)
    return -(-len(labels) // rows)


def legend_height(width: float, labels: Sequence[str]) -> float:
    """The height in inches that `legend` takes."""
    columns = legend_columns(width, labels)
    return 0.1 + 0.215 * -(-len(labels) // columns)


def line(colour: str, marker: str | None = None, dashes: Literal["-", ":"] = "-") -> Line2D:
    """A line as the handle of a legend."""
    return Line2D([], [], color=colour, marker=marker, linestyle=dashes, linewidth=1.8)


def percent_axis(axes: Axes, label: str = "accuracy, %") -> None:
    """Give an axis of fractions the range 0 to 100 %."""
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0", "20", "40", "60", "80", "100"])
    axes.set_ylabel(label)


def doubtful(runs: Iterable[Run]) -> str:
    """The warning of a figure of runs whose numbers must not be quoted; empty without any."""
    named = list(dict.fromkeys(run.label for run in runs if run.level == "C"))
    return f"Level C, do not quote: {wording.listing(named)}." if named else ""


def mark(figure: Figure, text: str) -> None:
    """Write a warning into the upper right corner of a figure, which takes it along.

    Args:
        figure: The figure, with `MARK` inches left above its axes.
        text: The warning; nothing is written if it is empty.
    """
    if text:
        fits = int(figure.get_figwidth() / 0.075)
        place = 1 - 0.05 / figure.get_figheight()
        shown = shorten(text, fits)
        figure.text(0.985, place, shown, ha="right", va="top", fontsize=8.5, color=WRONG)


def save(figure: Figure, output: Path, name: str, title: str, description: str) -> list[Path]:
    """Write `figures/NAME.png` and `figures/NAME.svg`.

    Both hold the title and description, which the page shows. The same figure always gives the
    same bytes: there is no date, and identifiers are fixed.
    """
    folder = output / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    with style():
        figure.savefig(png, metadata={"Title": title, "Description": description})
        figure.savefig(svg, metadata={"Title": title, "Description": description, "Date": None})
    return [png, svg]
