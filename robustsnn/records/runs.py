"""Finished runs, read back from their folders for reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustsnn.common.files import check_file, expanded
from robustsnn.common.printable import all_printable, printable
from robustsnn.errors import InputError, unknown
from robustsnn.records.folder import LARGEST, RunFolder
from robustsnn.records.manifest import Manifest, read_manifest
from robustsnn.records.schema import ACTIVITY, MANIFEST

_FILES = (MANIFEST, "records.parquet", "results.csv")
#: The columns that a report cannot do without.
_RECORDS = "image_id label attack norm epsilon clean_prediction prediction margin".split()
_RESULTS = "attack norm epsilon accuracy ci_low ci_high".split()

#: The columns of any table of a run that are whole numbers, numbers and texts.
WHOLE = frozenset("image_id label prediction clean_prediction neurons step samples".split())
NUMBERS = frozenset(
    "seed margin success linf l2 forward_passes backward_passes zero_grad nonfinite_grad projected "
    "seconds draws_right synaptic_operations accuracy ci_low ci_high attack_success_rate mean_linf "
    "mean_l2 draws_accuracy spikes_per_neuron".split()
)
TEXTS = frozenset("model suite data attack estimator substitute norm epsilon flags layer".split())
_AGAIN = "run the evaluation again"

#: What is lost at most where a compression is printed.
ROUNDED = 0.005


@dataclass(frozen=True, eq=False)
class Run:
    """One model under one suite on one data set, as read back from its folder.

    Args:
        folder: The run folder.
        manifest: The manifest of the run.
        records: The rows of `records.parquet`.
        results: The rows of `results.csv`.
        activity: The rows of `activity.parquet`.
        examples: The arrays of `examples.safetensors`, by name.
        label: The name that is shown to readers, unique among the runs that were loaded together.
    """

    folder: Path
    manifest: Manifest
    records: pd.DataFrame = field(repr=False)
    results: pd.DataFrame = field(repr=False)
    activity: pd.DataFrame = field(repr=False)
    examples: Mapping[str, NDArray[Any]] = field(repr=False)
    label: str = ""

    @property
    def model(self) -> str:
        """The model as the user named it."""
        return self.manifest.model

    @property
    def data(self) -> str:
        """The name of the data set."""
        return self.manifest.data

    @property
    def suite(self) -> str:
        """The name of the suite."""
        return self.manifest.suite

    @property
    def kind(self) -> str:
        """`ann` or `snn` for a network of RobustSNN, empty for any other."""
        return self.manifest.kind

    @property
    def architecture(self) -> str:
        """The name of the architecture."""
        return self.manifest.architecture

    @property
    def time_steps(self) -> int:
        """The number of time steps that an image is shown for; 1 for an ANN."""
        return self.manifest.time_steps

    @property
    def samples(self) -> int:
        """The number of images that were evaluated."""
        return int(self.records["image_id"].nunique())

    @property
    def setting(self) -> tuple[str, ...]:
        """What two runs must have in common to be compared image by image."""
        said = self.manifest
        asked = (said.norm, said.epsilon, str(said.suite_version), str(self.samples))
        return (said.data, said.data_fingerprint, said.suite, *asked, str(said.seed))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes in the order of the labels; empty if the run has none."""
        return self.manifest.class_names

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names) or int(self.records["label"].max()) + 1

    @property
    def energy(self) -> Mapping[str, float]:
        """The estimated energy per image in microjoule, by accounting convention."""
        return self.manifest.energy

    @property
    def weights(self) -> int | None:
        """The number of synaptic weights that are not zero; None for an older run."""
        layers = self.manifest.densities
        return None if layers is None else sum(layer["kept"] for layer in layers)

    @property
    def density(self) -> float:
        """The share of its synaptic weights that are not zero, in [0, 1]; NaN if unknown."""
        total = sum(layer["weights"] for layer in self.manifest.densities or ())
        return (self.weights or 0) / total if total else float("nan")

    @property
    def compression(self) -> float:
        """How many times fewer weights there are than in the dense network; NaN if unknown.

        The dense network has every weight of every layer, and the channels that were removed.
        """
        total = sum(layer["weights"] for layer in self.manifest.densities or ())
        dense = self.manifest.dense_weights or total
        if not dense:
            return float("nan")
        return dense / self.weights if self.weights else float("inf")

    @property
    def sparse(self) -> bool:
        """Whether the compression is above 1 in the two digits that are printed.

        A dense network may hold a few weights that happen to be zero.
        """
        return self.compression >= 1 + ROUNDED

    @property
    def flags(self) -> tuple[Mapping[str, Any], ...]:
        """The findings that speak against the numbers."""
        return self.manifest.flags

    @property
    def preflight(self) -> tuple[Mapping[str, Any], ...]:
        """The checks that were made before the attacks."""
        return self.manifest.preflight

    @property
    def diagnostics(self) -> tuple[Mapping[str, Any], ...]:
        """The findings of the probe and those on the records, flagged or not."""
        return (*(self.manifest.probe or ()), *self.manifest.diagnostics)

    @property
    def diagnosis(self) -> Mapping[str, Any]:
        """The level, its reasons and advice, see `robustsnn.diagnosis.level`; empty if older."""
        return self.manifest.diagnosis

    @property
    def level(self) -> str:
        """The level of the run, `A`, `B` or `C`; empty for an older run."""
        return self.manifest.level

    @cached_property
    def spikes_per_neuron_and_step(self) -> float:
        """The mean number of spikes per neuron and time step over all spiking layers, or NaN."""
        steps = self.activity["step"].nunique()
        layers = self.activity.drop_duplicates("layer")
        if not steps:
            return float("nan")
        spikes = float((self.activity["neurons"] * self.activity["spikes_per_neuron"]).sum())
        return spikes / (float(layers["neurons"].sum()) * steps)


