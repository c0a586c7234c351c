"""The command line. It parses and prints; everything else, torch included, is imported inside."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsnn.common.process import keep_freed_memory, let_idle_threads_sleep
from robustsnn.errors import InputError, unknown

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    help="How robust is this spiking neural network, and can the number be believed?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
zoo_app = typer.Typer(help="The models that ship.", no_args_is_help=True, rich_markup_mode=None)
attacks_app = typer.Typer(
    help="The attacks and suites that ship.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(zoo_app, name="zoo")
app.add_typer(attacks_app, name="attacks")

MODEL = "A zoo name, a checkpoint folder, or python.module:factory."
Data = Annotated[str | None, typer.Option(help="Data set [default: the model's own].")]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        envvar="ROBUSTSNN_DATA", help="Folder with the data set [default: the bundled sample]."
    ),
]
Download = Annotated[bool, typer.Option("--download", help="Fetch missing data to --data-root.")]
Samples = Annotated[int | None, typer.Option(help="The first N images [default: all].")]
SuiteName = Annotated[
    str | None, typer.Option("--suite", help="standard, light, quick, curve, ..., or a YAML file.")
]
AttackNames = Annotated[
    list[str] | None,
    typer.Option(
        "--attack", help="NAME[:field=value,...] or FILE.py in place of a suite; repeatable."
    ),
]
Norm = Annotated[str | None, typer.Option(help="Linf or L2 [default: the suite's].")]
Epsilon = Annotated[
    str | None, typer.Option(help="Such as 8/255; several with commas [default: the suite's].")
]
Substitute = Annotated[
    str | None, typer.Option(help="Model of a black-box attacker [default: the model's own].")
]
Seed = Annotated[int, typer.Option(help="Of every draw.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")]
BatchSize = Annotated[
    int | None, typer.Option(help="Images per forward pass [default: what suits the network].")
]
Recompute = Annotated[
    int | None,
    typer.Option(help="Time steps a segment: less memory on long sequences, more time."),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads [default: torch's choice].")]
Json = Annotated[bool, typer.Option("--json", help="Results to stdout as JSON, nothing else.")]
SaveImages = Annotated[
    bool, typer.Option("--save-images", help="Keep every adversarial image, for verify.")
]


@app.callback()
def _root() -> None:
    """How robust is this spiking neural network, and can the number be believed?"""


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("runs/demo"),
) -> None:
    """Attack the models that ship on the images that ship: tables, figures and a page."""
    from robustsnn.common.files import check_output
    from robustsnn.records.schema import COMPARISON

    check_output(output, COMPARISON)
    from robustsnn.workflows.demo import demo as run_demo

    with _progress() as progress:
        page = run_demo(output, progress=progress, command=_command())
    _print_page(page)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL)],
    data: Data = None,
    data_root: DataRoot = None,
    download: Download = False,
    samples: Samples = None,
    suite: SuiteName = None,
    attack: AttackNames = None,
    norm: Norm = None,
    epsilon: Epsilon = None,
    substitute: Substitute = None,
    weights: Annotated[
        Path | None, typer.Option(help="State dict of a python.module:factory.")
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    batch_size: BatchSize = None,
    recompute: Recompute = None,
    threads: Threads = None,
    output: Annotated[
        Path | None, typer.Option(help="Run folder [default: runs/<hash>]; resumes or reprints.")
    ] = None,
    json_output: Json = False,
    save_images: SaveImages = False,
) -> None:
    """Attack one model and say what is left of its accuracy."""
    from robustsnn.cli.request import request

    chosen, images = request(
        [model],
        suite=suite,
        attacks=attack or [],
        norm=norm,
        epsilon=epsilon,
        data=data,
        data_root=data_root,
        download=download,
        samples=samples,
        seed=seed,
        device=device,
        batch_size=batch_size,
        recompute=recompute,
        threads=threads,
        substitute=substitute,
        output=output,
    )
    from robustsnn.evaluation.run import prepare, run

    _use_threads(threads)
    plan = prepare(
        model,
        images if images is not None else data,
        chosen,
        data_root=data_root,
        samples=samples,
        substitute=substitute,
        weights=weights,
        seed=seed,
        device=device,
        batch_size=batch_size,
        recompute=recompute,
        save_images=save_images,
    )
    folder = output if output is not None else plan.default_folder
    with _progress() as progress:
        done = run(plan, folder, command=_command(), progress=progress)
    if json_output:
        said = {name: done.manifest.get(name) for name in ("flags", "verdict")}
        _print_json(folder, done.results, **said)
        return
    _print_run(folder)


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(help=MODEL + " The first is the baseline.")],
    data: Data = None,
    data_root: DataRoot = None,
    download: Download = False,
    samples: Samples = None,
    suite: SuiteName = None,
    attack: AttackNames = None,
    norm: Norm = None,
    epsilon: Epsilon = None,
    substitute: Substitute = None,
    seed: Seed = 0,
    device: Device = "cpu",
    batch_size: BatchSize = None,
    recompute: Recompute = None,
    threads: Threads = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of page and runs [default: runs/compare-<hash>].")
    ] = None,
    json_output: Json = False,
    save_images: SaveImages = False,
) -> None:
    """Attack several models on the same images and set them side by side."""
    from robustsnn.cli.request import request

    chosen, images = request(
        models,
        suite=suite,
        attacks=attack or [],
        norm=norm,
        epsilon=epsilon,
        data=data,
        data_root=data_root,
        download=download,
        samples=samples,
        seed=seed,
        device=device,
        batch_size=batch_size,
        recompute=recompute,
        threads=threads,
        substitute=substitute,
        output=output,
    )
    from robustsnn.workflows.compare import compare as run_comparison
    from robustsnn.workflows.report import runs_of

    _use_threads(threads)
    with _progress() as progress:
        page = run_comparison(
            models,
            images if images is not None else data,
            chosen,
            output=output,
            data_root=data_root,
            samples=samples,
            substitute=substitute,
            seed=seed,
            device=device,
            batch_size=batch_size,
            recompute=recompute,
            save_images=save_images,
            progress=progress,
            command=_command(),
        )
    if json_output:
        from robustsnn.records.runs import load_runs

        runs = load_runs(runs_of(page.parent))
        flags = [flag for run in runs.runs for flag in run.flags]
        levels = {run.label: run.reliability for run in runs.runs}
        _print_json(page.parent, runs.results, flags=flags, verdicts=levels)
        return
    _print_page(page)


@app.command()
def crosscheck(
    model: Annotated[str, typer.Argument(help=MODEL)],
    data: Data = None,
    data_root: DataRoot = None,
    download: Download = False,
    samples: Samples = None,
    suite: Annotated[str, typer.Option(help="Ours: a suite or a YAML file.")] = "standard",
    peers: Annotated[str, typer.Option(help="Theirs: a suite or a YAML file.")] = "peers",
    norm: Norm = None,
    epsilon: Epsilon = None,
    weights: Annotated[
        Path | None, typer.Option(help="State dict of a python.module:factory.")
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    batch_size: BatchSize = None,
    threads: Threads = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of both runs [default: runs/crosscheck-<hash>].")
    ] = None,
    json_output: Json = False,
) -> None:
    """Attack one model with our suite and with other libraries: ours must be lowest."""
    from robustsnn.cli.request import request

    chosen, images = request(
        [model],
        suite=suite,
        attacks=[],
        norm=norm,
        epsilon=epsilon,
        data=data,
        data_root=data_root,
        download=download,
        samples=samples,
        seed=seed,
        device=device,
        batch_size=batch_size,
        recompute=None,
        threads=threads,
        substitute=None,
        output=output,
    )
    from robustsnn.workflows.crosscheck.page import frame, sentences, table
    from robustsnn.workflows.crosscheck.run import crosscheck as run_crosscheck
    from robustsnn.workflows.crosscheck.run import peers_suite

    theirs = peers_suite(peers, chosen)
    _use_threads(threads)
    with _progress() as progress:
        found = run_crosscheck(
            model,
            images if images is not None else data,
            chosen,
            theirs,
            data_root=data_root,
            samples=samples,
            weights=weights,
            seed=seed,
            device=device,
            batch_size=batch_size,
            output=output,
            progress=progress,
            command=_command(),
        )
    if json_output:
        _print_json(
            found.folder,
            frame(found.rows),
            lowest=found.lowest,
            against=list(found.against),
            left_out=list(found.left_out),
        )
        return
    console = _console()
    for one in table(found.rows):
        console.print(one)
    for sentence in [*sentences(found.rows), *(f"left out: {text}" for text in found.left_out)]:
        console.print(sentence, markup=False)
    print(found.folder / "crosscheck.md")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders or comparisons.")],
    output: Annotated[
        Path | None, typer.Option(help="Where to [default: the one run's folder, or runs/report].")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Model to compare with [default: the first].")
    ] = None,
) -> None:
    """Write tables, figures and one page about finished runs."""
    from robustsnn.workflows.report import report as write_report

    page = write_report(runs, output, baseline)
    print(page)


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    model: Annotated[str | None, typer.Option(help="Where its model lies now.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="State dict of a python.module:factory.")
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Score a run's saved images again with the model read anew; exit 1 if they disagree.

    At most 0.5 % of the verdicts may differ, as a spike at its threshold flips with the machine.
    """
    if not run.is_dir():
        raise InputError(f"no run folder {run}: name the folder of a finished evaluation.")
    from robustsnn.workflows.verify import verify as score_again

    _use_threads(threads)
    found = score_again(run, model=model, weights=weights, device=device)
    print(found.sentence)
    for image, threat in found.differing[:20]:
        print(f"  image {image}: {threat}")
    raise typer.Exit(0 if found.passed else 1)


