"""The command that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustsnn.cli.app import app
from robustsnn.cli.options import DataRoot, Device, Threads, parsed_settings, use_threads
from robustsnn.errors import InputError


@app.command(short_help="Train the checkpoint that a recipe describes.")
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML that says how the checkpoint comes to be.")],
    data_root: DataRoot = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the run [default: training-runs/<name>].")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last finished epoch.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="field=value in place of the recipe's, such as epochs=1."),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch missing data to --data-root.")
    ] = False,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Train the checkpoint that a recipe describes."""
    if not recipe.is_file():
        raise InputError(f"no recipe {recipe}: give the path of a recipe.yaml.")
    overrides = parsed_settings(settings or [])
    from robustsnn.common.strict_yaml import read_yaml

    read_yaml(recipe)  # malformed YAML is reported before torch is imported
    from robustsnn.evaluation.plan import check_device
    from robustsnn.training.run import train as train_recipe

    check_device(device)
    use_threads(threads)
    print(
        train_recipe(
            recipe,
            data_root,
            output,
            resume=resume,
            overrides=overrides or None,
            device=device,
            download=download,
        )
    )
