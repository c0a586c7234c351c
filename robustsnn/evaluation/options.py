"""The options of an evaluation, stated once; nothing heavy is imported for them.

A new option is one field here: the command line and the functions of `robustsnn` take their options
from these fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import nn

    from robustsnn.data.images import Images
    from robustsnn.evaluation.suites import Suite
    from robustsnn.models.subject import Subject

Model: TypeAlias = "nn.Module | str | Path | Subject | Named"
#: Images with labels are a pair, a DataLoader, a Dataset or a list of pairs, which have no type in
#: common; `evaluation.given` reads them.
Data: TypeAlias = "Images | str | Path | Any | None"


@dataclass(frozen=True)
class Named:
    """A model under the name that records and pages give it.

    Args:
        name: The name.
        model: The model.
    """

    name: str
    model: Any


def _cli(kind: Any, text: str, **more: Any) -> dict[str, Any]:
    """The metadata by which the command line makes an option of a field.

    Args:
        kind: The type that the option is read as.
        text: The help text of the option.
        more: `variable`, the environment variable that the value may come from; `flag`, the flag
            where it is not the name of the field.
    """
    return {"kind": kind, "help": text, **more}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What can be asked of an evaluation of any model.

    Args:
        data: A data set, its name, or images in [0, 1] with labels: a pair of tensors, arrays or
            lists, a DataLoader, a Dataset or Subset, or a list of pairs. A path is that of images
            in class folders. By default the data set that the first model was trained on.
        data_root: The folder that holds the data set; by default the sample that ships.
        download: Whether missing data are fetched to `data_root`.
        samples: The number of images, from the first one on; None for all.
        suite: A suite, its name or its YAML file; by default `quick`.
        attack: One or several attacks in place of a suite: specifications such as `pgd:steps=20`,
            paths of files, or attacks that lie in a file.
        estimator: The estimator that takes the place of every entry's gradient estimator.
        norm: The norm in place of the suite's: `Linf` or `L2`, inf or 2.
        epsilon: A size or several in place of the suite's, in pixel units: a number, a text such
            as `8/255`, or a list of these.
        substitute: The model that a black-box attacker crafts on.
        weights: The state dict of a `python.module:factory`.
        seed: The seed of every draw.
        device: The device that computes.
        batch_size: The number of images in a forward pass; by default one that suits the network.
        recompute: The number of time steps between two membranes that are kept for a gradient;
            long sequences then need less memory and a second forward pass. None keeps all.
        threads: The number of CPU threads; None for torch's choice.
        save_images: Whether every adversarial image is kept, for `verify`.
        energy: Whether the synaptic operations of every clean image and every proposal are
            counted, as in suites that ask for it.
        allow_code: Whether the Python files that a suite file names may be run.
        source: Where the neurons of a network come from: `auto` recognises those of other
            libraries, so that estimators reach them; `none` leaves them alone, with a caution.
        name: The name of a network in memory.
    """

    data: Data = field(
        default=None, metadata=_cli(str | None, "Data set [default: the model's own].")
    )
    data_root: Path | str | None = field(
        default=None,
        metadata=_cli(
            Path | None,
            "Folder with the data set [default: the sample that ships].",
            variable="ROBUSTSNN_DATA",
        ),
    )
    download: bool = field(default=False, metadata=_cli(bool, "Fetch missing data to --data-root."))
    samples: int | None = field(
        default=None, metadata=_cli(int | None, "The first N images [default: all].")
    )
    suite: Suite | str | Path | None = field(
        default=None,
        metadata=_cli(
            str | None, "standard, light, quick, curve, ..., or a YAML file [default: quick]."
        ),
    )
    attack: Sequence[Any] | str | Path | Any = field(
        default=(),
        metadata=_cli(
            list[str] | None, "NAME[:field=value,...] or FILE.py in place of a suite; repeatable."
        ),
    )
    estimator: str | None = field(
        default=None,
        metadata=_cli(
            str | None,
            "NAME[:field=value,...] or FILE.py in place of each entry's gradient estimator.",
        ),
    )
    norm: str | float | None = field(
        default=None, metadata=_cli(str | None, "Linf or L2 [default: the suite's].")
    )
    epsilon: str | float | Sequence[Any] | None = field(
        default=None,
        metadata=_cli(str | None, "Such as 8/255; several with commas [default: the suite's]."),
    )
    substitute: Model | None = field(
        default=None,
        metadata=_cli(
            str | None, "Model of a black-box attacker [default: the one the model names]."
        ),
    )
    weights: Path | str | None = field(
        default=None, metadata=_cli(Path | None, "State dict of a python.module:factory.")
    )
    seed: int = field(default=0, metadata=_cli(int, "Seed of every draw."))
    device: str = field(default="cpu", metadata=_cli(str, "cpu, cuda, cuda:N or mps."))
    batch_size: int | None = field(
        default=None,
        metadata=_cli(int | None, "Images per forward pass [default: what suits the network]."),
    )
    recompute: int | None = field(
        default=None,
        metadata=_cli(
            int | None, "Time steps a segment: less memory on long sequences, more time."
        ),
    )
    threads: int | None = field(
        default=None, metadata=_cli(int | None, "CPU threads [default: torch's choice].")
    )
    save_images: bool = field(
        default=False, metadata=_cli(bool, "Keep every adversarial image, for verify.")
    )
    energy: bool = field(
        default=False,
        metadata=_cli(bool, "Count the synaptic operations of each image, for worst-case energy."),
    )
    allow_code: bool = field(
        default=False,
        metadata=_cli(bool, "Run the Python files that a suite file names; they are listed first."),
    )
    source: str = field(
        default="auto",
        metadata=_cli(
            str, "none leaves the neurons of other libraries alone [default: auto].", flag="--from"
        ),
    )
    name: str | None = None


def options() -> dict[str, dataclasses.Field[Any]]:
    """The fields that are options of the command line, by name.

    Examples:
        >>> options()["samples"].metadata["help"]
        'The first N images [default: all].'
    """
    return {f.name: f for f in dataclasses.fields(Options) if "help" in f.metadata}
