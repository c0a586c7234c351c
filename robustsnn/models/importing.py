"""Checkpoints of other projects, read without running code from them."""

from __future__ import annotations

from pathlib import Path

from robustsnn.common.files import check_output
from robustsnn.data.catalogue import DATASETS
from robustsnn.errors import InputError, unknown

FORMATS = ("hire-snn",)


def check_import(file: Path, timesteps: int, output: Path, data: str | None) -> None:
    """Refuse what needs no torch to be refused.

    Raises:
        InputError: No such file or data set, no time step, or an output folder in use.
    """
    if not file.is_file():
        raise InputError(f"no file {file}: name a state dict.")
    if timesteps < 1:
        raise InputError(f"--timesteps {timesteps}: give a whole number of at least 1.")
    if data is not None and data not in DATASETS:
        raise unknown("data set", data, DATASETS)
    check_output(output)


def import_hire_snn(
    file: Path,
    arch: str,
    timesteps: int,
    normalisation: str,
    output: Path,
    data: str | None = None,
) -> Path:
    """Write an official HIRE-SNN state dict as a checkpoint folder, and return it.

    Args:
        file: A state dict as `torch.save` wrote it, or safetensors.
        arch: `vgg5`, `vgg11` or `vgg16`.
        timesteps: Time steps; the file does not hold them.
        normalisation: `cifar10`, `cifar100` or `none`.
        output: An empty or new folder.
        data: The data set that it was trained on; by default what the normalisation says.

    Raises:
        InputError: The file does not hold such a network, or would run code.
    """
    check_import(file, timesteps, output, data)
    from robustsnn.models.checkpoint import read_state_dict, save_checkpoint
    from robustsnn.models.hire_snn import from_official

    network = from_official(read_state_dict(file), arch, timesteps, normalisation)
    data = data or (normalisation if normalisation in DATASETS else "")
    known = DATASETS.get(data)
    if known is not None and known.classes != network.classes:
        raise InputError(
            f"{file} tells {network.classes} classes apart, {data} has {known.classes}: name the "
            "data set it was trained on with --data."
        )
    names = known.class_names if known else tuple(map(str, range(network.classes)))
    provenance = {"imported": "hire-snn", "file": file.name, "normalisation": normalisation}
    save_checkpoint(network, output, data=data, class_names=names, provenance=provenance)
    return output
