"""The models that ship, by name."""

from __future__ import annotations

import json
import re
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


def zoo_summary(name: str) -> dict[str, str]:
    """Architecture, kind, time steps, clean accuracy and compression of a model, as printed.

    Accuracy and compression are those on its card; the compression of a dense model is empty.
    """
    place = zoo_folder(name)
    network = json.loads((place / "model.json").read_text(encoding="utf-8"))["network"]
    card = place / "card.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    stated = re.search(r"clean accuracy \| ([\d.]+ %)", text)
    weights = re.search(r"synaptic weights \|.*?([\d.]+)x fewer", text)
    return {
        "architecture": str(network["architecture"]),
        "kind": str(network["kind"]),
        "time_steps": str(network["time_steps"]),
        "accuracy": stated[1] if stated else "",
        "compression": f"{weights[1]}×" if weights else "",
    }


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
