"""The options that commands share; those of a request are in `robustsnn.evaluation.options`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from robustsnn.common.process import MOST_THREADS
from robustsnn.errors import InputError
from robustsnn.evaluation.options import options

MODEL = "A zoo name, a checkpoint folder, or python.module:factory."


def models_that_ship(incomplete: str) -> list[str]:
    """The names of models that begin with a text, for shell completion.

    Examples:
        >>> models_that_ship("fashion-mnist/vgg5-ann")[0]
        'fashion-mnist/vgg5-ann'
    """
    from robustsnn.models.zoo import zoo_names

    return [name for name in zoo_names() if name.startswith(incomplete)]


def suites_that_ship(incomplete: str) -> list[str]:
    """The names of suites that begin with a text, for shell completion.

    Examples:
        >>> suites_that_ship("stan")
        ['standard']
    """
    from robustsnn.common.content import folder

    names = sorted(path.stem for path in (folder("attacks") / "suites").glob("*.yaml"))
    return [name for name in names if name.startswith(incomplete)]


def attacks_that_ship(incomplete: str) -> list[str]:
    """The names of attacks that begin with a text, for shell completion."""
    from robustsnn.adversary.catalogue import attack_names

    return [name for name in attack_names() if name.startswith(incomplete)]


def attacks_and_suites(incomplete: str) -> list[str]:
    """The names of attacks and suites that begin so, for shell completion."""
    return list(dict.fromkeys([*attacks_that_ship(incomplete), *suites_that_ship(incomplete)]))


def data_sets(incomplete: str) -> list[str]:
    """The names of data sets that begin so, for shell completion."""
    from robustsnn.data.catalogue import NAMES

    return [name for name in NAMES if name.startswith(incomplete)]


def norms(incomplete: str) -> list[str]:
    """The norms that begin so, for shell completion."""
    from robustsnn.common.kinds import NORMS

    return [name for name in NORMS if name.lower().startswith(incomplete.lower())]


def estimators_that_ship(incomplete: str) -> list[str]:
    """The names of gradient estimators that begin with a text, for shell completion."""
    from robustsnn.estimators.catalogue import estimator_names

    return [name for name in estimator_names() if name.startswith(incomplete)]


_COMPLETED = {
    "data": data_sets,
    "norm": norms,
    "suite": suites_that_ship,
    "attack": attacks_that_ship,
    "estimator": estimators_that_ship,
    "substitute": models_that_ship,
}

Model = Annotated[str, typer.Argument(help=MODEL, autocompletion=models_that_ship)]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        envvar="ROBUSTSNN_DATA",
        help="Folder with the data set [default: the sample that ships].",
    ),
]
Weights = Annotated[Path | None, typer.Option(help="State dict of a python.module:factory.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads [default: torch's choice].")]
FailUnder = Annotated[
    float | None,
    typer.Option(help="Exit 1 if the worst case is below, such as 0.5, or the level is C."),
]
Json = Annotated[bool, typer.Option("--json", help="Results to stdout as JSON, nothing else.")]


def takes_request(
    without: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
    helps: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that gives a command the options of a request, which it receives as `settings`.

    Args:
        without: The names of options that the command does not take.
        defaults: The defaults in place of the options' own, by name.
        helps: The help texts in place of the options' own, by name.
    """
    chosen = {name: one for name, one in options().items() if name not in without}

    def parameter(name: str) -> inspect.Parameter:
        field = chosen[name]
        kind = field.metadata["kind"]
        flags = (f"--{name.replace('_', '-')}",) if kind is bool else ()
        flags = (field.metadata["flag"],) if "flag" in field.metadata else flags
        default = (defaults or {}).get(name, field.default)
        return inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if default == () else default,
            annotation=Annotated[
                kind,
                typer.Option(
                    *flags,
                    help=(helps or {}).get(name, field.metadata["help"]),
                    envvar=field.metadata.get("variable"),
                    autocompletion=_COMPLETED.get(name),
                ),
            ],
        )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapped(**given: Any) -> None:
            settings = {name: given.pop(name) for name in chosen}
            if settings.get("attack", ()) is None:
                settings["attack"] = ()
            command(settings=settings, **given)

        parameters: list[inspect.Parameter] = []
        for own in inspect.signature(command, eval_str=True).parameters.values():
            if own.name == "settings":
                parameters += map(parameter, chosen)
            else:
                parameters.append(own.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        del wrapped.__wrapped__
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapped

    return decorate


def parsed_settings(texts: list[str]) -> dict[str, Any]:
    """The settings of `--set field=value`, with values read as YAML.

    Raises:
        InputError: A text is not a setting, or its value is not YAML.

    Examples:
        >>> parsed_settings(["epochs=1", "loss=margin"])
        {'epochs': 1, 'loss': 'margin'}
    """
    import yaml

    found: dict[str, Any] = {}
    for text in texts:
        field, equals, value = text.partition("=")
        if not equals or not field:
            raise InputError(f"--set {text!r} is not a setting: write field=value.")
        try:
            found[field] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--set {text!r}: the value is not YAML.") from None
    return found


def use_threads(threads: int | None) -> None:
    """Let torch use that many CPU threads; None leaves the number as it is.

    Raises:
        InputError: The number is below 1, or above that of any machine.
    """
    if threads is None:
        return
    if not 1 <= threads <= MOST_THREADS:
        raise InputError(
            f"--threads {threads}: give a whole number of at least 1 and at most {MOST_THREADS}."
        )
    import torch

    torch.set_num_threads(threads)
