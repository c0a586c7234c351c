"""RobustSNN: how robust a spiking neural network is, and whether to believe the number."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustsnn.evaluation.run import evaluate
    from robustsnn.models.checkpoint import load_model
    from robustsnn.training import train_recipe as train
    from robustsnn.workflows.compare import compare
    from robustsnn.workflows.report import report

__all__ = ["compare", "evaluate", "load_model", "report", "train"]

# Imported when asked for: `robustsnn --help` must not wait for torch.
_WHERE = {
    "compare": ("robustsnn.workflows.compare", "compare"),
    "evaluate": ("robustsnn.evaluation.run", "evaluate"),
    "load_model": ("robustsnn.models.checkpoint", "load_model"),
    "report": ("robustsnn.workflows.compare", "report"),
    "train": ("robustsnn.training", "train_recipe"),
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
