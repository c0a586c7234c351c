"""What the study of combinations found: page, figure and files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from robustsnn.common import wording as formats
from robustsnn.common.files import write_atomically
from studies.combined.study import (
    COLUMNS,
    COMBINATIONS,
    GRADIENTS,
    NETWORKS,
    PASSES,
    SEARCHES,
    with_earlier,
)
from studies.shared import survivors_in, write_results


def page(table: pd.DataFrame, command: str) -> str:
    """The text of `combined.md`."""
    lines = [
        "# Gradients and search together",
        "",
        f"Made by `{command}`. Robust accuracy in % under one method alone, at equal numbers of "
        "forward and backward passes of each image, L∞, seed 0, on the first images of the fixed "
        "order. *Guided* and *corrected* are combinations of surrogate gradients with search by "
        "score (`studies/combined/attacks`), and like *warm Square* spend a third of their passes "
        "on SA-PGD with ASSG. A row with the name of an estimator is APGD on the margin along it.",
        "",
    ]
    methods = [*GRADIENTS, *SEARCHES, *COMBINATIONS]
    for (model, epsilon, samples), some in table.groupby(
        ["model", "epsilon", "samples"], sort=False
    ):
        by = some.pivot_table(index="method", columns="passes", values="accuracy")
        columns = sorted(by.columns)
        lines += [
            f"## {model}, {epsilon}, {samples} images",
            "",
            f"{100 * float(some['clean'].iloc[0]):.1f} % clean; "
            f"{_together(some)} % stand under all of these together.",
            "",
            f"| method | {' | '.join(f'{c:,} passes' for c in columns)} |",
            f"|---|{'---:|' * len(columns)}",
        ]
        for method in methods:
            if method in by.index:
                cells = [_cell(by[column], method) for column in columns]
                lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, *wins(table), *_missing(table), ""])


def _missing(table: pd.DataFrame) -> list[str]:
    """What the table lacks, in a sentence."""
    found = set(table[["model", "passes"]].itertuples(index=False, name=None))
    lacking = []
    for model in NETWORKS:
        passes = [f"{number:,}" for number in PASSES if (model, number) not in found]
        if passes:
            lacking.append(f"{model} at {formats.listing(passes)} passes")
    return ["", f"Not run yet: {'; '.join(lacking)}."] if lacking else []


def _cell(accuracy: pd.Series[float], method: str) -> str:
    text = f"{100 * accuracy[method]:.1f}"
    return f"**{text}**" if accuracy[method] == accuracy.min() else text


def _together(some: pd.DataFrame) -> str:
    """Robust accuracy in % under all methods together."""
    surviving = set.intersection(*(survivors_in(row) for _, row in some.iterrows()))
    return f"{100 * len(surviving) / int(some['samples'].iloc[0]):.1f}"


def wins(table: pd.DataFrame) -> list[str]:
    """A sentence for each combination and budget: on how many networks it is below all others."""
    lines = []
    for method in COMBINATIONS:
        for passes in sorted(set(table["passes"])):
            some = table[table["passes"] == passes]
            below = ties = networks = 0
            for _, rows in some.groupby(["model", "samples"], sort=False):
                mine = rows[rows["method"] == method]
                others = rows[~rows["method"].isin(list(COMBINATIONS))]
                if mine.empty or others.empty:
                    continue
                networks += 1
                gap = float(mine["accuracy"].iloc[0]) - float(others["accuracy"].min())
                below += gap < 0
                ties += gap == 0
            if networks:
                lines.append(
                    f"- {method}, {passes:,} passes: below every estimator and search on {below} "
                    f"of {formats.count(networks, 'network')}, level with the best on {ties}."
                )
    return lines


def figure(table: pd.DataFrame, path: Path) -> None:
    """Draw robust accuracy against passes, in one panel for each network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(table.groupby(["model", "epsilon"], sort=False))
    fig, axes = plt.subplots(
        1, len(groups), figsize=(3.1 * len(groups) + 1.2, 3.6), layout="constrained", squeeze=False
    )
    methods = [*GRADIENTS, *SEARCHES, *COMBINATIONS]
    colours = plt.get_cmap("tab10")
    for axis, ((model, epsilon), some) in zip(axes[0], groups, strict=True):
        for index, method in enumerate(methods):
            rows = some[some["method"] == method].sort_values("passes")
            if rows.empty:
                continue
            strong = method in COMBINATIONS or method in SEARCHES
            axis.plot(
                rows["passes"], 100 * rows["accuracy"], label=method,
                marker="o" if strong else ".", markersize=4,
                linewidth=1.8 if strong else 0.9, linestyle="-" if strong else "--",
                color=colours(index % 10) if not strong else colours((index - 9) % 4),
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_xticks(list(PASSES), [f"{p:,}" for p in PASSES])
        axis.minorticks_off()
        axis.set_title(f"{model}\n{epsilon}", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("robust accuracy, %")
    fig.supxlabel("forward and backward passes of each image", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    drawn = io.BytesIO()
    fig.savefig(drawn, dpi=150, format="png")
    write_atomically(path, drawn.getvalue())
    plt.close(fig)


def write(studies: Sequence[pd.DataFrame], output: Path, command: str) -> pd.DataFrame:
    """Write the table, the page and the figure of all that was run, now or earlier."""
    filled = [one for one in studies if len(one)]
    table = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=COLUMNS)
    if (output / "combined.csv").exists():
        earlier = pd.read_csv(output / "combined.csv", keep_default_na=False)
        table = with_earlier(table, earlier) if len(table) else earlier
    write_results(output, "combined", table, page(table, command))
    if len(table):
        figure(table, output / "combined.png")
    return table