@app.command()
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
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Train the checkpoint that a recipe describes."""
    if not recipe.is_file():
        raise InputError(f"no recipe {recipe}: give the path of a recipe.yaml.")
    overrides = _settings(settings or [])
    from robustsnn.common.strict_yaml import read_yaml

    read_yaml(recipe)  # malformed YAML is told before torch is there
    from robustsnn.evaluation.run import check_device
    from robustsnn.training import train_recipe

    check_device(device)
    _use_threads(threads)
    print(
        train_recipe(
            recipe, data_root, output, resume=resume, overrides=overrides or None, device=device
        )
    )


@zoo_app.command("list")
def zoo_list() -> None:
    """The models that ship, with their data and clean accuracy."""
    from rich.table import Table

    from robustsnn.models.zoo import zoo_names, zoo_summary

    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("model", "architecture", "kind", "time steps", "clean accuracy"):
        table.add_column(head)
    for name in zoo_names():
        row = zoo_summary(name)
        table.add_row(name, row["architecture"], row["kind"], row["time_steps"], row["accuracy"])
    _console().print(table)


@zoo_app.command("show")
def zoo_show(name: Annotated[str, typer.Argument(help="A zoo name.")]) -> None:
    """The card of a model."""
    from robustsnn.models.zoo import zoo_folder

    folder = zoo_folder(name)
    card = folder / "card.md"
    print((card if card.is_file() else folder / "model.json").read_text(encoding="utf-8").strip())


@zoo_app.command("import")
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


@attacks_app.command("list")
def attacks_list() -> None:
    """The attacks and suites that ship, with what they are."""
    from rich.table import Table

    from robustsnn.adversary.catalogue import attack_names, attack_summary
    from robustsnn.evaluation.suites import load_suite, suite_names

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("attack")
    table.add_column("")
    for name in attack_names():
        table.add_row(name, attack_summary(name))
    suites = Table(box=None, padding=(0, 2, 0, 0))
    suites.add_column("suite")
    suites.add_column("")
    for name in suite_names():
        suites.add_row(name, load_suite(name).description)
    _console().print(table, "", suites)


@attacks_app.command("show")
def attacks_show(name: Annotated[str, typer.Argument(help="An attack or suite.")]) -> None:
    """The settings of an attack, or the file of a suite."""
    from robustsnn.adversary.catalogue import attack_names
    from robustsnn.evaluation.suites import suite_names, suite_path

    if name in suite_names():
        print(suite_path(name).read_text(encoding="utf-8").strip())
        return
    if name not in attack_names():
        raise unknown("attack or suite", name, [*attack_names(), *suite_names()])
    import dataclasses
    import inspect

    from robustsnn.adversary.catalogue import attack_class

    kind: Any = attack_class(name)
    print(f"{name} ({kind.kind})\n\n{inspect.getdoc(kind)}")
    fields = dataclasses.fields(kind)
    if fields:
        print("\nFields:")
    for field in fields:
        has = field.default is not dataclasses.MISSING
        print(f"  {field.name}: {field.type}{f' = {field.default!r}' if has else ''}")


def main() -> None:
    """Run the command line: exit 0 done, 1 not verified, 2 bad input, 130 interrupted."""
    keep_freed_memory()
    let_idle_threads_sleep()
    sys.exit(_main(sys.argv[1:]))


def _main(arguments: list[str]) -> int:
    command: Any = typer.main.get_command(app)
    try:
        code = command(args=arguments, prog_name="robustsnn", standalone_mode=False)
    except InputError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        # Usage errors are of a class that differs between Typer's releases.
        if type(error).__name__ == "Abort":
            code = 130
        elif type(error).__name__ == "NoArgsIsHelpError":
            print(error)
            return 0
        elif not hasattr(error, "format_message"):
            raise
        else:
            return _fail(_usage(error))
    if code == 130:
        print(
            "robustsnn: interrupted; finished batches are kept: the same command resumes.",
            file=sys.stderr,
        )
    return int(code or 0)


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "robustsnn"
    return f"{str(error.format_message()).rstrip('.')}. See {path} --help."


def _fail(message: str) -> int:
    print(f"robustsnn: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _command() -> list[str]:
    return ["robustsnn", *sys.argv[1:]]


def _settings(texts: list[str]) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = {}
    for text in texts:
        field, equals, value = text.partition("=")
        if not equals or not field:
            raise InputError(f"--set {text!r} is no setting: write field=value.")
        try:
            found[field] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--set {text!r}: the value is not YAML.") from None
    return found


def _use_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        if threads < 1:
            raise InputError(f"--threads {threads}: give a whole number of at least 1.")
        torch.set_num_threads(threads)


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Progress on stderr: a bar in a terminal, elsewhere a line whenever something new begins."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        last = ""

        def line(what: str, done: int, total: int) -> None:
            nonlocal last
            if what != last:
                print(f"{100 * (done - 1) // total:3d} % {what}", file=sys.stderr, flush=True)
                last = what

        yield line
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def shown(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield shown


def _print_run(folder: Path) -> None:
    from robustsnn.records.runs import load_runs
    from robustsnn.reporting.sentences import flag_sentences
    from robustsnn.reporting.terminal import comparison_tables

    runs = load_runs([folder])
    console = _console()
    console.print(comparison_tables(runs))
    for _, _, severity, sentence in flag_sentences(runs.runs):
        console.print(f"{severity}: {sentence}", markup=False)
    print(f"{folder}  (robustsnn report {folder} writes the page)")


def _print_page(page: Path) -> None:
    from robustsnn.records.runs import load_runs
    from robustsnn.reporting.comparison import comparisons
    from robustsnn.reporting.sentences import flag_sentences, headlines
    from robustsnn.reporting.terminal import comparison_tables
    from robustsnn.workflows.report import runs_of

    runs = load_runs(runs_of(page.parent))
    console = _console()
    console.print(comparison_tables(runs))
    for comparison in comparisons(runs):
        for headline in headlines(comparison):
            console.print(headline.sentence, markup=False)
            console.print()
    for model, suite, severity, sentence in flag_sentences(runs.runs):
        console.print(f"{severity}, {model}, {suite}: {sentence}", markup=False)
    print(page)


def _print_json(folder: Path, results: pd.DataFrame, **more: Any) -> None:
    rows = [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
        for row in results.to_dict("records")
    ]
    print(json.dumps({"output": str(folder), "results": rows, **more}, indent=2))
