"""RobustSNN: how robust a spiking neural network is, and whether to believe the number.

Examples:
    >>> import robustsnn
    >>> found = robustsnn.evaluate("fashion-mnist/vgg5-snn", samples=4, attack="fgsm")
    >>> found.manifest.suite, found.level
    ('custom', 'B')
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustsnn.adversary.contract import Attack
    from robustsnn.adversary.threat import ThreatModel
    from robustsnn.adversary.victim import Victim
    from robustsnn.common.randomness import Rng
    from robustsnn.data.datasets import load_data
    from robustsnn.errors import InputError
    from robustsnn.estimators.base import Estimator
    from robustsnn.evaluation.request import Request
    from robustsnn.evaluation.run import evaluate
    from robustsnn.evaluation.suites import Suite
    from robustsnn.foreign.wrap import wrap
    from robustsnn.models.checkpoint import load_model
    from robustsnn.records.runs import Runs, load_runs
    from robustsnn.training.run import train
    from robustsnn.workflows.compare import compare
    from robustsnn.workflows.crosscheck.run import crosscheck
    from robustsnn.workflows.report import report
    from robustsnn.workflows.verify.run import verify

    __version__: str

# Imported when asked for: `robustsnn --help` must not wait for torch.
_WHERE = {
    "Attack": "robustsnn.adversary.contract",
    "Estimator": "robustsnn.estimators.base",
    "InputError": "robustsnn.errors",
    "Request": "robustsnn.evaluation.request",
    "Rng": "robustsnn.common.randomness",
    "Runs": "robustsnn.records.runs",
    "Suite": "robustsnn.evaluation.suites",
    "ThreatModel": "robustsnn.adversary.threat",
    "Victim": "robustsnn.adversary.victim",
    "compare": "robustsnn.workflows.compare",
    "crosscheck": "robustsnn.workflows.crosscheck.run",
    "evaluate": "robustsnn.evaluation.run",
    "load_data": "robustsnn.data.datasets",
    "load_model": "robustsnn.models.checkpoint",
    "load_runs": "robustsnn.records.runs",
    "report": "robustsnn.workflows.report",
    "train": "robustsnn.training.run",
    "verify": "robustsnn.workflows.verify.run",
    "wrap": "robustsnn.foreign.wrap",
}

__all__ = [
    "Attack",
    "Estimator",
    "InputError",
    "Request",
    "Rng",
    "Runs",
    "Suite",
    "ThreatModel",
    "Victim",
    "__version__",
    "compare",
    "crosscheck",
    "evaluate",
    "load_data",
    "load_model",
    "load_runs",
    "report",
    "train",
    "verify",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("robustsnn")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
