"""Verify a run: score its saved images again, with the model read anew, and compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from robustsnn.errors import InputError
from robustsnn.evaluation import check_device
from robustsnn.formats import CLEAN, WORST_CASE
from robustsnn.records import DONE, RunFolder, classified_right
from robustsnn.scoring import verdict
from robustsnn.subjects import subject_of
from robustsnn.threat import ThreatModel

#: Fraction of verdicts that may differ: a spike at its threshold flips with the machine.
TOLERATED = 0.005


@dataclass(frozen=True)
class Verification:
    """What scoring again found.

    `differing` lists (image id, threat) of verdicts that differ; `outside` counts images that
    are not in their ball or range; `rows` counts rows of `results.csv` that do not follow from
    the records.
    """

    images: int
    verdicts: int
    differing: tuple[tuple[int, str], ...]
    outside: int
    rows: int

    @property
    def passed(self) -> bool:
        """Whether at most 0.5 % of verdicts differ, and nothing else is wrong."""
        few = len(self.differing) <= TOLERATED * self.verdicts
        return few and self.outside == 0 and self.rows == 0

    @property
    def sentence(self) -> str:
        """What was found, in one line."""
        parts = [
            f"{len(self.differing)} of {self.verdicts} verdicts on {self.images} saved images "
            "differ"
        ]
        if self.outside:
            parts.append(f"{self.outside} saved images are outside their ball or range")
        if self.rows:
            parts.append(f"{self.rows} rows of results.csv do not follow from the records")
        return f"{'verified' if self.passed else 'NOT verified'}: {'; '.join(parts)}."


def verify(
    folder: Path,
    *,
    model: str | None = None,
    weights: Path | None = None,
    device: str = "cpu",
) -> Verification:
    """Score the saved images of a run again, at the shape that they were scored at.

    Args:
        folder: A finished run; those made with `--save-images` hold all images, others a few.
        model: Where the model lies now, if it was moved.
        weights: Of a model given as `python.module:factory`.
        device: Where to compute.

    Raises:
        InputError: The run is not finished or damaged, or its model is gone or another.
    """
    check_device(device)
    run = RunFolder(folder)
    if not folder.is_dir():
        raise InputError(f"no run folder {folder}: name the folder of a finished evaluation.")
    manifest = run.manifest()
    if manifest.get("status") != DONE:
        raise InputError(f"{folder} is not finished: run the same evaluation again first.")
    network = _network(manifest, model, weights, device)
    try:
        records, saved = run.records(), load_file(folder / "examples.safetensors")
        results = run.results()
        ids = saved["image_id"].tolist()
        labels, clean = saved["label"].to(device), saved["clean"].to(device)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"{folder} is damaged ({error}): run the evaluation again.") from None
    size, seed = int(manifest["batch_size"]), int(manifest["seed"])
    differing: list[tuple[int, str]] = []
    outside = verdicts = 0
    for group, rows in records.groupby(["attack", "norm", "epsilon"], sort=False):
        attack, norm, epsilon = map(str, group)
        name = CLEAN if attack == CLEAN else f"adversarial/{attack}@{epsilon}"
        if name not in saved:
            raise InputError(f"{folder} holds no images {name!r}: run the evaluation again.")
        images = saved[name].to(device)
        if attack != CLEAN:
            outside += int((~ThreatModel(norm, epsilon).admits(images, clean)).sum())
        said = verdict(network, images, labels, ids, size, seed, int(manifest.get("draws") or 1))
        predictions = said.predictions
        recorded = rows.set_index("image_id").loc[ids]["prediction"].to_numpy(copy=True)
        wrong = predictions.cpu() != torch.from_numpy(recorded)
        verdicts += len(ids)
        threat = attack if attack == CLEAN else f"{attack} {norm} {epsilon}"
        differing += [(ids[i], threat) for i in wrong.nonzero().flatten().tolist()]
    wrong_rows = _rows(records, results, bool(manifest.get("cascade")))
    return Verification(len(ids), verdicts, tuple(differing), outside, wrong_rows)


def _network(
    manifest: dict[str, Any], model: str | None, weights: Path | None, device: str
) -> torch.nn.Module:
    origin = str(manifest.get("origin"))
    if model is None and origin == "memory":
        raise InputError("the run's network was in memory: name its checkpoint with --model.")
    asked = model or (origin if ":" in origin or Path(origin).is_dir() else manifest["model"])
    subject = subject_of(asked, weights=weights, device=device)
    if subject.sha256 != manifest.get("checkpoint_sha256"):
        raise InputError(
            f"{asked} is not the model of this run (sha256 {subject.sha256[:12]}, the run has "
            f"{str(manifest.get('checkpoint_sha256'))[:12]}): name the right one with --model."
        )
    return subject.load()


def _rows(records: pd.DataFrame, results: pd.DataFrame, cascade: bool) -> int:
    """Rows of `results.csv` whose accuracy is not that of the records."""
    wrong = 0
    for row in results[results["attack"] != WORST_CASE].to_dict("records"):
        here = (
            (records["attack"] == row["attack"])
            & (records["norm"] == row["norm"])
            & (records["epsilon"] == row["epsilon"])
        )
        right = classified_right(records[here], cascade and row["attack"] != CLEAN)
        wrong += not (len(right) and np.isclose(right.mean(), row["accuracy"], atol=1e-9))
    return wrong
