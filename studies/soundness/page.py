"""What the soundness study found: claims, overestimates, page, figure and files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustsnn.common import wording as formats
from robustsnn.common.files import write_atomically
from robustsnn.common.statistics import wilson
from robustsnn.evaluation.suites import load_suite
from robustsnn.workflows.crosscheck.rows import PEERS
from robustsnn.workflows.crosscheck.run import library_versions
from studies.shared import NETWORKS, write_results
from studies.soundness.study import COLUMNS, OURS, Study, rows, with_earlier

#: The attacks that papers print, by their labels in the suites, in the order of the table.
PRINTED = ("FGSM", "PGD-7", "PGD-20", "AutoAttack")
#: The points by which attacks on spiking networks are said to be too high.
GAP = 10


def page(table: pd.DataFrame, command: str) -> str:
    """The text of `soundness.md`."""
    lines = [
        "# Soundness",
        "",
        f"Made by `{command}`, `standard` being version {load_suite(OURS).version}. Robust "
        "accuracy in %, with 95 % Wilson intervals, on the first images of the fixed order, seed "
        "0; clean errors count as errors, and so does a tie at the top. Passes and seconds are "
        "those of the attacks, without the probe beside them, which looks at 64 images at most.",
        "",
        "## Ours and the lowest of everything else",
        "",
        "| network | images | clean | standard | level | lowest peer | lowest single estimator "
        "| images against standard | forward / backward passes per image | seconds "
        "| seconds per survivor |",
        "|---|---:|---:|---:|---|---|---|---|---:|---:|---:|",
    ]
    for (model, samples), some in table.groupby(["model", "samples"], sort=False):
        ours = some[some["suite"] == OURS].iloc[0]
        lines.append(
            f"| {model} | {samples} | {_percent(ours['clean'])} | **{_interval(ours)}** "
            f"| {_level(ours)} | {_lowest(some, PEERS)} | {_lowest(some, 'estimators')} "
            f"| {_against(some)} "
            f"| {ours['forward_passes']:,.0f} / {ours['backward_passes']:,.0f} "
            f"| {ours['seconds']:,.0f} | {_per_survivor(ours)} |"
        )
    lines += ["", *claims(table), "", "## What papers print, and what is left", ""]
    lines += _overestimates(table)
    if found := gaps(table):
        lines += [
            "",
            f"The literature suggests that attacks on spiking networks miss {GAP} points or more. "
            "On the spiking networks here:",
            *found,
        ]
    for (model, samples), some in table.groupby(["model", "samples"], sort=False):
        lines += ["", f"## {model}, {samples} images", ""]
        lines += [
            "| suite | attack | estimator | robust accuracy | broken, not by standard "
            "| broken by standard only | forward / backward | seconds |",
            "|---|---|---|---:|---:|---:|---:|---:|",
        ]
        for _, row in some.iterrows():
            beyond = "" if row["suite"] == OURS else str(row["beyond_ours"])
            only = "" if row["suite"] == OURS else str(row["only_ours"])
            lines.append(
                f"| {row['suite']} | {row['attack']} | {row['estimator']} | {_interval(row)} "
                f"| {beyond} | {only} | {row['forward_passes']:,.0f} / "
                f"{row['backward_passes']:,.0f} | {row['seconds']:,.0f} |"
            )
    missing = [name for name in NETWORKS if name not in set(table["model"])]
    if missing:
        lines += ["", f"Not run yet: {formats.listing(missing)}."]
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    return "\n".join([*lines, "", f"{versions}.", ""])


def claims(table: pd.DataFrame) -> list[str]:
    """Whether `standard` is the lowest, in a sentence for each network where it is not."""
    asked = table[table["suite"].isin([PEERS, "estimators"])]
    if asked.empty:
        return ["Nothing was set beside `standard` yet."]
    higher = asked[asked["accuracy"] < asked["ours"]]
    more = asked[asked["beyond_ours"] > 1]
    networks = formats.count(asked.groupby(["model", "samples"]).ngroups, "network")
    lines = [
        f"{formats.count(len(asked), 'comparison')} on {networks}, each attack of a peer or with "
        f"a single estimator against `standard`: in {len(higher)} the other leaves a lower "
        f"accuracy, in {len(more)} it breaks more than one image that `standard` leaves."
    ]
    for _, row in pd.concat([higher, more]).drop_duplicates().iterrows():
        lines.append(
            f"- {row['model']}, {row['samples']} images: {row['attack']} leaves "
            f"{_percent(row['accuracy'])} against {_percent(row['ours'])}, and breaks "
            f"{formats.count(int(row['beyond_ours']), 'image')} that `standard` leaves."
        )
    return lines


def in_short(table: pd.DataFrame) -> str:
    """The table of the README: accuracies in % under what papers print and under `standard`."""
    lines = [
        "| network | images | clean | FGSM | PGD-7 | PGD-20 | AutoAttack | `standard` | level |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for (model, samples), some in table.groupby(["model", "samples"], sort=False):
        ours = some[some["suite"] == OURS].iloc[0]
        cells = []
        for label in PRINTED:
            rows = _printed(some, label)
            cells.append(_percent(rows.iloc[0]["accuracy"]) if len(rows) else "–")
        lines.append(
            f"| {model} | {samples} | {_percent(ours['clean'])} | {' | '.join(cells)} "
            f"| {_interval(ours)} | {_level(ours)} |"
        )
    return "\n".join(lines)


def _overestimates(table: pd.DataFrame) -> list[str]:
    lines = [
        "Points by which an evaluation is above `standard` on the same images, with the 95 % "
        "interval of the share of images that it leaves and `standard` breaks.",
        "",
        f"| network | images | {' | '.join(PRINTED)} |",
        f"|---|---:|{'---|' * len(PRINTED)}",
    ]
    for (model, samples), some in table.groupby(["model", "samples"], sort=False):
        cells = [overestimate(some, label) for label in PRINTED]
        if any(cells):
            lines.append(f"| {model} | {samples} | {' | '.join(c or '–' for c in cells)} |")
    return lines


def gaps(table: pd.DataFrame) -> list[str]:
    """For each printed attack: the spiking networks on which it is as far off as papers suggest."""
    lines = []
    for label in PRINTED:
        above: list[str] = []
        below: list[str] = []
        for (model, _), some in table.groupby(["model", "samples"], sort=False):
            rows = _printed(some, label)
            # The estimator of a network without spikes is plain backpropagation.
            if rows.empty or rows.iloc[0]["estimator"] == "backprop":
                continue
            gap = round(100 * (rows.iloc[0]["accuracy"] - rows.iloc[0]["ours"]), 3)
            (above if gap >= GAP else below).append(f"{model} ({gap:.1f})")
        if above or below:
            lines.append(
                f"- {label}: {GAP} points or more on {formats.listing(above) or 'none'}"
                + (f"; less on {formats.listing(below)}." if below else ".")
            )
    return lines


def overestimate(some: pd.DataFrame, label: str) -> str:
    """A text such as `40.5 [33.9, 47.4]`; it is empty where the attack was not run."""
    rows = _printed(some, label)
    if rows.empty:
        return ""
    row = rows.iloc[0]
    low, high = wilson(int(row["only_ours"]), int(row["samples"]))
    gap = 100 * (row["accuracy"] - row["ours"])
    return f"{gap:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _printed(some: pd.DataFrame, label: str) -> pd.DataFrame:
    """The row of an attack that papers print, or no row."""
    asked = some["suite"].isin([PEERS, "overestimate"])
    # The last word is compared, so that torchattacks MIFGSM is not taken for FGSM.
    return some[asked & (some["attack"].str.split().str[-1] == label)]


def _level(ours: pd.Series) -> str:
    return str(ours["level"]) or "–"


def _per_survivor(ours: pd.Series) -> str:
    count = round(ours["accuracy"] * ours["samples"])
    return f"{ours['seconds'] / count:.1f}" if count else "none left"


def _lowest(some: pd.DataFrame, suite: str) -> str:
    rows = some[some["suite"] == suite]
    if rows.empty:
        return "not run"
    row = rows.sort_values("accuracy", kind="stable").iloc[0]
    return f"{_percent(row['accuracy'])} {row['attack']}"


def _against(some: pd.DataFrame) -> str:
    if not some["suite"].isin([PEERS, "estimators"]).any():
        return "not asked"
    by_image: dict[str, list[str]] = {}
    for _, row in some.iterrows():
        for image in str(row["images"]).split():
            by_image.setdefault(image, []).append(str(row["attack"]))
    if not by_image:
        return "none"
    return "; ".join(f"{image} ({formats.listing(by_image[image])})" for image in sorted(by_image))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _interval(row: pd.Series) -> str:
    low, high = 100 * row["ci_low"], 100 * row["ci_high"]
    return f"{_percent(row['accuracy'])} [{low:.1f}, {high:.1f}]"


def figure(table: pd.DataFrame, path: Path) -> None:
    """Draw the accuracy under each printed attack next to that under `standard`, by network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(table.groupby(["model", "samples"], sort=False))
    labels = [*(label for label in PRINTED if not _printed(table, label).empty), OURS]
    width = 0.8 / len(labels)
    fig, axis = plt.subplots(figsize=(max(6.0, 1.7 * len(groups) + 1.5), 4.0), layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0.15, 0.9, len(labels)))
    for index, label in enumerate(labels):
        heights: list[float] = []
        errors: list[NDArray[np.float64]] = []
        for _, some in groups:
            rows = some[some["suite"] == OURS] if label == OURS else _printed(some, label)
            row = None if rows.empty else rows.iloc[0]
            accuracy = np.nan if row is None else float(row["accuracy"])
            heights.append(100 * accuracy)
            ends = (np.nan, np.nan) if row is None else (row["ci_low"], row["ci_high"])
            errors.append(100 * np.abs(np.array(ends, dtype=float) - accuracy))
        where = np.arange(len(groups)) + (index - (len(labels) - 1) / 2) * width
        axis.bar(
            where, heights, width, label=label, color=colours[index], yerr=np.array(errors).T,
            error_kw={"linewidth": 0.8},
        )  # fmt: skip
    names = [str(model).replace("/", "\n") for (model, _), _ in groups]
    axis.set_xticks(np.arange(len(groups)), names, fontsize=8)
    axis.set_ylabel("robust accuracy, %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, ncols=len(labels), fontsize=8, loc="upper center")
    axis.set_ylim(0, 100)
    drawn = io.BytesIO()
    fig.savefig(drawn, dpi=150, format="png")
    write_atomically(path, drawn.getvalue())
    plt.close(fig)


def write(studies: Sequence[Study], output: Path, command: str) -> pd.DataFrame:
    """Write the table, the page and the figure of all networks that were run, now or earlier."""
    table = rows(studies)
    if (output / "soundness.csv").exists():
        earlier = pd.read_csv(output / "soundness.csv", keep_default_na=False)
        table = with_earlier(table, earlier.reindex(columns=COLUMNS, fill_value=""))
    write_results(output, "soundness", table, page(table, command))
    if len(table):
        figure(table, output / "overestimate.png")
    return table
