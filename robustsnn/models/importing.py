"""Checkpoints of other projects, read without running code from them."""

from __future__ import annotations

from pathlib import Path

from robustsnn.common.files import check_output, expanded
from robustsnn.data.catalogue import DATASETS
from robustsnn.errors import InputError, unknown

FORMATS = ("hire-snn",)


def check_import(file: Path, timesteps: int, output: Path, data: str | None) -> None:
    """Refuse what can be refused without torch; the arguments are those of `import_hire_snn`.

    Raises:
        InputError: There is no such file or data set, no time step, or the output folder is in
            use.
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
        file: The state dict, as `torch.save` wrote it or in safetensors.
        arch: The architecture: `vgg5`, `vgg11` or `vgg16`.
        timesteps: The number of time steps, which the file does not hold.
        normalisation: The normalisation: `cifar10`, `cifar100` or `none`.
        output: The folder of the checkpoint, empty or new.
        data: The data set that the network was trained on; by default the one of the
            normalisation.

    Raises:
        InputError: The file does not hold such a network, or would run code, or an argument is
            wrong.
    """
    file, output = expanded(file), expanded(output)
    check_import(file, timesteps, output, data)
    from robustsnn.models.checkpoint import check_neurons, save_checkpoint
    from robustsnn.models.hire_snn import from_official
    from robustsnn.models.weights import read_state_dict

    network = from_official(read_state_dict(file), arch, timesteps, normalisation)
    check_neurons(network, str(file))
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
