"""The commands that list and show models, attacks, suites, estimators and runs."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from robustsnn.cli.app import app
from robustsnn.cli.options import attacks_and_suites, estimators_that_ship, models_that_ship
from robustsnn.cli.screen import console, print_table
from robustsnn.common.printable import printable
from robustsnn.common.wording import percent
from robustsnn.errors import unknown

zoo_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
attacks_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
estimators_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
runs_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(zoo_app, name="zoo", help="List, show, pull and import models.")
app.add_typer(attacks_app, name="attacks", help="List and show attacks and suites.")
app.add_typer(estimators_app, name="estimators", help="List and show gradient estimators.")
app.add_typer(runs_app, name="runs", help="List runs.")


@zoo_app.command("list", short_help="The models that ship, with what they reach.")
def zoo_list(
    data: Annotated[str | None, typer.Option(help="Only models of this data set.")] = None,
    method: Annotated[str | None, typer.Option(help="Only models of this training.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only ann or snn.")] = None,
) -> None:
    """The models that ship, by data set: training, accuracy, and how many times fewer weights.

    `standard` is what is left under that suite, or under `rand` for a network that draws, with the
    level of the number and the number of images.
    """
    from robustsnn.models.zoo import zoo_names, zoo_summary

    found = {name: zoo_summary(name) for name in zoo_names()}
    sets = {name: name.partition("/")[0] for name in found}
    _keep(found, "data", data, sets)
    _keep(found, "method", method, {name: row["method"] for name, row in found.items()})
    _keep(found, "kind", kind, {name: row["kind"] for name, row in found.items()})
    titles = {
        "architecture": "architecture",
        "kind": "kind",
        "method": "method",
        "time_steps": "steps",
        "accuracy": "clean accuracy",
        "standard": "standard",
        "compression": "fewer weights",
    }
    for title in ("standard", "compression"):
        if not any(summary[title] for summary in found.values()):
            del titles[title]
    for place, one in enumerate(sorted({sets[name] for name in found})):
        if place:
            console().print("")
        rows = [
            (name, *(summary[title] for title in titles))
            for name, summary in found.items()
            if sets[name] == one
        ]
        print_table((one, *titles.values()), rows)


def _keep(
    found: dict[str, dict[str, str]], option: str, wanted: str | None, values: dict[str, str]
) -> None:
    """Drop the models whose value is not the one that an option asks for.

    Raises:
        InputError: No model has that value.
    """
    if wanted is None:
        return
    known = {values[name] for name in found}
    if wanted not in known:
        raise unknown(option, wanted, sorted(known))
    for name in [name for name in found if values[name] != wanted]:
        del found[name]


@zoo_app.command("pull", short_help="Fetch a checkpoint by reference.")
def zoo_pull(
    source: Annotated[str, typer.Argument(help="hf://OWNER/NAME, the URL of a folder, a folder.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder to write [default: the last part of the name].")
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(help="The sha256 that its weights must have.")
    ] = None,
) -> None:
    """Fetch a checkpoint, check that its weights are what it says, and run nothing of it."""
    from robustsnn.models.pull import check_pull, pull

    check_pull(source, output, sha256)
    print(pull(source, output, sha256))


@zoo_app.command("show", short_help="The card of a model.")
def zoo_show(
    name: Annotated[str, typer.Argument(help="A zoo name.", autocompletion=models_that_ship)],
) -> None:
    """The card of a model."""
    from robustsnn.models.zoo import zoo_folder

    folder = zoo_folder(name)
    card = folder / "card.md"
    print((card if card.is_file() else folder / "model.json").read_text(encoding="utf-8").strip())


@zoo_app.command("import", short_help="Read an official state dict into a checkpoint.")
def zoo_import(
    file: Annotated[Path, typer.Argument(help="State dict.")],
    arch: Annotated[str, typer.Option(help="vgg5, vgg11 or vgg16.")],
    timesteps: Annotated[int, typer.Option(help="Time steps; the file does not hold them.")],
    output: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
    format_name: Annotated[str, typer.Option("--format", help="hire-snn.")] = "hire-snn",
    normalisation: Annotated[str, typer.Option(help="cifar10, cifar100 or none.")] = "none",
    data: Annotated[str | None, typer.Option(help="Data set it was trained on.")] = None,
) -> None:
    """Read an official state dict into a checkpoint, without running code from it."""
    from robustsnn.models.importing import FORMATS, check_import

    if format_name not in FORMATS:
        raise unknown("format", format_name, FORMATS)
    check_import(file, timesteps, output, data)
    from robustsnn.models.importing import import_hire_snn

    print(import_hire_snn(file, arch, timesteps, normalisation, output, data))


@attacks_app.command("list", short_help="The attacks and suites that ship.")
def attacks_list() -> None:
    """The attacks and suites that ship, with what they are."""
    from robustsnn.adversary.catalogue import attack_names, attack_summary
    from robustsnn.evaluation.suites import load_suite, suite_names

    print_table(("attack", ""), [(name, attack_summary(name)) for name in attack_names()])
    console().print("")
    print_table(("suite", ""), [(name, load_suite(name).description) for name in suite_names()])


@attacks_app.command("show", short_help="The settings of an attack, or the file of a suite.")
def attacks_show(
    name: Annotated[
        str, typer.Argument(help="An attack or suite.", autocompletion=attacks_and_suites)
    ],
) -> None:
    """The settings of an attack, or the file of a suite."""
    from robustsnn.adversary.catalogue import attack_names
    from robustsnn.evaluation.suites import suite_names, suite_path

    if name in suite_names():
        print(suite_path(name).read_text(encoding="utf-8").strip())
        if name not in attack_names():
            return
        # One name may be that of an attack and of the suite that runs it.
        print()
    if name not in attack_names():
        raise unknown("attack or suite", name, [*attack_names(), *suite_names()])
    from robustsnn.adversary.catalogue import attack_class

    kind: Any = attack_class(name)
    _show(f"{name} ({kind.kind})", kind)


@estimators_app.command("list", short_help="The gradient estimators that ship.")
def estimators_list() -> None:
    """The gradient estimators that ship, with what they are."""
    from robustsnn.estimators.catalogue import estimator_names, estimator_summary

    rows = [(name, estimator_summary(name)) for name in estimator_names()]
    print_table(("estimator", ""), rows)
    console().print(
        "\nBehind any but spsa, draws=20 averages over draws of a stochastic network, and "
        "average=logits takes the gradient of the mean logits.",
        markup=False,
    )


@estimators_app.command("show", short_help="The settings of a gradient estimator.")
def estimators_show(
    name: Annotated[str, typer.Argument(help="An estimator.", autocompletion=estimators_that_ship)],
) -> None:
    """The settings of a gradient estimator."""
    from robustsnn.estimators.catalogue import estimator_names

    if name not in estimator_names():
        raise unknown("gradient estimator", name, estimator_names())
    from robustsnn.estimators.make import estimator_class

    _show(name, estimator_class(name))


@runs_app.command("list", short_help="The runs below a folder, with accuracy and level.")
def runs_list(
    folder: Annotated[Path, typer.Argument(help="Folder with run folders.")] = Path("runs"),
) -> None:
    """The runs in a folder and below it, oldest first: what was attacked, what is left, the level.

    A run that was not finished or that cannot be read is listed too.
    """
    from robustsnn.records.listed import listed_runs

    heads = ("folder", "model", "data", "suite", "images", "seed", "worst case", "level", "started")
    rows = []
    for run in listed_runs(folder):
        name = printable(str(run.folder))
        if run.manifest is None:
            print(f"robustsnn: {name}: {printable(run.trouble)}", file=sys.stderr)
            rows.append((name, *["?"] * (len(heads) - 1)))
            continue
        said = run.manifest
        left = "unfinished" if run.accuracy is None else percent(run.accuracy)
        about = (said.model, said.data, said.suite, str(said.samples), str(said.seed))
        rows.append((name, *about, left, said.level or "–", said.start[:16].replace("T", " ")))
    if not rows:
        print(f"robustsnn: no run below {folder}", file=sys.stderr)
        return
    print_table(heads, rows)


def _show(title: str, kind: Any) -> None:
    """Print the description and the fields of an attack or estimator."""
    print(f"{title}\n\n{inspect.getdoc(kind)}")
    fields = [field for field in dataclasses.fields(kind) if field.init]
    if fields:
        print("\nFields:")
    for field in fields:
        has = field.default is not dataclasses.MISSING
        print(f"  {field.name}: {field.type}{f' = {field.default!r}' if has else ''}")
