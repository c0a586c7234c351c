"""The page of the board: one file that works offline, in tables that can be sorted and filtered."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from robustsnn.common import wording


@dataclass(frozen=True)
class Entry:
    """A run on the board.

    Args:
        model: The model as its run names it.
        data: The data set.
        architecture: The architecture.
        kind: `ann`, `snn` or `other`.
        method: How the network was trained.
        encoding: How an image becomes input over time.
        time_steps: The number of time steps; 1 without spikes.
        suite: `standard` or `rand`.
        suite_version: The version of the suite.
        norm: The norm of the suite.
        epsilon: The size of the suite.
        samples: The number of images.
        clean: The accuracy on clean images, in [0, 1].
        accuracy: The accuracy that the suite leaves, in [0, 1].
        low: The lower end of its 95 % Wilson interval.
        high: The upper end.
        level: The level of the run.
        energy_uj: The estimated energy of an image in microjoule, or None.
        spikes: The spikes per neuron and step, or None.
        weights: The number of weights that are not zero, or None.
        compression: How many times as many the dense network has, or None.
        verified: Whether all images of the run were scored again and agree.
        doubt: Why not; empty if it is verified.
        flags: What speaks against the number, a sentence each.
        attacks: The accuracy that each attack leaves, in [0, 1], by its name.
        manifest: What the number came from, by the name of the field.
        card: The card of the model as text; empty if there is none.
    """

    model: str
    data: str
    architecture: str
    kind: str
    method: str
    encoding: str
    time_steps: int
    suite: str
    suite_version: int
    norm: str
    epsilon: str
    samples: int
    clean: float
    accuracy: float
    low: float
    high: float
    level: str
    energy_uj: float | None
    spikes: float | None
    weights: int | None
    compression: float | None
    verified: bool
    doubt: str
    flags: tuple[str, ...]
    attacks: tuple[tuple[str, float], ...]
    manifest: dict[str, str]
    card: str

    def as_json(self) -> dict[str, Any]:
        """The entry as it stands in `board.json`, without the card, which ships with its model."""
        found = dataclasses.asdict(self)
        del found["card"]
        found["attacks"] = dict(self.attacks)
        return found


def page(entries: Sequence[Entry]) -> str:
    """The page, as HTML; networks that draw form a table of their own.

    Args:
        entries: The entries, in the order of their ranks.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda value: f"{100 * value:.1f}"
    environment.filters["data"] = wording.data
    source = resources.files("robustsnn.reports") / "board.html.j2"
    tables = [
        ("Networks that do not draw, under standard", "standard"),
        ("Networks that draw, under rand", "rand"),
    ]
    filters = ("data", "kind", "method", "norm")
    return environment.from_string(source.read_text(encoding="utf-8")).render(
        tables=[
            (title, [entry for entry in entries if entry.suite == suite])
            for title, suite in tables
            if any(entry.suite == suite for entry in entries)
        ],
        choices={
            name: sorted({str(getattr(entry, name)) for entry in entries}) for name in filters
        },
    )
