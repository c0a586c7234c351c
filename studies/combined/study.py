"""Do gradients and search by score together find more than either, at equal passes?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.tables import write_results
from robustsnn.common import wording as formats
from robustsnn.evaluation.inputs import images_of
from robustsnn.evaluation.run import Evaluation, prepare, run
from robustsnn.evaluation.suites import Entry, Suite
from robustsnn.models.subject import subject_of
from robustsnn.records.schema import CLEAN
from studies.soundness.study import is_finished, root_of

#: Forward and backward passes of each image.
PASSES = (300, 1000, 5000)
#: At all budgets about two hours of one core.
SAMPLES = 50
#: At these sizes the estimators leave neither nearly all images nor nearly none.
NETWORKS: Mapping[str, str] = {
    "fashion-mnist/vgg5-snn": "4/255",
    "fashion-mnist/vgg5-snn-hire": "8/255",
    "fashion-mnist/vgg5-snn-at": "12/255",
    "fashion-mnist/resnet12-snn": "4/255",
}
_APGD = "apgd:steps={steps},loss=margin"
#: Attacks along one estimator alone, and the passes of one of their steps.
GRADIENTS: Mapping[str, tuple[str, str, int]] = {
    "own surrogate": (_APGD, "bptt", 2),
    "triangle 0.5": (_APGD, "bptt:triangle:width=0.5", 2),
    "arctan 8": (_APGD, "bptt:arctan:width=0.0796", 2),
    "ASSG 0.45": (_APGD, "assg:vanishing=0.45", 2),
    "HART 0.5": (_APGD, "hart:width=0.5", 2),
    "PDSG": (_APGD, "pdsg", 2),
    "BPTR": (_APGD, "bptr", 2),
    "RGA": (_APGD, "rga", 2),
    "twin": (_APGD, "twin", 3),
    "SA-PGD, ASSG 0.425": ("sa-pgd:steps={steps}", "assg:vanishing=0.425", 2),
}
_HERE = Path(__file__).parent / "attacks"
#: What they are set beside, and the combinations themselves.
SEARCHES: Mapping[str, str] = {
    "Square": "square:queries={passes}",
    "warm Square": f"{_HERE / 'warm_square.py'}:passes={{passes}}",
}
COMBINATIONS: Mapping[str, str] = {
    "guided": f"{_HERE / 'guided.py'}:passes={{passes}}",
    "corrected": f"{_HERE / 'corrected.py'}:passes={{passes}}",
}
COLUMNS = (
    "model epsilon samples clean passes method accuracy ci_low ci_high forward_passes "
    "backward_passes seconds standing"
).split()


def suite(passes: int, epsilon: str) -> Suite:
    """Every method at one number of passes, each by itself."""
    entries = [
        Entry(
            label=label,
            # The last iterate costs a forward pass more.
            attack=attack.format(steps=(passes - 1) // cost),
            estimator=estimator,
        )
        for label, (attack, estimator, cost) in GRADIENTS.items()
    ]
    entries += [
        Entry(label=label, attack=attack.format(passes=passes))
        for label, attack in {**SEARCHES, **COMBINATIONS}.items()
    ]
    fields = {"name": f"combined-{passes}", "epsilon": [epsilon], "entries": entries}
    return Suite.model_validate(fields)


def study(
    model: str,
    folder: Path,
    passes: Sequence[int] = PASSES,
    samples: int = SAMPLES,
    *,
    data_root: Path | None = None,
    say: Callable[[str], None] = print,
    finished_only: bool = False,
) -> pd.DataFrame:
    """Rows of one network, as `combined.csv` has them; runs what is not finished.

    Args:
        model: One of `NETWORKS`.
        folder: Where the run folders are.
        passes: Which budgets.
        samples: The first so many images.
        data_root: Folder of the data sets' folders.
        say: Told what is done.
        finished_only: Run nothing.
    """
    subject = subject_of(model)
    root = None if data_root is None else root_of(data_root, subject.meta)
    images = images_of(None, subject, root=root, samples=samples)
    rows: list[dict[str, object]] = []
    for number in passes:
        some = suite(number, NETWORKS[model])
        output = folder / f"{model.replace('/', '-')}-{samples}" / some.name
        if finished_only and not is_finished(output):
            continue
        say(f"{model}, {samples} images, {number} passes")
        done = run(prepare(subject, images, some), output, command=["benchmarks", "combined"])
        rows += _rows(done, some, model, number)
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(done: Evaluation, some: Suite, model: str, passes: int) -> list[dict[str, object]]:
    labels = {entry.slug: entry.label for entry in some.entries}
    results = done.results.set_index("attack")
    clean = results["accuracy"][CLEAN]
    attacked = done.records[done.records["attack"] != CLEAN]
    found: list[dict[str, object]] = []
    for attack, rows in attacked.groupby("attack", sort=False):
        result: dict[Any, Any] = results.loc[str(attack)].to_dict()
        found.append(
            {
                "model": model,
                "epsilon": some.epsilon[0],
                "samples": int(result["samples"]),
                "clean": float(clean),
                "passes": passes,
                "method": labels[str(attack)],
                "accuracy": float(result["accuracy"]),
                "ci_low": float(result["ci_low"]),
                "ci_high": float(result["ci_high"]),
                "forward_passes": float(rows["forward_passes"].mean()),
                "backward_passes": float(rows["backward_passes"].mean()),
                "seconds": float(rows["seconds"].sum()),
                # Broken is what leads or ties; images wrong when clean stand nowhere.
                "standing": " ".join(map(str, rows.loc[rows["margin"] < 0, "image_id"])),
            }
        )
    return found


def with_earlier(table: pd.DataFrame, earlier: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table, and those of an earlier one at other networks and passes."""
    key = ["model", "samples", "passes"]
    fresh = set(table[key].itertuples(index=False, name=None))
    kept = [row not in fresh for row in earlier[key].itertuples(index=False, name=None)]
    return pd.concat([earlier[kept], table], ignore_index=True) if any(kept) else table


