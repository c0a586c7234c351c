"""The manifest of a run: what was evaluated, on what, how, and what the run says of itself.

It is written as `manifest.json` when a run starts, completed when it ends, and read back here. A
field that older runs do not have has a default; the names of the fields stay, since published runs
hold them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from robustsnn.common.files import write_atomically
from robustsnn.errors import InputError
from robustsnn.records.schema import DONE, FORMAT, MANIFEST

Row = Mapping[str, Any]
"""One row of a list in the manifest, as JSON has it."""


class Manifest(BaseModel):
    """What `manifest.json` holds.

    Attributes:
        format: The version of the layout of run folders.
        identity: The sha256 of all that decides the records: model, data, suite, seed, sizes.
        command: The command line that asked for the run; empty for a call from Python.
        versions: The versions of the packages that numbers depend on, by name.
        model: The model as it was named.
        origin: Where it came from: a folder, `python.module:factory`, or `memory`.
        checkpoint_sha256: The sha256 of its weights.
        kind: `ann` or `snn` for a network of ours, empty for any other.
        architecture: The name of the architecture, or of the network's class.
        time_steps: Time steps that an image is shown; 1 without spikes.
        encoding: How an image becomes input over time.
        method: How the network was trained.
        stochastic: Whether the network draws at every pass.
        spiking: Whether estimators reach layers of spiking neurons; None in older runs.
        classes: How many classes the network tells apart; None in older runs.
        data: The name of the data set.
        data_fingerprint: A digest of all its pixels and labels.
        class_names: The names of the classes in the order of the labels; empty if unknown.
        samples: How many images were evaluated.
        suite: The name of the suite.
        suite_version: Its version.
        suite_sha256: The digest of what it runs.
        entries: Its entries, as the suite file has them.
        left_out: The labels of entries that are for other networks.
        estimator: What took the place of every entry's estimator, as it was written; None where
            nothing did.
        files: The sha256 of each file of the user's own that was run.
        stages: One row for each attack at each size, see `robustsnn.diagnosis.stages.Stage`; None
            in older runs.
        cascade: Whether each entry attacked only what the ones before it left.
        draws: Fresh draws on which each image of a stochastic network is judged.
        attack_misclassified: Whether images that are wrong when clean were attacked too.
        norm: The norm of the suite.
        epsilon: The sizes of the suite, as written, separated by commas.
        sizes: Every size that was run, as written.
        substitute: The name of the network that a black-box attacker crafted on.
        substitute_sha256: The sha256 of that network's weights.
        seed: The seed of every draw.
        save_images: Whether every adversarial image was kept.
        machine: Processor and number of cores.
        device: Where the network was computed.
        threads: CPU threads of a pass.
        batch_size: Images of a forward pass.
        batch_size_asked: The same, as it was asked for before memory was looked at.
        recompute: Time steps between two membranes that a gradient keeps; None keeps all.
        lif_kernel: Which code computed the layers of spiking neurons.
        start: When the run started, in UTC.
        seconds: The seconds of all attacks.
        status: `running` or `done`.
        preflight: The checks made before the attacks.
        probe: What the probe measured; None before it was made, and for suites without one.
        probe_cost: What the probe cost.
        flags: What speaks against believing the numbers.
        diagnostics: What was measured on the records, flagged or not.
        ledger: What each stage broke and cost.
        verdict: The level A, B or C with its reasons and what to do next.
        energy: Estimated energy in microjoule per image, by accounting convention.
        activity_images: Images whose spikes were counted.
        diagnosed_again: What is to be said of a diagnosis that was taken again; never on disk.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    format: str = FORMAT
    identity: str = ""
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
    activity_images: int | None = None
    diagnosed_again: str = ""

    @property
    def done(self) -> bool:
        """Whether the run came to its end."""
        return self.status == DONE

    @property
    def level(self) -> str:
        """`A`, `B` or `C`; empty for a run that says nothing of it."""
        return str(self.verdict.get("level") or "")

    def but(self, **changes: Any) -> Manifest:
        """The same manifest with other values of some fields, checked as when it is read."""
        return Manifest.model_validate({**dict(self), **changes})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a run folder.

    Raises:
        InputError: There is none, it is damaged, or it is of another layout.
    """
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): run the evaluation again, or name another folder."
        ) from None
    if not isinstance(found, dict) or found.get("format", FORMAT) != FORMAT:
        raise InputError(f"{folder} holds no run of this version: name another folder.")
    try:
        return Manifest.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {field}: {first['msg']}; run the evaluation again.") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a run folder, whole or not at all."""
    held = {name: value for name, value in manifest if name != "diagnosed_again"}
    text = json.dumps(held, indent=2, ensure_ascii=False)
    write_atomically(folder / MANIFEST, (text + "\n").encode())
