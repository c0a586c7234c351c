"""One request: everything that a user can ask of an evaluation, checked without torch.

A new option is a field here: the command line and the functions of the door take theirs from it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustsnn.common.files import check_output
from robustsnn.data.catalogue import NAMES
from robustsnn.data.datasets import load_dataset
from robustsnn.errors import InputError, unknown
from robustsnn.estimators.catalogue import check_estimator
from robustsnn.evaluation.suites import Suite, load_suite, suite_of
from robustsnn.models.zoo import zoo_folder
from robustsnn.records.schema import COMPARISON, MANIFEST

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robustsnn.data.images import Images
    from robustsnn.models.subject import Subject

    Model = nn.Module | str | Path | Subject
    Data = Images | tuple[Tensor, Tensor] | str | None

DEVICE = re.compile(r"cpu|mps|cuda(:\d+)?")


def _option(default: Any, kind: Any, text: str, **more: Any) -> Any:
    """A field that is also an option of the command line.

    Args:
        default: Its default.
        kind: The type that the command line reads it as.
        text: What `--help` says of it.
        more: `flag`, its name where that is not the field's; `variable`, of the environment.
    """
    return field(default=default, metadata={"kind": kind, "help": text, **more})


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked of an evaluation; it checks itself, without torch, when it is made.

    Args:
        models: The models: zoo names, checkpoint folders, `python.module:factory`, or networks in
            memory, which are copied before they are attacked. The first is the baseline.
        data: A data set, its name, or images `[n, channel, height, width]` in [0, 1] with labels
            `[n]`; by default what the first model was trained on.
        data_root: The folder that holds the data set; by default the sample that ships.
        download: Whether missing data are fetched to `data_root`.
        samples: How many of the first images; None for all.
        suite: A suite, its name or its YAML file; by default `quick`.
        attack: Specifications of attacks in place of a suite.
        estimator: What takes the place of every entry's gradient estimator.
        norm: `Linf` or `L2` in place of the suite's.
        epsilon: A size or several in place of the suite's, in pixel units, such as `8/255`.
        substitute: The model that a black-box attacker crafts on.
        weights: The state dict of a `python.module:factory`.
        seed: The seed of every draw.
        device: Where to compute.
        batch_size: Images of a forward pass; by default what suits the network.
        recompute: Time steps between two membranes that a gradient keeps: less memory on long
            sequences for a second forward pass. None keeps all.
        threads: CPU threads; None for torch's choice.
        save_images: Whether every adversarial image is kept, for `verify`.
        allow_code: Whether the Python files that a suite file names may be run.
        name: What to call a network in memory.

    Raises:
        InputError: Something asked for cannot be right.

    Examples:
        >>> Request.of("fashion-mnist/vgg5-snn", suite="quick", samples=20).chosen.name
        'quick'
    """

    models: tuple[Model, ...]
    data: Data = _option(None, str | None, "Data set [default: the model's own].")
    data_root: Path | None = _option(
        None,
        Path | None,
        "Folder with the data set [default: the sample that ships].",
        variable="ROBUSTSNN_DATA",
    )
    download: bool = _option(False, bool, "Fetch missing data to --data-root.")
    samples: int | None = _option(None, int | None, "The first N images [default: all].")
    suite: Suite | str | Path | None = _option(
        None, str | None, "standard, light, quick, curve, ..., or a YAML file [default: quick]."
    )
    attack: Sequence[str] = _option(
        (),
        list[str] | None,
        "NAME[:field=value,...] or FILE.py in place of a suite; repeatable.",
    )
    estimator: str | None = _option(
        None,
        str | None,
        "NAME[:field=value,...] or FILE.py in place of each entry's gradient estimator.",
    )
    norm: str | None = _option(None, str | None, "Linf or L2 [default: the suite's].")
    epsilon: str | None = _option(
        None, str | None, "Such as 8/255; several with commas [default: the suite's]."
    )
    substitute: Model | None = _option(
        None, str | None, "Model of a black-box attacker [default: the one the model names]."
    )
    weights: Path | None = _option(None, Path | None, "State dict of a python.module:factory.")
    seed: int = _option(0, int, "Seed of every draw.")
    device: str = _option("cpu", str, "cpu, cuda, cuda:N or mps.")
    batch_size: int | None = _option(
        None, int | None, "Images per forward pass [default: what suits the network]."
    )
    recompute: int | None = _option(
        None, int | None, "Time steps a segment: less memory on long sequences, more time."
    )
    threads: int | None = _option(None, int | None, "CPU threads [default: torch's choice].")
    save_images: bool = _option(False, bool, "Keep every adversarial image, for verify.")
    allow_code: bool = _option(
        False, bool, "Run the Python files that a suite file names; they are listed first."
    )
    name: str | None = None

    @classmethod
    def of(
        cls,
        model: Model,
        data: Data = None,
        suite: Suite | str | Path | None = None,
        **settings: Any,
    ) -> Request:
        """The request about one model.

        Args:
            model: The model.
            data: As the field.
            suite: As the field.
            **settings: The other fields.
        """
        return cls((model,), data=data, suite=suite, **settings)

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("no model given: name at least one, such as fashion-mnist/vgg5-snn.")
        _at_least("--threads", self.threads, 1)
        _at_least("--batch-size", self.batch_size, 1)
        _at_least("--recompute", self.recompute, 1)
        _at_least("--samples", self.samples, 1)
        if not 0 <= self.seed < 2**63:
            raise InputError(
                f"--seed {self.seed}: give a whole number of at least 0 and below 2^63."
            )
        if not DEVICE.fullmatch(self.device):
            raise InputError(f"no device {self.device!r}: choose cpu, cuda, cuda:N or mps.")
        _ = self.chosen
        if isinstance(self.data, str) and self.data not in NAMES:
            raise unknown("data set", self.data, NAMES)
        for model in (*self.models, *([self.substitute] if self.substitute else [])):
            trained_on(model)

    @cached_property
    def chosen(self) -> Suite:
        """The suite that is asked for, at its norm and sizes and with its estimators."""
        suite = self._suite()
        if self.estimator is None:
            return suite
        check_estimator(self.estimator)
        return suite.under(self.estimator)

    def _suite(self) -> Suite:
        if not self.attack:
            if isinstance(self.suite, Suite):
                return self.suite.at(self.norm, self.epsilon)
            suite = load_suite(self.suite or "quick", allow_code=self.allow_code)
            return suite.at(self.norm, self.epsilon)
        if self.suite is not None:
            raise InputError("--suite and --attack exclude each other: drop one.")
        if self.norm not in (None, "Linf") and self.epsilon is None:
            raise InputError(f"--norm {self.norm} needs an epsilon too: add --epsilon.")
        given = {"norm": self.norm, "epsilon": self.epsilon}
        return suite_of(self.attack, **{k: v for k, v in given.items() if v is not None})

    @cached_property
    def images(self) -> Data:
        """The images, where a name tells which; else what was given.

        Raises:
            InputError: There is no such data set, or it is not where it should be.
        """
        if self.data is not None and not isinstance(self.data, str):
            return self.data
        name = self.data or trained_on(self.models[0])
        if name is None:
            return None
        return load_dataset(name, self.data_root, samples=self.samples, download=self.download)

    def check(self, output: Path | None) -> None:
        """Look at everything that can be looked at before torch is there.

        Args:
            output: The folder that the results are to be written to, if one was named.

        Raises:
            InputError: The folder belongs to somebody else, or the images are not there.
        """
        if output is not None:
            check_output(output, MANIFEST, COMPARISON)
        # Where a name tells which images they are, they are looked for now.
        _ = self.images

    def but(self, **changes: Any) -> Request:
        """The same request with other values of some fields."""
        return dataclasses.replace(self, **changes)


def options() -> dict[str, dataclasses.Field[Any]]:
    """The fields of a request that are options of the command line, by name."""
    return {f.name: f for f in dataclasses.fields(Request) if "help" in f.metadata}


def trained_on(model: object) -> str | None:
    """The data set that a model says it was trained on, if that can be read without torch.

    Raises:
        InputError: There is no model of that name.
    """
    if not isinstance(model, str | Path):
        meta = getattr(model, "meta", None)
        found = meta.get("data") if isinstance(meta, Mapping) else None
        return found if found in NAMES else None
    path = Path(model)
    if ":" in str(model) and not path.exists():
        return None
    folder = path if path.exists() else zoo_folder(str(model))
    try:
        found = json.loads((folder / "model.json").read_text(encoding="utf-8")).get("data")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return found if found in NAMES else None


def _at_least(option: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise InputError(f"{option} {value}: give a whole number of at least {least}.")