# --- rows to pages --------------------------------------------------------------------------------


def page(table: pd.DataFrame, command: str) -> str:
    """`combined.md`."""
    lines = [
        "# Gradients and search together",
        "",
        f"Made by `{command}`. Robust accuracy in % under one method alone, at equal numbers of "
        "forward and backward passes of each image, L∞, seed 0, on the first images of the fixed "
        "order. *Guided* and *corrected* are combinations of surrogate gradients with search by "
        "score (`benchmarks/combinations`), and like *warm Square* spend a third of their passes "
        "on SA-PGD with ASSG. A row with the name of an estimator is APGD on the margin along it.",
        "",
    ]
    methods = [*GRADIENTS, *SEARCHES, *COMBINATIONS]
    for (model, epsilon, samples), some in table.groupby(
        ["model", "epsilon", "samples"], sort=False
    ):
        by = some.pivot_table(index="method", columns="passes", values="accuracy")
        columns = sorted(by.columns)
        lines += [
            f"## {model}, {epsilon}, {samples} images",
            "",
            f"{100 * float(some['clean'].iloc[0]):.1f} % clean; "
            f"{_union(some)} % stand under all of these together.",
            "",
            f"| method | {' | '.join(f'{c:,} passes' for c in columns)} |",
            f"|---|{'---:|' * len(columns)}",
        ]
        for method in methods:
            if method in by.index:
                cells = [_cell(by[column], method) for column in columns]
                lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, *verdicts(table), *_missing(table), ""])


def _missing(table: pd.DataFrame) -> list[str]:
    """What the table lacks, in a sentence."""
    found = set(table[["model", "passes"]].itertuples(index=False, name=None))
    lacking = []
    for model in NETWORKS:
        passes = [f"{number:,}" for number in PASSES if (model, number) not in found]
        if passes:
            lacking.append(f"{model} at {formats.listing(passes)} passes")
    return ["", f"Not run yet: {'; '.join(lacking)}."] if lacking else []


def _cell(accuracy: pd.Series[float], method: str) -> str:
    text = f"{100 * accuracy[method]:.1f}"
    return f"**{text}**" if accuracy[method] == accuracy.min() else text


def _union(some: pd.DataFrame) -> str:
    standing: set[str] | None = None
    for ids in some["standing"]:
        here = set(str(ids).split())
        standing = here if standing is None else standing & here
    return f"{100 * len(standing or ()) / int(some['samples'].iloc[0]):.1f}"


def verdicts(table: pd.DataFrame) -> list[str]:
    """For each combination and budget: on how many networks it is below all others."""
    lines = []
    for method in COMBINATIONS:
        for passes in sorted(set(table["passes"])):
            some = table[table["passes"] == passes]
            wins = ties = networks = 0
            for _, rows in some.groupby(["model", "samples"], sort=False):
                mine = rows[rows["method"] == method]
                others = rows[~rows["method"].isin(list(COMBINATIONS))]
                if mine.empty or others.empty:
                    continue
                networks += 1
                gap = float(mine["accuracy"].iloc[0]) - float(others["accuracy"].min())
                wins += gap < 0
                ties += gap == 0
            if networks:
                lines.append(
                    f"- {method}, {passes:,} passes: below every estimator and search on {wins} "
                    f"of {formats.count(networks, 'network')}, level with the best on {ties}."
                )
    return lines


def figure(table: pd.DataFrame, path: Path) -> None:
    """Robust accuracy against passes, one panel a network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(table.groupby(["model", "epsilon"], sort=False))
    fig, axes = plt.subplots(
        1, len(groups), figsize=(3.1 * len(groups) + 1.2, 3.6), layout="constrained", squeeze=False
    )
    methods = [*GRADIENTS, *SEARCHES, *COMBINATIONS]
    colours = plt.get_cmap("tab10")
    for axis, ((model, epsilon), some) in zip(axes[0], groups, strict=True):
        for index, method in enumerate(methods):
            rows = some[some["method"] == method].sort_values("passes")
            if rows.empty:
                continue
            strong = method in COMBINATIONS or method in SEARCHES
            axis.plot(
                rows["passes"], 100 * rows["accuracy"], label=method,
                marker="o" if strong else ".", markersize=4,
                linewidth=1.8 if strong else 0.9, linestyle="-" if strong else "--",
                color=colours(index % 10) if not strong else colours((index - 9) % 4),
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_xticks(list(PASSES), [f"{p:,}" for p in PASSES])
        axis.minorticks_off()
        axis.set_title(f"{model}\n{epsilon}", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("robust accuracy, %")
    fig.supxlabel("forward and backward passes of each image", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    fig.savefig(path, dpi=150)
    plt.close(fig)


def write(studies: Sequence[pd.DataFrame], output: Path, command: str) -> pd.DataFrame:
    """Table, page and figure of all that was run, now or before."""
    filled = [one for one in studies if len(one)]
    table = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=COLUMNS)
    if (output / "combined.csv").exists():
        earlier = pd.read_csv(output / "combined.csv", keep_default_na=False)
        table = with_earlier(table, earlier) if len(table) else earlier
    write_results(output, "combined", table, page(table, command))
    if len(table):
        figure(table, output / "combined.png")
    return table