@dataclass(frozen=True, eq=False)
class Runs:
    """The runs of one report, those of the baseline first; `load_runs` reads them.

    Examples:
        >>> len(Runs(()))
        0
    """

    runs: tuple[Run, ...]

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def models(self) -> tuple[str, ...]:
        """The labels of the models in order, each once; the first is the baseline."""
        return tuple(dict.fromkeys(run.label for run in self.runs))

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        """The manifests of the runs."""
        return tuple(run.manifest for run in self.runs)

    @cached_property
    def records(self) -> pd.DataFrame:
        """The records of all runs, with the label in the column `model`."""
        return self._stack("records")

    @cached_property
    def results(self) -> pd.DataFrame:
        """The results of all runs, with the label in the column `model`."""
        return self._stack("results")

    @cached_property
    def activity(self) -> pd.DataFrame:
        """The activity of all runs, with the label in a column `model`."""
        return self._stack("activity")

    @cached_property
    def densities(self) -> pd.DataFrame:
        """The layers with synapses of each model, once: model, layer, weights, kept, density."""
        # Several runs of a model differ only in their images.
        first = {run.label: run for run in reversed(self.runs)}
        rows = [
            {
                "model": model,
                "layer": layer["layer"],
                "weights": layer["weights"],
                "kept": layer["kept"],
                "density": layer["kept"] / layer["weights"] if layer["weights"] else float("nan"),
            }
            for model in self.models
            for layer in first[model].manifest.densities or ()
        ]
        return pd.DataFrame(rows, columns=["model", "layer", "weights", "kept", "density"])

    def _stack(self, name: str) -> pd.DataFrame:
        tables: list[pd.DataFrame] = [getattr(run, name) for run in self.runs]
        frames = [t.assign(model=r.label) for t, r in zip(tables, self.runs, strict=True)]
        frames = [frame for frame in frames if len(frame)] or frames[:1]
        return pd.concat(frames, ignore_index=True)

    def with_baseline(self, name: str) -> Runs:
        """The same runs with those of one model first.

        Raises:
            InputError: No run is of that model.
        """
        first = [run for run in self.runs if name in (run.label, run.model)]
        if not first:
            raise unknown("model to compare with", name, self.models)
        labels = {run.label for run in first}
        return Runs((*first, *(run for run in self.runs if run.label not in labels)))


def load_runs(folders: Iterable[Path | str]) -> Runs:
    """Read run folders; the model of the first one is the baseline.

    Raises:
        InputError: There are none, or one is not a run folder, is incomplete or unreadable.

    Examples:
        >>> import tempfile
        >>> import robustsnn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = robustsnn.evaluate(
        ...         "fashion-mnist/vgg5-ann", attack=["fgsm"], samples=4, output=folder
        ...     )
        ...     load_runs([folder]).records["attack"].unique().tolist()
        ['clean', 'fgsm']
    """
    paths = list(dict.fromkeys(expanded(folder) for folder in folders))
    if not paths:
        raise InputError("no run folder given: name at least one, such as runs/*.")
    return Runs(_labelled([_read(path) for path in paths]))


