"""The page of the study: each claim, and the numbers next to the published ones."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from robustsnn.common import wording
from robustsnn.common.files import write_atomically
from robustsnn.records.schema import CLEAN, WORST_CASE
from robustsnn.reporting.published import rows as published_rows
from studies.claims import figures
from studies.claims.members import (
    ANN,
    CONVERTED,
    FAMILIES,
    FROM_RATE,
    HIRE,
    LEVELS,
    RATE,
    TRADITIONAL,
    absent,
)
from studies.claims.statements import claims, gain, spikes_by_layer
from studies.claims.study import (
    CONVERSION,
    GRID,
    OVERHEAD,
    PUBLISHED,
    STEPS,
    STRONGEST,
    ZOO,
)
from studies.shared import write_results

#: The columns of the table, so that it has them before anything is run.
COLUMNS = (
    "part model data architecture kind seed suite attack norm epsilon layer samples accuracy low "
    "high level flags steps encoding spikes energy_uj value scale leak last_id identity standing"
).split()
#: The attacks of the tables of HIRE-SNN, by their names in records, and how they are shown.
ATTACKS = {"fgsm": "FGSM", "pgd-7": "PGD-7", "bb-fgsm": "BB FGSM", "bb-pgd-7": "BB PGD-7"}
#: What the published tables call the kinds.
PUBLISHED_KINDS = {HIRE: "hire", TRADITIONAL: "traditional", ANN: "ann"}
UNKNOWN_SETTINGS = (
    "HIRE-SNN does not publish its training code, the size of its training noise, its factor on "
    "thresholds, its learning rates, or the steps of its networks on CIFAR-10; what stands here "
    "for them is ours. Its numbers for Gaussian noise are not known, so that none is shown."
)
#: Spikes per neuron and step in figure b of the official repository of HIRE-SNN, whose bars were
#: measured in pixels: rate-coded with 120 steps, direct input with 8, VGG11 on CIFAR-100. A pool
#: counts what is not zero behind it.
PUBLISHED_SPIKES = """\
| layer | rate-coded, T = 120 | direct, T = 8 |
|---|---:|---:|
| conv1 | 0.012 | 0.052 |
| avg1 | 0.043 | 0.121 |
| conv2 | 0.014 | 0.084 |
| conv3 | 0.008 | 0.020 |
| avg2 | 0.032 | 0.057 |
| conv4 | 0.012 | 0.025 |
| conv5 | 0.015 | 0.014 |
| conv6 | 0.010 | 0.009 |
| avg3 | 0.034 | 0.020 |
| conv7 | 0.038 | 0.020 |
| conv8 | 0.013 | 0.014 |
| linear1 | 0.017 | 0.036 |
| linear2 | 0.081 | 0.036 |"""
#: What is published on the claims besides the tables of HIRE-SNN, each with its source.
LITERATURE = (
    "HIRE-SNN (Kundu et al., ICCV 2021, abstract): up to 13.7 points under FGSM and 10.1 under PGD "
    "over traditional SNNs, which by its tables are black-box numbers; improved or similar "
    "accuracy under attack at up to 25 times lower latency and about 4.6 times less compute "
    "energy than rate-coded SNNs.",
    "Rate codes: Kim et al. (2022) report rate-coded SNNs up to 20 % more robust than direct ones "
    "under FGSM and PGD, for the reason that their spikes cannot be differentiated; here gradients "
    "go straight through the sampling and are averaged over draws.",
    "Time steps and leak: Sharmin et al. (ECCV 2020, abstract) find higher accuracy under attack "
    "with fewer steps of a Poisson code and a larger leak, above all under black-box attacks.",
    "Thresholds: El-Allami et al. (DATE 2021, abstract) find up to 85 % higher robustness by the "
    "choice of threshold and steps. In the code that they publish the threshold reaches the "
    "encoder alone; here it is held in every layer.",
    "Single spikes: Datta et al. (IJCNN 2021, abstract) reach 66.46 % on clean images of CIFAR-100 "
    "with 5 steps.",
    "HoSNN (TMLR 2025, abstract), adversarially trained, under PGD-7 at 8/255: from 30.90 to "
    "74.91 % on Fashion-MNIST and from 0.54 to 43.33 % on CIFAR-10; not measured by us.",
)
NONE = "Nothing of this was run yet."


def page(table: pd.DataFrame, command: str) -> str:
    """The page, in Markdown."""
    found = claims(table)
    lines = [
        "# The claims of the talk, measured",
        "",
        f"`{command}` writes this page and [claims.csv](claims.csv), which has every number. The "
        "claims are those of a talk on sparsity and robustness of spiking networks (Kundu, 2021), "
        "measured on small networks of our zoo: VGG5 at 48-96-96 and ResNet12 on CIFAR-10, VGG5 at "
        "16-32-32 and ResNet12 on Fashion-MNIST. A claim holds if every pair of networks that was "
        "measured differs as claimed by the exact McNemar test at 5 %, does not hold if none does, "
        "and depends otherwise. Robust accuracy is an upper bound.",
        "",
        "## The claims",
        "",
        *(f"- {one.line}" for one in found),
        "",
        "## How much of HIRE's gain survives",
        "",
        *(gain(table) or [NONE]),
        "",
        "## What was compared",
        "",
    ]
    for one in found:
        lines += [f"**{one.said}.**", "", *(f"- {what}." for what in one.shown or [NONE[:-1]]), ""]
    lines += ["## The tables of HIRE-SNN", "", UNKNOWN_SETTINGS, ""]
    for data, architecture in FAMILIES:
        lines += _hire(table, data, architecture)
    lines += ["## What else is published", "", *(f"- {what}" for what in LITERATURE), ""]
    lines += ["## Every kind of network", "", *_kinds(table), ""]
    lines += ["## From Poisson to direct input", "", *_levels(table), ""]
    lines += ["## Time steps", "", *_steps(table), ""]
    lines += ["## Converted networks of many steps", "", *_conversion(table), ""]
    lines += ["## Held thresholds and leaks", "", *_grid(table), ""]
    lines += ["## Spikes by layer", "", *_activity(table), ""]
    lines += [
        "Published (figure b of the repository of HIRE-SNN, bars measured in pixels by us; VGG11 "
        "on CIFAR-100; per neuron and step): direct input spikes more in 8 of 13 layers.",
        "",
        PUBLISHED_SPIKES,
        "",
    ]
    lines += ["## Time of training", "", *_overhead(table), ""]
    missing = absent()
    if missing:
        lines += [f"Not in the zoo, and so not measured: {wording.listing(missing)}.", ""]
    return "\n".join(lines)


def _some(table: pd.DataFrame, part: str, attack: str | None = None) -> pd.DataFrame:
    some = table[table["part"] == part]
    return some if attack is None else some[some["attack"] == attack]


def _percent(row: pd.Series | None) -> str:
    return "–" if row is None else f"{100 * row['accuracy']:.1f}"


def _bounded(row: pd.Series | None) -> str:
    if row is None:
        return "–"
    ends = f"{100 * row['low']:.1f}–{100 * row['high']:.1f}"
    return f"{_percent(row)} ({ends})"


def _one(some: pd.DataFrame) -> pd.Series | None:
    return None if some.empty else some.iloc[0]


# --- HIRE -----------------------------------------------------------------------------------------


def _hire(table: pd.DataFrame, data: str, architecture: str) -> list[str]:
    """Ours and the published numbers of a family, white box and black box."""
    ours = table[
        (table["part"] == ZOO)
        & (table["data"] == data)
        & (table["architecture"] == architecture)
        & (table["suite"] == PUBLISHED)
        & (table["seed"] == 1)
    ]
    title = f"### {architecture} on {wording.data(data)}"
    if not (ours["kind"] == HIRE).any():
        return [title, "", NONE, ""]
    lines = [
        title,
        "",
        "| attack | HIRE | published | less traditional | published | less ANN | published |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for attack, shown in {"clean": "clean", **ATTACKS}.items():
        mine = {kind: _accuracy(ours, kind, attack) for kind in PUBLISHED_KINDS}
        theirs = {
            kind: _published(data, architecture, name, attack)
            for kind, name in PUBLISHED_KINDS.items()
        }
        cells = [_points(mine[HIRE]), _points(theirs[HIRE])]
        for other in (TRADITIONAL, ANN):
            cells += [_less(mine[HIRE], mine[other]), _less(theirs[HIRE], theirs[other])]
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    samples = int(ours["samples"].max())
    return [
        *lines,
        "",
        f"Accuracies and differences in %, ours on {samples} images. Published: Kundu et al., ICCV "
        "2021, on larger networks; differences as in its tables. Black-box images are made on a "
        "network of the same kind from another seed, so that the columns of two kinds do not share "
        "them.",
        "",
    ]


def _accuracy(ours: pd.DataFrame, kind: str, attack: str) -> float | None:
    row = _one(ours[(ours["kind"] == kind) & (ours["attack"] == attack)])
    return None if row is None else float(row["accuracy"])


def _published(data: str, architecture: str, method: str, attack: str) -> float | None:
    for row in published_rows():
        key = (row["data"], row["architecture"], row["method"], row["attack"])
        if key == (data, architecture, method, attack):
            return float(row["accuracy"])
    return None


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _less(one: float | None, other: float | None) -> str:
    return "–" if one is None or other is None else f"{100 * (one - other):+.1f}"


# --- other tables ---------------------------------------------------------------------------------


def _kinds(table: pd.DataFrame) -> list[str]:
    some = _some(table, ZOO)
    worst = some[(some["attack"] == WORST_CASE) & some["suite"].isin(STRONGEST)]
    if worst.empty:
        return [NONE]
    lines = [
        "| network | kind | seed | steps | encoding | clean | PGD-7 | strongest | suite | level "
        "| spikes | energy, µJ |",
        "|---|---|---:|---:|---|---:|---:|---:|---|---|---:|---:|",
    ]
    for _, row in worst.iterrows():
        same = some[some["model"] == row["model"]]
        clean = _one(same[(same["attack"] == CLEAN) & (same["suite"] == row["suite"])])
        weak = _one(same[(same["attack"] == "pgd-7") & (same["suite"] == PUBLISHED)])
        spikes = "–" if clean is None or pd.isna(clean["spikes"]) else f"{clean['spikes']:.3f}"
        energy = "–" if clean is None or pd.isna(clean["energy_uj"]) else _digits(clean)
        lines.append(
            f"| {row['model']} | {row['kind']} | {int(row['seed'])} | {int(row['steps'])} "
            f"| {row['encoding']} | {_percent(clean)} | {_percent(weak)} | {_bounded(row)} "
            f"| {row['suite']}, n = {int(row['samples'])} | {row['level']} | {spikes} | {energy} |"
        )
    return [
        *lines,
        "",
        "Accuracies in %, with 95 % Wilson intervals. Networks that draw are attacked by `rand` "
        "alone, with gradients averaged over draws. Spikes are means per neuron and step; energies "
        "are estimates per image (see [energy](../../energy.md)).",
    ]


def _digits(clean: pd.Series) -> str:
    return f"{clean['energy_uj']:.2f}"


def _levels(table: pd.DataFrame) -> list[str]:
    lines = []
    kinds = [f"quantised, N = {levels}" for levels in LEVELS]
    for data, architecture in FAMILIES:
        some = _some(table, ZOO, WORST_CASE)
        some = some[(some["data"] == data) & (some["architecture"] == architecture)]
        rows = [(k, _one(some[(some["kind"] == k) & (some["seed"] == 1)])) for k in kinds]
        if all(row is None for _, row in rows):
            continue
        cells = ", ".join(f"{kind.partition('N')[2][3:]}: {_bounded(r)}" for kind, r in rows)
        lines.append(f"- {wording.data(data)}, {architecture}: accuracy in % under `rand` by N: "
                     f"{cells}.")  # fmt: skip
    return lines or [NONE]


def _steps(table: pd.DataFrame) -> list[str]:
    some = _some(table, STEPS, WORST_CASE)
    return _table(
        some.sort_values(["kind", "data", "steps"]),
        ["| network | kind | suite | strongest, % |", "|---|---|---|---:|"],
        lambda r: f"| {r['model']} | {r['kind']} | {r['suite']} | {_bounded(r)} |",
    )


def _conversion(table: pd.DataFrame) -> list[str]:
    some = _some(table, CONVERSION)
    clean = some[some["suite"] == "clean"].sort_values(["data", "steps"])
    attacked = some[some["attack"] == WORST_CASE].set_index("model")
    return _table(
        clean,
        ["| network | clean, % | images | under attack, % |", "|---|---:|---:|---:|"],
        lambda r: (
            f"| {r['model']} | {_percent(r)} | {int(r['samples'])} "
            f"| {_bounded(attacked.loc[r['model']]) if r['model'] in attacked.index else '–'} |"
        ),
        "The attack is PGD-20, each gradient averaged over four draws, judged by a vote of five.",
    )


def _grid(table: pd.DataFrame) -> list[str]:
    some = _some(table, GRID, WORST_CASE).sort_values(["scale", "leak"])
    return _table(
        some,
        ["| factor on thresholds | leak | `standard`, % |", "|---:|---:|---:|"],
        lambda r: f"| {r['scale']:g} | {r['leak']:g} | {_bounded(r)} |",
        "Both are held in every layer while the network is trained, for three epochs.",
    )


def _activity(table: pd.DataFrame) -> list[str]:
    lines = []
    for data, architecture in FAMILIES:
        found = {k: spikes_by_layer(table, data, architecture, k)
                 for k in (FROM_RATE, RATE, CONVERTED)}  # fmt: skip
        there = {kind: layers for kind, layers in found.items() if layers}
        if not there:
            continue
        lines += [
            f"| {wording.data(data)}, {architecture} | {' | '.join(there)} |",
            f"|---|{'---:|' * len(there)}",
        ]
        for layer in next(iter(there.values())):
            cells = " | ".join(f"{v[layer]:.3f}" if layer in v else "–" for v in there.values())
            lines.append(f"| {layer} | {cells} |")
        lines.append("")
    return lines or [NONE]


def _overhead(table: pd.DataFrame) -> list[str]:
    return _table(
        _some(table, OVERHEAD),
        ["| training | time of a batch | quartiles |", "|---|---:|---:|"],
        lambda r: f"| {r['kind']} | {r['value']:.2f}x | {r['low']:.2f} to {r['high']:.2f} |",
        "As a multiple of traditional training, on batches of 64 that take turns in one thread.",
    )


def _table(
    some: pd.DataFrame,
    head: Sequence[str],
    line: Callable[[pd.Series], str],
    note: str | None = None,
) -> list[str]:
    if some.empty:
        return [NONE]
    rows = [line(row) for _, row in some.iterrows()]
    return [*head, *rows, *([] if note is None else ["", note])]


# --- files ----------------------------------------------------------------------------------------


def write(table: pd.DataFrame, output: Path, command: str) -> None:
    """Write `claims.csv`, `claims.md` and the figures of what was run."""
    full = table.reindex(columns=COLUMNS)
    drawn = {name: figure for name, figure in figures.drawn(full).items() if figure is not None}
    shown = [f"![{figures.TITLES[name]}]({name}.png)" for name in drawn]
    text = page(full, command)
    if shown:
        text = text.replace("## What was compared", "\n\n".join([*shown, "## What was compared"]))
    write_results(output, "claims", full, text)
    for name, figure in drawn.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        write_atomically(output / f"{name}.png", buffer.getvalue())
