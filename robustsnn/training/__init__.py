"""How a recipe trains a network.

A method is a function that takes a network, an optimizer and a batch, updates the network and
returns a `BatchOutcome`: `step.plain_update` for the methods `ann` and `hybrid`,
`hire.hire_update` and `adversarial.adversarial_update`. `robustsnn.training.run` does the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def train_recipe(
    path: Path,
    data_root: Path | None,
    output: Path | None = None,
    *,
    resume: bool = False,
    overrides: dict[str, Any] | None = None,
    device: str = "cpu",
) -> Path:
    """Train what a recipe describes and return the checkpoint folder; see `run.train`."""
    from robustsnn.training.run import train

    return train(path, data_root, output, resume=resume, overrides=overrides, device=device)
