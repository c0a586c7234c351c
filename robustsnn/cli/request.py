"""What can be said of a request without importing torch: a mistake is told within a second."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from robustsnn.common.files import check_output
from robustsnn.data.catalogue import NAMES
from robustsnn.data.datasets import ImageSet, load_dataset
from robustsnn.errors import InputError, unknown
from robustsnn.evaluation.suites import Suite, load_suite, suite_of
from robustsnn.models.zoo import zoo_folder
from robustsnn.records.schema import COMPARISON, MANIFEST

DEVICE = re.compile(r"cpu|mps|cuda(:\d+)?")


def request(
    models: Sequence[str],
    *,
    suite: str | None,
    attacks: Sequence[str],
    norm: str | None,
    epsilon: str | None,
    data: str | None,
    data_root: Path | None,
    download: bool,
    samples: int | None,
    seed: int,
    device: str,
    batch_size: int | None,
    recompute: int | None,
    threads: int | None,
    substitute: str | None,
    output: Path | None,
) -> tuple[Suite, ImageSet | None]:
    """The suite and, where a name tells, the images of a request that looks sound so far.

    Raises:
        InputError: The first mistake found.
    """
    if threads is not None:
        _at_least("--threads", threads, 1)
    if batch_size is not None:
        _at_least("--batch-size", batch_size, 1)
    if recompute is not None:
        _at_least("--recompute", recompute, 1)
    _at_least("--seed", seed, 0)
    if samples is not None:
        _at_least("--samples", samples, 1)
    if not DEVICE.fullmatch(device):
        raise InputError(f"no device {device!r}: choose cpu, cuda, cuda:N or mps.")
    chosen = _suite(suite, attacks, norm, epsilon)
    trained_on = [_model(name) for name in (*models, *([substitute] if substitute else []))]
    if output is not None:
        check_output(output, MANIFEST, COMPARISON)
    if data is not None and data not in NAMES:
        raise unknown("data set", data, NAMES)
    name = data or trained_on[0]
    if name is None:
        return chosen, None
    return chosen, load_dataset(name, data_root, samples=samples, download=download)


def _at_least(option: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{option} {value}: give a whole number of at least {least}.")


def _suite(
    name: str | None, attacks: Sequence[str], norm: str | None, epsilon: str | None
) -> Suite:
    if attacks and name is not None:
        raise InputError("--suite and --attack exclude each other: drop one.")
    if attacks:
        if norm not in (None, "Linf") and epsilon is None:
            raise InputError(f"--norm {norm} needs an epsilon too: add --epsilon.")
        return suite_of(
            attacks, **{k: v for k, v in (("norm", norm), ("epsilon", epsilon)) if v is not None}
        )
    return load_suite(name or "quick").at(norm, epsilon)


def _model(text: str) -> str | None:
    """The data set that a model says it was trained on, if that can be read here."""
    path = Path(text)
    if ":" in text and not path.exists():
        return None
    folder = path if path.exists() else zoo_folder(text)
    try:
        found = json.loads((folder / "model.json").read_text(encoding="utf-8")).get("data")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return found if found in NAMES else None
