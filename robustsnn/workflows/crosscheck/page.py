"""The outcome of a crosscheck as sentences, a table for a terminal, CSV and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from robustsnn.common import wording
from robustsnn.workflows.crosscheck.rows import Crosscheck, Row, by_size

if TYPE_CHECKING:
    from robustsnn.reporting.columns import Columns


COLUMNS = (
    "attack suite norm epsilon samples accuracy ci_low ci_high broken_beyond_ours "
    "broken_only_by_ours passes seconds images"
).split()


#: The number of images that a terminal names; the files name all of them.
SHOWN = 8


def sentences(rows: Sequence[Row]) -> list[str]:
    """One sentence per size: whether our suite is lowest, and the images that only peers break."""
    return [_sentence(ours, peers) for ours, peers in by_size(rows)]


def _sentence(ours: Row, peers: Sequence[Row]) -> str:
    at = wording.threat(ours.norm, ours.epsilon)
    best = min(peers, key=lambda row: row.accuracy)
    mine, theirs = wording.percent(ours.accuracy), wording.percent(best.accuracy)
    named = f"the strongest peer, {best.attack}, leaves {theirs}"
    if best.accuracy < ours.accuracy:
        text = (
            f"At {at} our suite does NOT leave the lowest accuracy: it leaves {mine}, and {named}"
        )
    elif best.accuracy == ours.accuracy:
        text = f"At {at} our suite leaves the lowest accuracy, {mine}, but not alone: {named} too"
    else:
        text = f"At {at} our suite leaves the lowest accuracy: it leaves {mine}, and {named}"
    by_image: dict[int, list[str]] = {}
    for row in peers:
        for image in row.beyond:
            by_image.setdefault(image, []).append(row.attack)
    if not by_image:
        return f"{text}. No peer breaks an image that our suite does not break."
    images = [f"{image} ({wording.listing(by_image[image])})" for image in sorted(by_image)]
    are = "is" if len(images) == 1 else "are"
    return (
        f"{text}. {wording.count(len(images), 'image')} {are} broken by a peer and not by our "
        f"suite: {', '.join(images)}."
    )


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows as `crosscheck.csv` holds them; `images` are ids separated by spaces."""
    return pd.DataFrame(
        [
            (
                row.attack, row.suite, row.norm, row.epsilon, row.samples, row.accuracy, row.low,
                row.high, len(row.beyond), row.missed, row.passes, row.seconds,
                " ".join(map(str, row.beyond)),
            )
            for row in rows
        ],
        columns=COLUMNS,
    )  # fmt: skip


def markdown(found: Crosscheck, versions: Mapping[str, str]) -> str:
    """The text of `crosscheck.md`: the tables, the sentences, what was left out, the versions."""
    lines = [f"# Crosscheck of {found.model}", ""]
    for ours, _ in by_size(found.rows):
        lines += [
            f"{wording.threat(ours.norm, ours.epsilon)}, {wording.count(ours.samples, 'image')}; "
            "accuracy with its 95 % Wilson interval.",
            "",
            "| attack | robust accuracy | broken by peer only | broken by ours only | passes per "
            "image | seconds |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for row in found.rows:
            if (row.norm, row.epsilon) == (ours.norm, ours.epsilon):
                lines.append(f"| {' | '.join(c.replace('|', '/') for c in _cells(row))} |")
        lines.append("")
    lines += [f"{sentence}\n" for sentence in sentences(found.rows)]
    lines += [f"Left out: {text}\n" for text in found.left_out]
    lines.append(", ".join(f"{name} {version}" for name, version in versions.items()) + ".")
    return "\n".join(lines) + "\n"


def table(rows: Sequence[Row]) -> list[Columns]:
    """A table for a terminal at each size."""
    from robustsnn.reporting.columns import table as drawn

    heads = ("attack", "robust accuracy", "peer only", "ours only", "passes", "seconds")
    found = []
    for ours, _ in by_size(rows):
        at = [row for row in rows if (row.norm, row.epsilon) == (ours.norm, ours.epsilon)]
        found.append(
            drawn(
                heads,
                [_cells(row, SHOWN) for row in at],
                right=(False, *(True,) * (len(heads) - 1)),
                bold=(number for number, row in enumerate(at) if row.ours),
                title=f"{wording.threat(ours.norm, ours.epsilon)}, "
                f"{wording.count(ours.samples, 'image')}",
            )
        )
    return found


def _cells(row: Row, shown: int | None = None) -> list[str]:
    accuracy = f"{wording.percent(row.accuracy)} {wording.bounds(row.low, row.high)}"
    name = f"{row.attack} ({row.suite})" if row.ours else row.attack
    spent = (f"{row.passes:,.0f}", f"{row.seconds:,.{0 if row.seconds >= 10 else 1}f}")
    if row.ours:
        return [name, accuracy, "", "", *spent]
    ids = ", ".join(map(str, row.beyond[:shown]))
    more = f", and {len(row.beyond) - shown} more" if shown and len(row.beyond) > shown else ""
    beyond = f"{len(row.beyond)}: {ids}{more}" if row.beyond else "0"
    return [name, accuracy, beyond, str(row.missed), *spent]
