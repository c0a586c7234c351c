"""The board: models ranked by what the strongest suite leaves of them, on one page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustsnn.common.files import (
    check_output,
    expanded,
    made_folder,
    unwritable,
    write_atomically,
)
from robustsnn.common.statistics import wilson
from robustsnn.errors import InputError
from robustsnn.models.zoo import zoo_folder, zoo_names
from robustsnn.records.manifest import Manifest
from robustsnn.records.runs import Run, load_runs
from robustsnn.records.schema import CLEAN, WORST_CASE
from robustsnn.reporting.board import Entry, page
from robustsnn.reporting.comparison import energy
from robustsnn.workflows.verify.run import verify

#: The suites that the board ranks by, for networks that do not draw and that do.
SUITES = ("standard", "rand")
FORMAT = "robustsnn-board-1"
BOARD = "board.json"


def board(
    runs: Sequence[Path | str],
    output: Path | str,
    models: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write `index.html`, one page that works offline, and `board.json` with the same entries.

    Every run is verified: its saved images are scored again with the model read anew. A run that
    fails, whose model is not there, or that did not save all its images (`--save-images`), is
    listed as reported and not verified, with the reason.

    Args:
        runs: Folders of finished runs of `standard`, or of `rand` for networks that draw.
        output: The folder of the board.
        models: The checkpoint or factory of a run's model, by the path of the run as it is given;
            only what is named here can run code.
        say: A function that prints progress.

    Returns:
        The path of the page.

    Raises:
        InputError: A run is not finished or of another suite, or the folder cannot be used.

    Examples:
        >>> board([], "boards/none")
        Traceback (most recent call last):
            ...
        robustsnn.errors.InputError: no runs: name finished runs of standard or rand.
    """
    output = expanded(output)
    folders = [expanded(run) for run in runs]
    if not folders:
        raise InputError("no runs: name finished runs of standard or rand.")
    passed = {expanded(run).resolve(): model for run, model in (models or {}).items()}
    for place in passed:
        if place not in [folder.resolve() for folder in folders]:
            raise InputError(f"--model names the run {place}, which is not on the board.")
    check_output(output, BOARD)
    read = load_runs(folders).runs
    for run in read:
        if run.suite not in SUITES or _worst(run) is None:
            raise InputError(
                f"{run.folder} is a run of {run.suite}: the board ranks runs of one size of "
                f"{' or '.join(SUITES)}."
            )
    entries = []
    for run in read:
        say(f"verifying {run.folder}")
        entries.append(_entry(run, _doubt(run, passed.get(run.folder.resolve()))))
    entries.sort(key=lambda entry: (entry.suite, entry.data, -entry.accuracy, entry.model))
    held = {"format": FORMAT, "entries": [entry.as_json() for entry in entries]}
    try:
        with made_folder(output):
            text = json.dumps(held, indent=1, ensure_ascii=False)
            write_atomically(output / BOARD, (text + "\n").encode())
            write_atomically(output / "index.html", page(entries).encode())
    except OSError as error:
        raise unwritable(output, error) from None
    return output / "index.html"


def _doubt(run: Run, model: str | None) -> str:
    """Why a run is not verified; empty if it is."""
    try:
        found = verify(run.folder, model=model)
    except InputError as error:
        return str(error)
    if not found.passed:
        return found.sentence
    if found.images < run.samples:
        return f"only {found.images} of {run.samples} images were saved: run with --save-images."
    return "" if found.complete else found.sentence


def _worst(run: Run) -> Mapping[str, Any] | None:
    """The row of the worst case of a run; None unless there is exactly one."""
    rows = run.results[run.results["attack"] == WORST_CASE]
    return dict(rows.iloc[0]) if len(rows) == 1 else None


def _entry(run: Run, doubt: str) -> Entry:
    worst = _worst(run)
    assert worst is not None
    accuracy = float(worst["accuracy"])
    low, high = wilson(round(accuracy * run.samples), run.samples)
    clean = run.results[run.results["attack"] == CLEAN]["accuracy"]
    said = run.manifest
    by_attack = [
        (str(row["attack"]), float(row["accuracy"]))
        for _, row in run.results.iterrows()
        if row["attack"] != WORST_CASE
    ]
    return Entry(
        model=run.model,
        data=run.data,
        architecture=run.architecture,
        kind=run.kind or "other",
        method=said.method or "unknown",
        encoding=said.encoding,
        time_steps=run.time_steps,
        suite=run.suite,
        suite_version=said.suite_version,
        norm=str(worst["norm"]),
        epsilon=str(worst["epsilon"]),
        samples=run.samples,
        clean=float(clean.iloc[0]),
        accuracy=accuracy,
        low=low,
        high=high,
        level=run.level,
        energy_uj=_number(energy(run)),
        spikes=_number(run.spikes_per_neuron_and_step),
        weights=run.weights,
        compression=_number(run.compression),
        verified=not doubt,
        doubt=doubt,
        flags=tuple(str(flag.get("sentence") or flag.get("flag")) for flag in run.flags),
        attacks=tuple(by_attack),
        manifest=_provenance(said),
        card=_card(said),
    )


def _number(value: float) -> float | None:
    """A number, or None where there is none, since JSON has no NaN."""
    return value if value == value and abs(value) != float("inf") else None


def _provenance(said: Manifest) -> dict[str, str]:
    """What of a manifest tells how the number came to be, without folders of a machine."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(said.versions.items()))
    shown = {
        "checkpoint sha256": said.checkpoint_sha256,
        "data fingerprint": said.data_fingerprint,
        "suite sha256": said.suite_sha256,
        "identity": said.identity,
        "seed": said.seed,
        "draws": said.draws,
        "started": said.start,
        "versions": versions,
    }
    return {name: str(value) for name, value in shown.items() if value not in ("", None)}


def _card(said: Manifest) -> str:
    """The card of a model that ships, if the run is of its weights; empty for any other."""
    if said.model not in zoo_names():
        return ""
    folder = zoo_folder(said.model)
    described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    card = folder / "card.md"
    if described.get("sha256") != said.checkpoint_sha256 or not card.is_file():
        return ""
    # Marks of bold text, code and tables say nothing in plain text.
    text = re.sub(r"^\|[\s|-]*\|\n", "", card.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return re.sub(r"[*`]", "", text).strip()
