"""A finished run, as `robustsnn.evaluate` returns it and as a notebook shows it."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from robustsnn.common import wording
from robustsnn.records.manifest import Manifest
from robustsnn.records.schema import CLEAN, WORST_CASE


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """A finished run.

    Args:
        folder: The run folder; None if none was asked for.
        manifest: The manifest of the run.
        records: The rows of `records.parquet`.
        results: The rows of `results.csv`. The column of flags is `results["flags"]`;
            `results.flags` is an attribute that pandas gives every frame.
        activity: The rows of `activity.parquet`.
        reprinted: Whether the run was there already, so that nothing was computed.

    Examples:
        >>> import robustsnn
        >>> robustsnn.evaluate("fashion-mnist/vgg5-ann", samples=4, attack="fgsm", epsilon=2 / 255)
        <fashion-mnist/vgg5-ann, custom, 4 images: clean 100.0 %, Linf 2/255 75.0 %, level B>
    """

    folder: Path | None
    manifest: Manifest
    records: pd.DataFrame = field(repr=False)
    results: pd.DataFrame
    activity: pd.DataFrame = field(repr=False)
    reprinted: bool = False

    @property
    def level(self) -> str:
        """The level of the run, `A`, `B` or `C`, which says how far its numbers can be trusted."""
        return self.manifest.level

    @property
    def flags(self) -> tuple[dict[str, Any], ...]:
        """The findings that speak against the numbers, each a dict with its `sentence`."""
        return self.manifest.flags

    @property
    def clean(self) -> float:
        """The accuracy on the clean images, between 0 and 1."""
        return float(self.results.loc[self.results["attack"] == CLEAN, "accuracy"].iloc[0])

    @property
    def accuracy(self) -> float:
        """The accuracy that is left in the worst case, between 0 and 1; the lowest of all sizes.

        It is an upper bound: a stronger attack can only lower it. `results` has the worst case of
        each norm and size. Without an attack it is the accuracy on the clean images.
        """
        worst = self.results.loc[self.results["attack"] == WORST_CASE, "accuracy"]
        return float(worst.min()) if len(worst) else self.clean

    def __repr__(self) -> str:
        return f"<{self._title()}: {', '.join(self._said())}>"

    def _title(self) -> str:
        images = wording.count(self.manifest.samples, "image")
        return f"{self.manifest.model}, {self.manifest.suite}, {images}"

    def _said(self) -> list[str]:
        worst = self.results[self.results["attack"] == WORST_CASE]
        said = [f"clean {_percent(self.clean)}"]
        said += [
            f"{row.norm} {row.epsilon} {_percent(row.accuracy)}"
            for row in worst.itertuples(index=False)
        ]
        if self.level:
            said.append(f"level {self.level}")
        if self.flags:
            said.append(wording.count(len(self.flags), "flag"))
        return said

    def _repr_html_(self) -> str:
        """The table of results with the level and the flags, for notebooks."""
        heads = ("Attack", "Norm", "Size", "Accuracy", "95 % interval")
        rows = [
            (
                str(row.attack),
                str(row.norm),
                str(row.epsilon),
                _percent(row.accuracy),
                f"{_percent(row.ci_low)} to {_percent(row.ci_high)}",
            )
            for row in self.results.itertuples(index=False)
        ]
        parts = [f"<p><b>{html.escape(self._title())}</b></p>", "<table><thead><tr>"]
        parts += [f"<th>{head}</th>" for head in heads]
        parts.append("</tr></thead><tbody>")
        for row in rows:
            parts.append("".join(["<tr>", *(f"<td>{html.escape(cell)}</td>" for cell in row)]))
            parts.append("</tr>")
        parts.append("</tbody></table>")
        diagnosis = self.manifest.diagnosis
        if self.level:
            said = f"{diagnosis.get('sentence', '')} {diagnosis.get('next', '')}"
            parts.append(f"<p>Level {self.level}. {html.escape(said.strip())}</p>")
        if self.flags:
            sentences = "".join(f"<li>{html.escape(str(f['sentence']))}</li>" for f in self.flags)
            parts.append(f"<ul>{sentences}</ul>")
        return "".join(parts)


def _percent(fraction: Any) -> str:
    return f"{100 * float(fraction):.1f} %"
