"""What the figures have in common: colours, type, and how they are saved."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

#: Text and axes, secondary text, grid, background. The page swaps them for its own in dark mode.
INK, MUTED, GRID, PAPER = "#1f2933", "#66717d", "#dde2e7", "#fefefe"

#: A prediction that is right, and one that is not; never told by colour alone.
RIGHT, WRONG = "#1a7f4b", "#c0392b"

#: Told apart with any colour vision and on light and dark ground (after Okabe and Ito, 2008).
PALETTE = ("#0b72b5", "#d1590c", "#0a9270", "#b565a7", "#b58900", "#46a5d8")

MARKERS = ("o", "s", "D", "^", "v", "P")

#: Inches. Narrow, so that the type is still legible where a phone shrinks the figure.
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
    # A model may be called a$b$c; that is a name and no formula.
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
    """Draw inside this context; the caller's matplotlib settings are left as they were."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script the font lacks still shows in the page, which has fonts of its own.
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
    """A text that is no longer than `length`, with its middle left out; ends tell models apart."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[head + 1 - length :]}"


def legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], top: float) -> None:
    """A legend below the axes in as many columns as its longest label leaves room for.

    Args:
        figure: Where to put it.
        handles: What the labels stand for.
        labels: The texts; long ones lose their middle.
        top: Height of its upper edge in inches above the lower edge of the figure.
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
    """How many columns of these labels fit a figure of this width in inches, in even rows."""
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
    """A handle for a legend."""
    return Line2D([], [], color=colour, marker=marker, linestyle=dashes, linewidth=1.8)


def percent_axis(axes: Axes, label: str = "accuracy, %") -> None:
    """Give an axis of fractions the range 0 to 100 %."""
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0", "20", "40", "60", "80", "100"])
    axes.set_ylabel(label)


def save(figure: Figure, output: Path, name: str, title: str, description: str) -> list[Path]:
    """Write `figures/NAME.png` and `.svg` with title and description inside, for the page to show.

    The same figure gives the same bytes: no dates, fixed identifiers.
    """
    folder = output / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    with style():
        figure.savefig(png, metadata={"Title": title, "Description": description})
        figure.savefig(svg, metadata={"Title": title, "Description": description, "Date": None})
    return [png, svg]
