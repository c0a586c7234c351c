"""What the study of sparsity found: claims, tables and figures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from robustsnn.common import wording
from robustsnn.common.files import write_atomically
from robustsnn.common.statistics import mcnemar_exact
from robustsnn.models.checkpoint import load_network, read_checkpoint
from robustsnn.snn.sparsity import LayerDensity, densities
from studies.shared import write_results
from studies.sparsity.study import (
    AGC,
    DENSE,
    ENERGY,
    MAGNITUDE,
    NETWORKS,
    PUBLISHED,
    STRONGEST,
    survivors_of,
)

#: Spike-Thrift (Kundu et al., WACV 2021), table 2, and the works that it compares with.
PUBLISHED_TABLE = """\
| work | data | training | architecture | compression | accuracy | time steps |
|---|---|---|---|---:|---:|---:|
| Cao 2015 | CIFAR-10 | conversion | 3C2L | 1x | 77.43 | 400 |
| Sengupta 2019 | CIFAR-10 | conversion | VGG16 | 1x | 91.55 | 2500 |
| Wu 2019 | CIFAR-10 | surrogate | 5C2L | 1x | 90.53 | 12 |
| Rathi 2020 | CIFAR-10 | hybrid | VGG16 | 1x | 91.13 / 92.02 | 100 / 200 |
| Deng 2020 | CIFAR-10 | STBP | 11 layers | 1x / 4x | 89.53 / 87.38 | 8 |
| Spike-Thrift | CIFAR-10 | hybrid, AGC | VGG16 | 2.5x / 33.4x | 91.29 / 90.15 | 100 |
| Deng 2020 | CIFAR-100 | STBP | 11 layers | 2x | 57.83 | 8 |
| Spike-Thrift | CIFAR-100 | hybrid, AGC | VGG11 | 4x | 64.98 | 120 |"""
LITERATURE = (
    "Robust sparse conversion (Schmolli et al., CPAL 2025, as their abstract and a reading note "
    "say) reports 83.2 % clean and 40.0 % robust on CIFAR-10 at up to 100x fewer weights. "
    "Co-evolutionary pruning (CCSRP, 2024) prunes filters for accuracy, robustness and size "
    "together on CIFAR-10 and SVHN; no number of it is quoted here, because none was checked. "
    "Neither was evaluated by `standard`, and their networks are not public."
)


# --- sentences ------------------------------------------------------------------------------------


def claims(table: pd.DataFrame) -> list[str]:
    """What the table says, a sentence for each question."""
    questions = (_accuracy, _against_magnitude, _latency, _robustness, _hidden)
    lines = [line for question in questions for line in question(table)]
    return [f"- {line}" for line in lines] or ["Nothing was run yet."]


def _accuracy(table: pd.DataFrame) -> list[str]:
    """How much clean accuracy AGC loses to the dense network of the same kind and seed."""
    lines = []
    for _, row in _spiking(table, AGC).iterrows():
        dense = _dense(table, row)
        if dense is None:
            continue
        lost = 100 * (_clean(dense) - _clean(row))
        word = "loses" if lost >= 0 else "gains"
        lines.append(
            f"**{_named(row)}** {word} {abs(lost):.1f} points of clean accuracy against the dense "
            f"network of its seed, at {row['compression']:.1f}x fewer weights."
        )
    if lines:
        lines.append(
            "What else was tried for AGC, on held-out training images, and how long each network "
            "was trained, is told in [settings](../../settings.md#sparse-networks)."
        )
    return lines


def _against_magnitude(table: pd.DataFrame) -> list[str]:
    """AGC against one-shot magnitude pruning at the same compression, over seeds."""
    lines = []
    pruned = _spiking(table, MAGNITUDE)
    guided = _spiking(table, AGC)
    for level in sorted({round(x) for x in pruned["compression"]}):
        pairs = []
        for _, row in pruned[pruned["compression"].round() == level].iterrows():
            same = guided[
                (guided["compression"].round() == level)
                & (guided["seed"] == row["seed"])
                & (guided["data"] == row["data"])
            ]
            if len(same):
                pairs.append(100 * (_clean(same.iloc[0]) - _clean(row)))
        if pairs:
            mean = sum(pairs) / len(pairs)
            each = ", ".join(f"{p:+.1f}" for p in pairs)
            verb = "beats" if min(pairs) > 0 else "does not beat"
            lines.append(
                f"At {level}x AGC {verb} one-shot magnitude pruning with fine-tuning on every "
                f"seed: {mean:+.1f} points of clean accuracy on average ({each})."
            )
    return lines


def _latency(table: pd.DataFrame) -> list[str]:
    """How much faster networks without some channels are."""
    if "latency:ratio" not in table:
        return []
    return [
        f"**{_named(row)}**, which has {1 / row['compression']:.0%} of the weights of its dense "
        f"parent, is {row['latency:ratio']:.2f} times as fast at inference (quartiles "
        f"{row['latency:low']:.2f} to {row['latency:high']:.2f} of alternating passes of 64 "
        "images, one thread)."
        for _, row in table[table["latency:ratio"].notna()].iterrows()
    ]


def _robustness(table: pd.DataFrame) -> list[str]:
    """Whether sparse networks keep more images than their dense parents under `standard`."""
    more: list[str] = []
    fewer: list[str] = []
    same: list[str] = []
    for _, row in table.iterrows():
        dense = _dense(table, row)
        if dense is None or not _has(row, "standing") or not _has(dense, "standing"):
            continue
        ours, theirs = survivors_of(row), survivors_of(dense)
        gained, lost = len(ours - theirs), len(theirs - ours)
        p = mcnemar_exact(gained, lost)
        text = f"{_named(row)} ({gained} gained, {lost} lost, p = {p:.2g})"
        (same if p >= 0.05 else more if gained > lost else fewer).append(text)
    if not (more or fewer or same):
        return []
    return [
        "**Does sparsity make our networks more robust?** Under `standard`, image by image against "
        "the dense network of the same training (exact McNemar test, not adjusted for the number "
        f"of networks), {len(more)} of {len(more) + len(fewer) + len(same)} sparse networks keep "
        f"more images: {wording.listing(more) or 'none'}. Fewer images keep "
        f"{wording.listing(fewer) or 'none'}. No difference is seen for "
        f"{wording.listing(same) or 'none'}."
    ]


def _hidden(table: pd.DataFrame) -> list[str]:
    """Whether the published attack sees a gain that the strongest does not."""
    lines = []
    for _, row in table[table["kind"] == "snn"].iterrows():
        if not _has(row, "robust") or not _has(row, "pgd-7", PUBLISHED):
            continue
        white, black = row[f"{PUBLISHED}:pgd-7"], row[f"{PUBLISHED}:bb-pgd-7"]
        signs = []
        if black < white:
            signs.append(
                f"black-box images leave {_percent(black)} %, fewer than white-box ones with "
                f"{_percent(white)} %"
            )
        flags = str(row.get(f"{STRONGEST}:flags", ""))
        if "surrogate-gap" in flags:
            signs.append("the run is flagged for a gap between surrogates")
        if signs:
            lines.append(f"{_named(row)}: {wording.listing(signs)}.")
    if not lines:
        return [
            "**Hidden gradients.** No network breaks more easily by black-box images than by its "
            "own gradient, and no run is flagged for a gap between surrogates."
        ]
    return ["**Signs of hidden gradients.**", *lines]


# --- tables ---------------------------------------------------------------------------------------


def page(table: pd.DataFrame, command: str) -> str:
    """The text of `sparsity.md`."""
    samples = wording.listing(sorted({f"{int(n):,}" for n in table["samples"]}))
    lines = [
        "# Sparsity",
        "",
        f"Made by `{command}`. Accuracies in %, on the first {samples} test images, seed 0. PGD-7 "
        "is the published attack (suite `hire-iccv21`, ε 0.031), BB PGD-7 the same from one "
        "network without spikes, and `standard` the strongest suite, at L∞ 8/255, with a 95 % "
        "Wilson interval. Spikes are a mean per neuron and step. Operations are synaptic "
        "operations per image in thousands; *worst* is the mean of the largest of each image over "
        "the clean image and all proposals of the suite `energy`, as a multiple of the clean mean. "
        "Energies are estimates in µJ per image at 45 nm, FP32, of arithmetic and of memory.",
        "",
        *claims(table),
        "",
        "![accuracy, spikes and energy against compression](sparsity.png)",
        "",
    ]
    for data, some in table.groupby("data", sort=False):
        lines += [f"## {wording.data(str(data))}", "", *_main(some), ""]
    lines += [
        "## Densities of the layers",
        "",
        "![density of each layer](densities.png)",
        "",
        *_densities([str(name) for name in table["model"]]),
        "",
        "## What is published",
        "",
        PUBLISHED_TABLE,
        "",
        "Source: the table of the talk on Spike-Thrift (Kundu et al., WACV 2021). Its networks are "
        "larger and rate-coded, its accuracies are clean ones. No attack was run on any of them. "
        f"{LITERATURE}",
    ]
    missing = [name for name in NETWORKS if name not in set(table["model"])]
    if missing:
        lines += ["", f"Not trained or not run yet: {wording.listing(missing)}."]
    return "\n".join([*lines, ""])


def _main(some: pd.DataFrame) -> list[str]:
    lines = [
        "| network | method | fewer weights | file, kB | clean | FGSM | PGD-7 | BB PGD-7 "
        "| `standard` | level | spikes | operations | worst | compute | memory |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for _, row in some.iterrows():
        lines.append(
            f"| {_short(row)} | {row['method']} | {row['compression']:.1f}x "
            f"| {row['bytes'] / 1000:.0f} | {_cell(row, STRONGEST, 'clean')} "
            f"| {_cell(row, PUBLISHED, 'fgsm')} | {_cell(row, PUBLISHED, 'pgd-7')} "
            f"| {_cell(row, PUBLISHED, 'bb-pgd-7')} | {_robust(row)} "
            f"| {_text(row, STRONGEST, 'level')} | {_number(row, 'spikes', '.3f')} "
            f"| {_number(row, 'operations', ',.0f', 1e-3)} | {_worst(row)} "
            f"| {_number(row, 'compute_fp32_uj', '.2f')} "
            f"| {_number(row, 'memory_fp32_uj', '.1f')} |"
        )
    return lines


def _densities(names: Sequence[str]) -> list[str]:
    found = {name: layers_of(name) for name in names}
    sparse = {n: layers for n, layers in found.items() if any(x.kept < x.weights for x in layers)}
    if not sparse:
        return ["No network with masked weights is there yet."]
    columns = list(dict.fromkeys(x.name for layers in sparse.values() for x in layers))
    lines = [
        f"| network | {' | '.join(columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for name, layers in sparse.items():
        by_name = {x.name: f"{100 * x.density:.1f}" for x in layers}
        lines.append(f"| {name} | {' | '.join(by_name.get(c, '–') for c in columns)} |")
    return ["Weights that are not zero, in % of each layer.", "", *lines]


def layers_of(name: str) -> tuple[LayerDensity, ...]:
    """The densities of a network of the zoo."""
    return densities(load_network(read_checkpoint(name)))


def _dense(table: pd.DataFrame, row: Mapping[str, object] | pd.Series) -> pd.Series | None:
    """The dense network that a sparse one is compared with: same data, kind, training and seed."""
    parents = {
        "DNR": "dense, adversarial",
        "robust conversion": "dense, adversarial",
        "HIRE on AGC": "dense, HIRE",
    }
    method = str(row["method"])
    if method.startswith("dense"):
        return None
    some = table[
        (table["data"] == row["data"])
        & (table["kind"] == row["kind"])
        & (table["seed"] == row["seed"])
        & (table["method"] == parents.get(method, DENSE))
    ]
    return None if some.empty else some.iloc[0]


def _spiking(table: pd.DataFrame, method: str) -> pd.DataFrame:
    known = table[(table["kind"] == "snn") & (table["method"] == method)]
    column = f"{STRONGEST}:clean"
    return known[known[column].notna()] if column in known else known.iloc[:0]


def _named(row: pd.Series) -> str:
    return str(row["model"])


def _short(row: pd.Series) -> str:
    return str(row["model"]).partition("/")[2]


def _clean(row: pd.Series) -> float:
    return float(row[f"{STRONGEST}:clean"])


def _has(row: pd.Series, column: str, suite: str = STRONGEST) -> bool:
    return f"{suite}:{column}" in row and pd.notna(row[f"{suite}:{column}"])


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _cell(row: pd.Series, suite: str, column: str) -> str:
    return _percent(row[f"{suite}:{column}"]) if _has(row, column, suite) else "–"


def _text(row: pd.Series, suite: str, column: str) -> str:
    return str(row[f"{suite}:{column}"]) if _has(row, column, suite) else "–"


def _robust(row: pd.Series) -> str:
    if not _has(row, "robust"):
        return "–"
    ends = f"{_percent(row[f'{STRONGEST}:low'])}–{_percent(row[f'{STRONGEST}:high'])}"
    return f"{_percent(row[f'{STRONGEST}:robust'])} ({ends})"


def _number(row: pd.Series, column: str, form: str, scale: float = 1.0) -> str:
    if not _has(row, column, ENERGY):
        return "–"
    return f"{scale * row[f'{ENERGY}:{column}']:{form}}"


def _worst(row: pd.Series) -> str:
    if not _has(row, "worst_operations", ENERGY):
        return "–"
    return f"{row[f'{ENERGY}:worst_operations'] / row[f'{ENERGY}:operations']:.2f}x"


# --- figures --------------------------------------------------------------------------------------


def write(table: pd.DataFrame, output: Path, command: str) -> None:
    """Write `sparsity.csv`, `sparsity.md` and the two figures."""
    from studies.sparsity.figures import against_compression, of_layers

    write_results(output, "sparsity", table, page(table, command))
    for name, figure in (
        ("sparsity", against_compression(table)),
        ("densities", of_layers({str(n): layers_of(str(n)) for n in table["model"]})),
    ):
        if figure is None:
            continue
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        write_atomically(output / f"{name}.png", buffer.getvalue())