def _read(folder: Path) -> Run:
    if not folder.is_dir():
        what = "is a file, not a run folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}: name the folder of a finished evaluation.")
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if MANIFEST in missing:
        inside = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))
        hint = f" It holds run folders: try {folder / inside[0]}." if inside else ""
        raise InputError(f"{folder} is not a run folder: it has no {MANIFEST}.{hint}")
    manifest = read_manifest(folder)
    if missing or not manifest.done:
        why = f"it has no {' and no '.join(missing)}" if missing else "it did not end"
        raise InputError(f"{folder} is incomplete: {why}; run the same evaluation again.")
    run = RunFolder(folder)
    records = _with_columns(run.records(), _RECORDS, folder / "records.parquet")
    results = _with_columns(run.results(), _RESULTS, folder / "results.csv")
    if not len(records) or not len(results):
        raise InputError(f"{folder} is incomplete: it has no rows; run the same evaluation again.")
    activity = pd.DataFrame({name: [] for name in ACTIVITY})
    if (folder / "activity.parquet").is_file():
        activity = _with_columns(run.activity(), ACTIVITY, folder / "activity.parquet")
    return Run(
        folder=folder,
        manifest=manifest.but(**all_printable(dict(manifest))),
        records=_printable(
            records.assign(
                norm=records["norm"].fillna("").astype(str),
                epsilon=records["epsilon"].fillna("").astype(str),
            )
        ),
        results=_printable(results),
        activity=_printable(activity),
        examples=_examples(folder / "examples.safetensors"),
    )


def _printable(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with control characters of its texts made visible."""
    texts = {}
    for name in frame.select_dtypes(include=["object", "string"]).columns:
        signs = {t: printable(t) for t in frame[name].unique() if isinstance(t, str)}
        if any(text != sign for text, sign in signs.items()):
            texts[name] = frame[name].map(lambda t, signs=signs: signs.get(t, t))
    return frame.assign(**texts) if texts else frame


def _with_columns(frame: pd.DataFrame, columns: Sequence[str], path: Path) -> pd.DataFrame:
    absent = [name for name in columns if name not in frame.columns]
    if absent:
        raise InputError(f"{path} lacks the column {absent[0]!r}; run the evaluation again.")
    if odd := odd_columns(frame):
        raise InputError(f"{path}: the column {odd[0]!r} is of another type; {_AGAIN}.")
    return frame


def odd_columns(frame: pd.DataFrame) -> list[str]:
    """The columns of a table of a run that hold another type than they should.

    Examples:
        >>> odd_columns(pd.DataFrame({"label": ["three"], "margin": [0.5]}))
        ['label']
    """
    kinds = pd.api.types
    odd: list[str] = []
    if not len(frame):
        # The columns of an empty table, such as the spikes of an ANN, have no type.
        return odd
    for name in frame.columns:
        held = frame[name]
        if name in WHOLE:
            fits = kinds.is_integer_dtype(held)
        elif name in NUMBERS:
            fits = kinds.is_numeric_dtype(held)
        elif name in TEXTS:
            fits = all(isinstance(value, str) or value is None for value in held.unique())
        else:
            fits = True
        if not fits:
            odd.append(str(name))
    return odd


def _examples(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        return {}
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        check_file(path, LARGEST, "run the evaluation again")
        return {name: np.asarray(array) for name, array in load_file(path).items()}
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); run the evaluation again.") from error


def _labelled(runs: list[Run]) -> tuple[Run, ...]:
    """The runs, each model labelled by the shortest name that differs from the others."""
    names = list(dict.fromkeys(run.model.rstrip("/") for run in runs))
    parts = [name.split("/") for name in names]
    shared = 0
    while all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    short = {name: "/".join(p[shared:]) or name for name, p in zip(names, parts, strict=True)}

    # Several checkpoints may have the same name; their labels must differ.
    checkpoints: dict[str, list[str]] = {}
    for run in runs:
        known = checkpoints.setdefault(run.model.rstrip("/"), [])
        if (sha := checkpoint(run)) not in known:
            known.append(sha)

    def label(run: Run) -> str:
        name = run.model.rstrip("/")
        known = checkpoints[name]
        return short[name] if len(known) == 1 else f"{short[name]} @{checkpoint(run)[:7]}"

    seen: dict[tuple[str, ...], int] = {}
    labelled = []
    for run in runs:
        key = (label(run), *run.setting)
        seen[key] = seen.get(key, 0) + 1
        again = f" ({seen[key]})" if seen[key] > 1 else ""
        labelled.append(dataclasses.replace(run, label=label(run) + again))
    return tuple(labelled)


def checkpoint(run: Run) -> str:
    """The sha256 of the weights of a run's model; empty if the run has none."""
    return run.manifest.checkpoint_sha256
