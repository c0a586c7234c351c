"""The models that ship, by name."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from robustsnn.common.content import folder
from robustsnn.errors import InputError, unknown


def zoo_names() -> list[str]:
    """The models that ship, as `data/model`."""
    zoo = folder("zoo")
    return sorted(p.parent.relative_to(zoo).as_posix() for p in zoo.glob("*/*/model.json"))


def zoo_folder(name: str) -> Path:
    """The checkpoint folder of a model that ships.

    >>> zoo_folder("fashion-mnist/vgg5-snn").name
    'vgg5-snn'

    Raises:
        InputError: There is none of that name.
    """
    if name not in zoo_names():
        raise unknown("model", name, zoo_names())
    return folder("zoo") / name


#: What the models that ship keep under `standard`, or under `rand` where they draw; it is written
#: by `python -m studies board`.
MEASURED = "measured.csv"


def zoo_summary(name: str) -> dict[str, str]:
    """What a model is and what it reaches, as printed, by the name of the column.

    Clean accuracy and compression are those on its card, and the compression of a dense model is
    empty. `standard` is what is left under the suite of that name, or under `rand` for a network
    that draws, with the level and the number of images; it is empty if it was not measured.
    """
    place = zoo_folder(name)
    described = json.loads((place / "model.json").read_text(encoding="utf-8"))
    network = described["network"]
    card = place / "card.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    stated = re.search(r"clean accuracy \| ([\d.]+ %)", text)
    weights = re.search(r"synaptic weights \|.*?([\d.]+)x fewer", text)
    return {
        "architecture": str(network["architecture"]),
        "kind": str(network["kind"]),
        "method": str(described.get("provenance", {}).get("method", "")),
        "time_steps": str(network["time_steps"]),
        "accuracy": stated[1] if stated else "",
        "standard": _left(name, str(described.get("sha256"))),
        "compression": f"{weights[1]}×" if weights else "",
    }


def _left(name: str, sha256: str) -> str:
    """What a model keeps under attack, as printed; empty if its weights were not measured."""
    row = _measured(folder("zoo") / MEASURED).get(name)
    if row is None or row["sha256"] != sha256:
        return ""
    suite = "" if row["suite"] == "standard" else f"{row['suite']}, "
    share = f"{100 * float(row['accuracy']):.1f} %"
    return f"{share} ({suite}{row['level']}, n = {int(row['samples']):,})"


@cache
def _measured(path: Path) -> Mapping[str, Mapping[str, str]]:
    """The rows of the table of what was measured, by model; empty if the table does not exist."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as lines:
        return {row["model"]: row for row in csv.DictReader(lines)}


def refuse_nir(*paths: str | Path | None) -> None:
    """Refuse a graph of NIR, which does not hold the network that its user means.

    Raises:
        InputError: One of the paths is such a file.
    """
    for path in paths:
        if path is not None and Path(path).suffix == ".nir":
            raise InputError(
                f"{path} is a graph of NIR, which carries neither surrogate, reset mode, number of "
                "steps, encoding nor read-out: a number for a network that went through NIR is one "
                "for another network. Give module:factory of the library that it was written in."
            )
