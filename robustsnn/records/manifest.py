"""The manifest of a run: what was evaluated, on what, how, and the diagnosis.

It is written as `manifest.json` when a run starts, completed when the run ends, and read back
here. A field that older runs do not have has a default. The names of the fields stay as they are,
since published runs hold them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError, field_validator

from robustsnn.common.files import read_text, write_atomically
from robustsnn.errors import InputError
from robustsnn.records.schema import DONE, FORMAT, MANIFEST

#: The bytes above which a manifest is refused; those of ours have some 100 kB.
LARGEST = 64_000_000

#: The other files of a finished run folder.
TABLES = ("records.parquet", "activity.parquet", "examples.safetensors", "results.csv")

Row = Mapping[str, Any]
"""One row of a list in the manifest, as in JSON."""


class Manifest(BaseModel):
    """The content of `manifest.json`.

    Attributes:
        format: The version of the layout of run folders.
        identity: The sha256 of all that decides the records: model, data, suite, seed, sizes.
        basis: The same without what the rounding of a machine decides; empty for a network of
            RobustSNN.
        function: What a network of the user's own computes, as far as it can be told: digests of
            what its code reads (`contents`), of its `logits` and its `gradient` on a few fixed
            images, and the `numbers` by which two machines are compared; None for a network of
            RobustSNN and in older runs.
        command: The command line that asked for the run; empty for a call from Python.
        versions: The versions of the packages that numbers depend on, by name.
        model: The model as the user named it.
        origin: The origin of the model: a folder, `python.module:factory`, or `memory`.
        checkpoint_sha256: The sha256 of the weights.
        kind: `ann` or `snn` for a network of RobustSNN, empty for any other.
        architecture: The name of the architecture, or of the network's class.
        time_steps: The number of time steps that an image is shown for; 1 without spikes.
        encoding: How an image becomes input over time.
        method: How the network was trained.
        stochastic: Whether the network draws at every pass.
        spiking: Whether estimators reach layers of spiking neurons; None in older runs.
        classes: The number of classes; None in older runs.
        foreign: The neurons of another library that were found: one `sentence`, how many layers
            estimators have `reached`, whether they were `left_alone`, the `layers`, and the
            `checks` of the self-check; None for other networks.
        densities: One row for each layer with synapses, in order: `layer`, its number of
            `weights`, and how many are not zero, `kept`; None in older runs.
        dense_weights: The synaptic weights before channels were removed; None if none were.
        data: The name of the data set.
        data_fingerprint: A digest of all its pixels and labels.
        class_names: The names of the classes in the order of the labels; empty if unknown.
        samples: The number of images that were evaluated.
        suite: The name of the suite.
        suite_version: The version of the suite.
        suite_sha256: The digest of all that the suite runs.
        entries: The entries of the suite, as in its file.
        left_out: The labels of the entries that do not fit this network.
        estimator: The estimator that took the place of every entry's own, as the user wrote it;
            None if there was none.
        files: The sha256 of each file of the user's own that was run.
        stages: One row for each attack at each size, see `robustsnn.diagnosis.stages.Stage`; None
            in older runs.
        cascade: Whether each entry attacked only the survivors of those before it.
        curve: Whether each size kept what smaller ones had found.
        draws: The number of fresh draws on which each image of a stochastic network is judged.
        attack_misclassified: Whether images that are wrong when clean were attacked too.
        norm: The norm of the suite.
        epsilon: The sizes of the suite, as the suite file has them, separated by commas.
        sizes: Every size that was run, as it was written.
        substitute: The name of the network that a black-box attacker crafted on.
        substitute_sha256: The sha256 of that network's weights.
        seed: The seed of every draw.
        save_images: Whether every adversarial image was kept.
        machine: The processor and the number of cores.
        device: The device that computed the network.
        threads: The number of CPU threads of a pass.
        batch_size: The number of images in a forward pass.
        batch_size_asked: The number of images in a forward pass that was asked for, before it was
            fitted to memory.
        recompute: The number of time steps between two membranes that are kept for a gradient;
            None keeps all.
        lif_kernel: The code that computed the layers of spiking neurons.
        start: The time when the run started, in UTC.
        seconds: The seconds that all attacks took together.
        status: `running` or `done`.
        preflight: The checks that were made before the attacks, one row each.
        probe: The findings of the probe; None before it was made, and for suites without one.
        probe_cost: The cost of the probe.
        flags: The findings that speak against the numbers.
        diagnostics: The findings that were measured on the records, flagged or not.
        ledger: What each stage broke and cost.
        verdict: The level A, B or C with its reasons and what to do next.
        energy: The estimated energy in microjoule per image, by accounting convention; see
            `robustsnn.snn.energy`.
        counts: The operations of the whole network per image, by name, and its sparsities; empty in
            older runs.
        operations: The operations of each layer with synapses per image, one row each; see
            `robustsnn.snn.operations.LayerOperations`.
        uncounted: Why the operations are not known, as a part of a sentence; empty if they are.
        activity_images: The number of images whose spikes were counted.
        contents: The sha256 of each other file of the folder as the run wrote it; empty in older
            runs. A table that was only written anew says the same, so `verify` does not look at
            it.
        digest: The digest of a finished manifest, see `content_digest`; empty in older runs.
        diagnosed_again: The note on a diagnosis that was made again; never written to disk.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    format: str = FORMAT
    identity: str = ""
    basis: str = ""
    function: dict[str, Any] | None = None
    command: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    model: str
    origin: str = ""
    checkpoint_sha256: str = ""
    kind: str = ""
    architecture: str = ""
    time_steps: int = 1
    encoding: str = ""
    method: str = ""
    stochastic: bool = False
    spiking: bool | None = None
    classes: int | None = None
    foreign: dict[str, Any] | None = None
    densities: tuple[dict[str, Any], ...] | None = None
    dense_weights: PositiveInt | None = None
    data: str
    data_fingerprint: str = ""
    class_names: tuple[str, ...] = ()
    samples: int = 0
    suite: str
    suite_version: int = 1
    suite_sha256: str = ""
    entries: tuple[dict[str, Any], ...] = ()
    left_out: tuple[str, ...] = ()
    estimator: str | None = None
    files: dict[str, str] = {}
    stages: tuple[dict[str, Any], ...] | None = None
    cascade: bool = False
    curve: bool = False
    draws: int = 1
    attack_misclassified: bool = False
    norm: str = ""
    epsilon: str = ""
    sizes: tuple[str, ...] = ()
    substitute: str | None = None
    substitute_sha256: str | None = None
    seed: int = 0
    save_images: bool = False
    machine: dict[str, Any] = {}
    device: str = ""
    threads: int | None = None
    batch_size: int = 1
    batch_size_asked: int | None = None
    recompute: int | None = None
    lif_kernel: str = ""
    start: str = ""
    seconds: float = 0.0
    status: str = ""
    preflight: tuple[dict[str, Any], ...] = ()
    probe: tuple[dict[str, Any], ...] | None = None
    probe_cost: dict[str, float] = {}
    flags: tuple[dict[str, Any], ...] = ()
    diagnostics: tuple[dict[str, Any], ...] = ()
    ledger: tuple[dict[str, Any], ...] = ()
    verdict: dict[str, Any] = {}
    energy: dict[str, float] = {}
    counts: dict[str, float] = {}
    operations: tuple[dict[str, Any], ...] = ()
    uncounted: str = ""
    activity_images: int | None = None
    contents: dict[str, str] = {}
    digest: str = ""
    diagnosed_again: str = ""

    @field_validator("densities")
    @classmethod
    def _counted(cls, rows: tuple[dict[str, Any], ...] | None) -> tuple[dict[str, Any], ...] | None:
        for row in rows or ():
            weights, kept = row.get("weights"), row.get("kept")
            numbers = type(weights) is int and type(kept) is int and 0 <= kept <= weights
            if not isinstance(row.get("layer"), str) or not numbers:
                raise ValueError("a row is a layer, its weights, and how many of them are kept")
        return rows

    @property
    def done(self) -> bool:
        """Whether the run came to its end.

        Examples:
            >>> Manifest(model="a", data="b", suite="quick", status="running").done
            False
        """
        return self.status == DONE

    @property
    def made(self) -> str:
        """When and by what a run was made, as a part of a sentence.

        Examples:
            >>> held = {"robustsnn": "0.1.0", "torch": "2.14.0"}
            >>> start = "2026-11-30T16:45:35+00:00"
            >>> Manifest(model="a", data="b", suite="quick", start=start, versions=held).made
            'made on 2026-11-30 at 16:45 UTC by RobustSNN 0.1.0 with torch 2.14.0'
        """
        date, _, clock = self.start.partition("T")
        when = f" on {date} at {clock[:5]} UTC" if clock else ""
        by = f" by RobustSNN {self.versions.get('robustsnn', 'of an unknown version')}"
        torch = f" with torch {self.versions['torch']}" if "torch" in self.versions else ""
        return f"made{when}{by}{torch}"

    @property
    def diagnosis(self) -> Mapping[str, Any]:
        """The level, its sentence and reasons, and what to do next; empty for an older run."""
        return self.verdict

    @property
    def level(self) -> str:
        """The level of the run, `A`, `B` or `C`; empty for a run without a diagnosis."""
        return str(self.verdict.get("level") or "")

    def but(self, **changes: Any) -> Manifest:
        """The same manifest with other values of some fields, checked as when it is read.

        Examples:
            >>> Manifest(model="a", data="b", suite="quick").but(seed=1).seed
            1
        """
        return Manifest.model_validate({**dict(self), **changes})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a run folder.

    Raises:
        InputError: There is no manifest, it is damaged, or it has another layout.
    """
    path = folder / MANIFEST
    remedy = "run the evaluation again, or name another folder"
    text = read_text(path, LARGEST, remedy)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}): {remedy}.") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{folder} holds no run of this version: name another folder.")
    # What a diagnosis that is made again says is never read from a file.
    found.pop("diagnosed_again", None)
    try:
        return Manifest.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {field}: {first['msg']}; run the evaluation again.") from None


def intact(folder: Path) -> bool:
    """Whether the manifest of a folder is the one that a finished run wrote."""
    try:
        held = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(held, dict) and held.get("digest") == content_digest(held)


def _untouched(folder: Path) -> bool:
    """Whether every file of a folder is as a finished run wrote it."""
    if not intact(folder):
        return False
    contents = json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("contents")
    if not isinstance(contents, dict) or not contents:
        return False
    try:
        return all(
            (folder / name).is_file()
            and hashlib.sha256((folder / name).read_bytes()).hexdigest() == contents.get(name)
            for name in TABLES
        )
    except OSError:
        return False


@contextlib.contextmanager
def blaming(*folders: Path) -> Iterator[None]:
    """A context in which what fails on an edited run is told as damage, not as our mistake.

    The rows of a manifest are free in their fields, and those of a table in their values, so code
    that reads them may find any of them missing or of another type.

    Args:
        folders: The run folders that are read inside.

    Raises:
        InputError: Something failed, and a file is not the one that its run wrote.
    """
    try:
        yield
    except (InputError, OSError):
        raise
    except Exception as error:
        # Whatever it is: templates, tables and schemas have exceptions of their own.
        for folder in folders:
            if not _untouched(folder):
                said = " ".join(str(error).split())[:200]
                raise InputError(
                    f"{folder} is damaged or was edited ({type(error).__name__}: {said}): run the "
                    "evaluation again, or name another folder."
                ) from error
        raise


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a run folder, whole or not at all; a finished one with its digest."""
    held = {name: value for name, value in manifest if name != "diagnosed_again"}
    held["digest"] = content_digest(held) if manifest.done else ""
    text = json.dumps(held, indent=2, ensure_ascii=False)
    write_atomically(folder / MANIFEST, (text + "\n").encode())


def content_digest(held: Mapping[str, Any]) -> str:
    """The sha256 of what a manifest says, but for `origin`, where its model may lie no more.

    Whoever edits a manifest can write another digest as well. But one that was quoted elsewhere,
    as in a paper, holds the manifest to what it was.

    Args:
        held: The fields of the manifest, as JSON has them.

    Examples:
        >>> content_digest({"seed": 0, "origin": "a"}) == content_digest({"seed": 0})
        True
    """
    kept = {name: value for name, value in held.items() if name not in ("digest", "origin")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
