"""What the paper's own attack and `standard` leave of a small HoSNN and of its plain twin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from robustsnn.evaluation.run import Evaluation, evaluate
from robustsnn.evaluation.suites import Suite
from robustsnn.records.schema import CLEAN, WORST_CASE
from studies.hosnn.network import WIDTH, load, save
from studies.hosnn.train import train

#: The size of the attacks, and of a step of the published one, in pixel units.
EPSILON, STEP = "8/255", "0.010457516"
#: The networks: with thresholds that adapt, and without.
NETWORKS: Mapping[str, bool] = {"hosnn": True, "plain": False}
#: What the paper prints for its own, larger networks under PGD with 7 steps, in %.
PRINTED: Mapping[str, float] = {"hosnn": 74.91, "plain": 30.90}
#: The epochs of the recipe: on clean images, then on one-step attacks.
CLEAN_EPOCHS, EPOCHS = 2, 3
_PGD = f"pgd:steps=7,step_size={STEP},random_start=no"
#: The published attack, along the published gradient and along that of the network.
PUBLISHED = Suite.model_validate(
    {
        "name": "hosnn-tmlr25",
        "epsilon": EPSILON,
        "description": "PGD with 7 steps along the published gradient, and where spikes flip",
        "entries": [
            {"label": "PGD-7 published", "attack": _PGD, "estimator": "bptt"},
            {"label": "PGD-7 live", "attack": _PGD, "estimator": f"bptt:sigmoid:width={WIDTH}"},
        ],
    }
)
#: The columns of the table.
COLUMNS = ("network", "attack", "samples", "accuracy", "level", "flags", "seconds")


def trained(
    name: str,
    weights: Path,
    data_root: Path,
    images: int | None,
    say: Callable[[str], None],
) -> Path:
    """The file of the weights of a network, which is trained where there is none.

    Args:
        name: One of `NETWORKS`.
        weights: The folder of the files.
        data_root: The folder of Fashion-MNIST.
        images: The number of training images; None for all.
        say: The function that is told of the training.
    """
    path = weights / f"{name}.safetensors"
    if not path.is_file():
        network = train(
            str(data_root), NETWORKS[name], CLEAN_EPOCHS, EPOCHS, images, 0,
            lambda text: say(f"{name}: {text}"),
        )  # fmt: skip
        save(network, path)
    return path


def study(name: str, path: Path, samples: int, runs: Path) -> list[dict[str, Any]]:
    """The rows of one network: clean, under the published attack, and under `standard`.

    Args:
        name: One of `NETWORKS`.
        path: The file of its weights.
        samples: The number of test images, at most the 2,000 that ship.
        runs: The folder of the run folders; finished runs in it are not run again.
    """
    rows: list[dict[str, Any]] = []
    for suite in (PUBLISHED, "standard"):
        label = suite if isinstance(suite, str) else suite.name
        found = evaluate(
            load(path), "fashion-mnist", suite, epsilon=None if label != "standard" else EPSILON,
            samples=samples, name=name, output=runs / f"{name}-{label}",
        )  # fmt: skip
        rows += _rows(name, found, whole=label == "standard")
    return rows


def _rows(name: str, found: Evaluation, whole: bool) -> list[dict[str, Any]]:
    """The rows of one run: of each attack, or of the whole suite only."""
    level = found.manifest.level
    flags = " ".join(sorted({flag["flag"] for flag in found.flags}))
    shown = (WORST_CASE,) if whole else (CLEAN, "pgd-7-published", "pgd-7-live")
    table = found.results.set_index("attack")
    return [
        {
            "network": name,
            "attack": found.manifest.suite if whole else attack,
            "samples": found.manifest.samples,
            "accuracy": round(float(table["accuracy"][attack]), 6),
            "level": level if whole else "",
            "flags": flags if whole else "",
            "seconds": round(float(found.manifest.seconds or 0), 1) if whole else "",
        }
        for attack in shown
    ]
