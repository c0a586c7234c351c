"""The application to which every command belongs."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    help="How robust is this spiking neural network, and can the number be believed?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        print(importlib.metadata.version("robustsnn"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """How robust is this spiking neural network, and can the number be believed?"""
