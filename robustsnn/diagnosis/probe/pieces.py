"""The pieces of a probe, which a run keeps one by one, so that a kill loses no more than one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from robustsnn.diagnosis.finding import Finding, of_measure
from robustsnn.diagnosis.probe.specimen import Spent


@dataclass(frozen=True)
class Piece:
    """What one piece of a probe measured.

    Args:
        about: Numbers and texts, ready for JSON.
        tensors: Tensors, by name.
    """

    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Store(Protocol):
    """The place where the pieces of a probe are kept until all of them are there."""

    def read(self, name: str) -> Piece | None:
        """A piece that an earlier start of the run left behind, or None."""

    def write(self, name: str, piece: Piece) -> None:
        """Keep a piece."""


class Nowhere:
    """The store of a probe that is never resumed."""

    def read(self, name: str) -> None:
        """Return None: nothing was kept."""

    def write(self, name: str, piece: Piece) -> None:
        """Keep nothing."""


def kept(store: Store, spent: Spent, name: str, make: Callable[[], Piece]) -> Piece:
    """A piece from the store, or one that is made now and kept there.

    Args:
        store: The store.
        spent: The passes of the probe, to which those of the piece are added either way.
        name: The name of the piece, which no other piece of the probe has.
        make: The function that measures, and adds its passes itself.
    """
    if (found := store.read(name)) is not None:
        spent.forward += int(found.about["forward_passes"])
        spent.backward += int(found.about["backward_passes"])
        spent.earlier += float(found.about["seconds"])
        return found
    began, forward, backward = time.perf_counter(), spent.forward, spent.backward
    made = make()
    about = {
        **made.about,
        "forward_passes": spent.forward - forward,
        "backward_passes": spent.backward - backward,
        "seconds": time.perf_counter() - began,
    }
    store.write(name, Piece(about, made.tensors))
    return made


def kept_findings(
    store: Store, spent: Spent, name: str, make: Callable[[], list[Finding]]
) -> list[Finding]:
    """The findings of a piece, as in a manifest if they come from the store; see `kept`."""
    made: list[Finding] = []

    def measured() -> Piece:
        made.extend(make())
        return Piece({"findings": [finding.as_measure() for finding in made]})

    rows = kept(store, spent, name, measured).about["findings"]
    # The rows hold six digits of each number, which is what a manifest has of the others too.
    return made or [of_measure({"norm": "", "epsilon": "", **row}).about() for row in rows]
