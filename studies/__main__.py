"""The command line, `python -m studies`: studies of what the published numbers rest on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from robustsnn.common.process import keep_freed_memory, let_idle_threads_sleep
from robustsnn.errors import InputError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

DataRootOption = Annotated[
    Path | None, typer.Option(envvar="ROBUSTSNN_DATA", help="Folder of the data sets' folders.")
]
OnlyOption = Annotated[str | None, typer.Option(help="Networks, separated by commas.")]
OutputOption = Annotated[Path, typer.Option(help="Folder of the tables and figures.")]
RunsOption = Annotated[
    Path, typer.Option(help="Folder of the run folders; finished runs in it are not run again.")
]
TablesOnlyOption = Annotated[
    bool, typer.Option(help="Run nothing, and write the tables of what is finished.")
]


@app.command()
def soundness(
    data_root: DataRootOption = None,
    only: OnlyOption = None,
    samples: Annotated[
        int | None, typer.Option(help="Images of each network [default: 200, some 1000].")
    ] = None,
    suites: Annotated[
        str | None, typer.Option(help="Suites, separated by commas [default: all four].")
    ] = None,
    output: OutputOption = Path("docs/results/soundness"),
    runs: RunsOption = Path("runs/soundness"),
    tables_only: TablesOnlyOption = False,
) -> None:
    """Compare `standard` with every peer and estimator on the networks that ship."""
    from studies.shared import NETWORKS, SAMPLES
    from studies.soundness import study
    from studies.soundness.page import write

    names = chosen("--only", only, NETWORKS)
    parts = chosen("--suites", suites, (study.OURS, *study.OTHERS))
    found = [
        study.study(
            name,
            NETWORKS.get(name, SAMPLES) if samples is None else samples,
            runs,
            parts,
            data_root=data_root,
            kept=output / "records",
            say=say,
            finished_only=tables_only,
        )
        for name in names
    ]
    table = write(found, output, "python -m studies soundness")
    say(f"{output / 'soundness.md'} is written, with {len(table)} rows.")


@app.command()
def stages(
    data_root: DataRootOption = None,
    only: OnlyOption = None,
    samples: Annotated[int, typer.Option(help="Training images of each network.")] = 200,
    output: OutputOption = Path("docs/results/stages"),
    runs: RunsOption = Path("runs/stages"),
    tables_only: TablesOnlyOption = False,
) -> None:
    """Try, on training images, what could be a stage of `standard`."""
    from studies.stages import study
    from studies.stages.page import write

    names = chosen("--only", only, study.NETWORKS)
    found = [
        study.study(name, runs, samples, data_root=data_root, say=say, finished_only=tables_only)
        for name in names
    ]
    table = write(found, output, "python -m studies stages")
    say(f"{output / 'stages.md'} is written, with {len(table)} rows.")


@app.command()
def stability(
    data_root: DataRootOption = None,
    parts: Annotated[
        str | None, typer.Option(help="Parts, separated by commas [default: all].")
    ] = None,
    only: OnlyOption = None,
    samples: Annotated[
        int | None, typer.Option(help="Images of each network [default: those of the part].")
    ] = None,
    output: OutputOption = Path("docs/results/stability"),
    runs: RunsOption = Path("runs/stability"),
    tables_only: TablesOnlyOption = False,
) -> None:
    """Ask whether the number of `standard` is stable where it has to be."""
    from studies.stability import study
    from studies.stability.page import write

    found = study.studies(
        list(study.PARTS) if parts is None else parts.split(","),
        runs,
        None if only is None else only.split(","),
        samples,
        data_root=data_root,
        say=say,
        finished_only=tables_only,
    )
    table = write(found, output, "python -m studies stability")
    say(f"{output / 'stability.md'} is written, with {len(table)} rows.")


@app.command()
def combined(
    data_root: DataRootOption = None,
    only: OnlyOption = None,
    samples: Annotated[int, typer.Option(help="Images of each network.")] = 50,
    passes: Annotated[str, typer.Option(help="Passes of each image, separated by commas.")] = (
        "300,1000,5000"
    ),
    output: OutputOption = Path("docs/results/combined"),
    runs: RunsOption = Path("runs/combined"),
    tables_only: TablesOnlyOption = False,
) -> None:
    """Compare gradients with search by score, and combinations of both, at equal passes."""
    from studies.combined import study
    from studies.combined.page import write

    names = chosen("--only", only, study.NETWORKS)
    budgets = [number("--passes", one) for one in passes.split(",")]
    found = [
        study.study(
            name, runs, budgets, samples, data_root=data_root, say=say, finished_only=tables_only
        )
        for name in names
    ]
    table = write(found, output, "python -m studies combined")
    say(f"{output / 'combined.md'} is written, with {len(table)} rows.")


@app.command()
def hosnn(
    data_root: DataRootOption = None,
    only: OnlyOption = None,
    samples: Annotated[int, typer.Option(help="Images of each network.")] = 1000,
    images: Annotated[
        int | None, typer.Option(help="Training images of each network [default: all].")
    ] = None,
    output: OutputOption = Path("docs/results/hosnn"),
    runs: RunsOption = Path("runs/hosnn"),
    tables_only: TablesOnlyOption = False,
) -> None:
    """Train a small HoSNN and its plain twin, and attack both where spikes flip."""
    from studies.hosnn import study
    from studies.hosnn.page import write

    rows = []
    for name in [] if tables_only else chosen("--only", only, study.NETWORKS):
        if data_root is None:
            raise InputError("the study trains networks: name the data sets by --data-root.")
        folder = data_root / "fashion_mnist"
        where = folder if folder.is_dir() else data_root
        rows += study.study(name, study.trained(name, runs, where, images, say), samples, runs)
    table = write(rows, output, "python -m studies hosnn")
    say(f"{output / 'hosnn.md'} is written, with {len(table)} rows.")


def say(text: str) -> None:
    """Print progress on stderr."""
    typer.echo(text, err=True)


@app.command()
def sparsity(
    data_root: DataRootOption = None,
    only: OnlyOption = None,
    samples: Annotated[int, typer.Option(help="Images of each network.")] = 500,
    suites: Annotated[
        str | None, typer.Option(help="Suites, separated by commas [default: all three].")
    ] = None,
    output: OutputOption = Path("docs/results/sparsity"),
    runs: RunsOption = Path("runs/sparsity"),
    tables_only: TablesOnlyOption = False,
) -> None:
    """Compare pruned networks with dense ones: accuracy, robustness, spikes and energy."""
    import pandas as pd

    from studies.sparsity import study
    from studies.sparsity.page import write

    names = chosen("--only", only, study.trained())
    parts = chosen("--suites", suites, study.SUITES)
    table = output / "sparsity.csv"
    earlier = pd.read_csv(table) if table.exists() else None
    asked: dict[str, Any] = {"data_root": data_root, "earlier": earlier, "say": say}
    rows = {
        name: study.study(name, samples, runs, finished_only=True, **asked)
        for name in study.trained()
    }
    write(pd.DataFrame(rows.values()), output, "python -m studies sparsity")
    for name in [] if tables_only else names:
        found = study.study(name, samples, runs, suites=parts, **asked)
        rows[name] = {**rows[name], **found}
        write(pd.DataFrame(rows.values()), output, "python -m studies sparsity")
    say(f"{output / 'sparsity.md'} is written, with {len(rows)} rows.")


@app.command()
def claims(
    data_root: DataRootOption = None,
    only: OnlyOption = None,
    parts: Annotated[
        str | None, typer.Option(help="Parts, separated by commas [default: all].")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="The most images of a run [default: those of its suite].")
    ] = None,
    output: OutputOption = Path("docs/results/claims"),
    runs: RunsOption = Path("runs/claims"),
    tables_only: TablesOnlyOption = False,
) -> None:
    """Print each claim of the talk and what the networks of the zoo show."""
    import pandas as pd

    from studies.claims import study
    from studies.claims.members import present
    from studies.claims.page import write

    asked = study.checked_parts(study.PARTS if parts is None else parts.split(","))
    there = {member.name: member for member in present()}
    names = chosen("--only", only, there)
    table = output / "claims.csv"
    bench = study.Bench(
        runs=runs,
        data_root=data_root,
        earlier=pd.read_csv(table) if table.exists() else None,
        samples=samples,
        say=say,
        finished_only=tables_only,
    )
    for found in study.collected(bench, [there[name] for name in names], asked):
        # After every run, so that one that is stopped leaves a page of what is known by then.
        write(found, output, "python -m studies claims")
    say(f"{output / 'claims.md'} is written.")


@app.command()
def board(
    data_root: DataRootOption = None,
    only: OnlyOption = None,
    samples: Annotated[
        int | None, typer.Option(help="The most images of a run [default: those of its suite].")
    ] = None,
    output: OutputOption = Path("docs/results/board"),
    runs: RunsOption = Path("runs/claims"),
    tables_only: TablesOnlyOption = False,
) -> None:
    """Rank the models that ship: each under `standard`, or under `rand` if it draws."""
    from robustsnn.models.zoo import zoo_names
    from studies.board import study

    names = chosen("--only", only, zoo_names())
    found = study.runs_of(
        names, runs, data_root=data_root, samples=samples, say=say, finished_only=tables_only
    )
    study.write(found, output, Path("zoo/measured.csv"), say)
    say(f"{output / 'index.html'} is written, with {len(found)} runs.")


def chosen(option: str, given: str | None, known: Iterable[str]) -> tuple[str, ...]:
    """The names that an option lists, separated by commas; all known names if it is absent.

    Raises:
        InputError: A name is not known.
    """
    names = tuple(known)
    if given is None:
        return names
    for name in given.split(","):
        if name not in names:
            raise InputError(f"{option} {name}: choose from {', '.join(names)}.")
    return tuple(given.split(","))


def number(option: str, given: str) -> int:
    """A whole number of 1 or more.

    Raises:
        InputError: The text is not such a number.
    """
    if not given.strip().isdecimal() or int(given) < 1:
        raise InputError(f"{option} {given}: give whole numbers of 1 or more, separated by commas.")
    return int(given)


def main() -> None:
    """Run a command, and report a mistake in its options in one line."""
    # Both have their full effect only before torch is imported.
    let_idle_threads_sleep()
    keep_freed_memory()
    try:
        app()
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
