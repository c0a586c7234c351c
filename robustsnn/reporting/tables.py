"""The tables of a report as text, from which every file format is written."""

from __future__ import annotations

import math
from collections.abc import Iterator

from robustsnn.common import wording
from robustsnn.records.runs import Run, Runs
from robustsnn.records.schema import CLEAN, OPERATIONS, WORST_CASE, Condition
from robustsnn.reporting.class_tables import class_tables
from robustsnn.reporting.comparison import Comparison, comparisons, energy, operations
from robustsnn.reporting.published import published
from robustsnn.reporting.text_table import Cell, TextTable
from robustsnn.reporting.trust import LEVELS, level_sentence, other_reasons

__all__ = [
    "Cell",
    "TextTable",
    "accuracy_table",
    "shown_conditions",
    "tables",
    "tables_of",
    "trust_notes",
]

_NAN = float("nan")


def tables(runs: Runs) -> list[TextTable]:
    """All tables of a report, comparison by comparison."""
    return [table for comparison in comparisons(runs) for table in tables_of(comparison)]


def tables_of(comparison: Comparison) -> Iterator[TextTable]:
    """The tables of one comparison, without those that would be empty."""
    yield accuracy_table(comparison)
    if len(comparison.runs) > 1:
        yield paired_table(comparison)
    if comparison.attacks:
        yield success_table(comparison)
    yield from class_tables(comparison)
    if (literature := published_table(comparison)) is not None:
        yield literature
    if any(OPERATIONS in run.results for run in comparison.runs):
        yield operations_table(comparison)
    if any(run.manifest.operations for run in comparison.runs):
        yield layers_table(comparison)


def accuracy_table(comparison: Comparison) -> TextTable:
    """The accuracy of each model under each attack, then its spikes, energy and weights."""
    runs = comparison.runs
    rows = [
        (
            Cell(condition.title, condition.size),
            *(_accuracy(comparison, run, condition) for run in runs),
        )
        for condition in shown_conditions(comparison)
    ]
    rows += _cost_rows(comparison)
    if any(run.sparse for run in runs):
        rows.append((Cell("Weights", "not zero"), *map(_weights, runs)))
    return TextTable(
        name=f"accuracy-{comparison.slug}",
        title=f"Accuracy, {comparison.title}, {wording.count(comparison.samples, 'image')}",
        head=(Cell("Attack"), *(Cell(run.label, _kind(run)) for run in runs)),
        rows=tuple(rows),
        notes=tuple(_accuracy_notes(comparison)),
        caption=_accuracy_caption(comparison),
    )


def _accuracy_caption(comparison: Comparison) -> str:
    """What a paper has to say of the table, in one sentence."""
    first = comparison.runs[0].manifest
    cascade = any(run.manifest.cascade for run in comparison.runs)
    several = any(condition.attack == WORST_CASE for condition in comparison.conditions)
    return (
        f"Accuracy of {wording.count(comparison.samples, 'image')} of"
        f" {wording.data(comparison.runs[0].data)} under the suite {first.suite} (version"
        f" {first.suite_version}, seed {first.seed}) with 95 % Wilson intervals"
        + (
            "; each attack is run on the survivors of those above it, so rows add up"
            if cascade
            else ""
        )
        + ("; the worst case is over all attacks of its size" if several else "")
        + "."
    )


def _cost_rows(comparison: Comparison) -> Iterator[tuple[Cell, ...]]:
    """Spikes, operations and energies; each row only if a run holds it."""
    runs = comparison.runs
    spikes = [run.spikes_per_neuron_and_step for run in runs]
    if not all(map(math.isnan, spikes)):
        cells = (Cell("–" if math.isnan(s) else f"{s:.3f}") for s in spikes)
        yield (Cell("Spikes", "per neuron, step"), *cells)
    joules = [energy(run) for run in runs]
    yield from _row_of("Energy", "µJ per image", joules)
    own = [energy(run, same_layer=True) for run in runs]
    if any(not math.isnan(o) and o != j for o, j in zip(own, joules, strict=True)):
        yield from _row_of("Energy, own spikes", "µJ per image", own)
    for title, part in (("Compute, exact", "compute_fp32_uj"), ("Memory", "memory_fp32_uj")):
        yield from _row_of(title, "µJ per image", [run.energy.get(part, _NAN) for run in runs])
    counted = [operations(run) for run in runs]
    yield from _row_of("Operations", "million per image", [c / 1e6 for c in counted])
    for condition in worst_cases(comparison):
        most = [operations(run, condition) for run in runs]
        if all(map(math.isnan, most)):
            continue
        cells = (
            Cell(wording.millions(m), _times(m, c)) for m, c in zip(most, counted, strict=True)
        )
        yield (Cell("Worst-case operations", condition.size), *cells)


def _row_of(title: str, unit: str, numbers: list[float]) -> Iterator[tuple[Cell, ...]]:
    """A row of numbers, each with its ratio to the first; none if no run holds the number."""
    if not all(map(math.isnan, numbers)):
        cells = (Cell(wording.energy(n), _relative(n, numbers[0])) for n in numbers)
        yield (Cell(title, unit), *cells)


def _times(found: float, clean: float) -> str:
    """The ratio of operations to those on clean images, to a tenth of a percent."""
    return "" if math.isnan(found) or not clean > 0 else f"({found / clean:.3f}×)"


def worst_cases(comparison: Comparison) -> list[Condition]:
    """The worst case of each size above 0, also where it only repeats a single attack."""
    sizes = dict.fromkeys((c.norm, c.epsilon) for c in comparison.attacks if c.radius != 0)
    return [Condition(WORST_CASE, *size) for size in sizes]


def shown_conditions(comparison: Comparison) -> list[Condition]:
    """The conditions that get a row: an attack of size 0 only repeats the clean images."""
    return [c for c in comparison.conditions if c.attack == CLEAN or c.radius != 0]


def _accuracy(comparison: Comparison, run: Run, condition: Condition) -> Cell:
    row = comparison.cells.get((run.label, condition))
    if row is None:
        return Cell("–")
    note = ""
    if not math.isnan(row["difference"]):
        note = f"{wording.points(row['difference'])}, {wording.p_value(row['p_holm'])}"
    return Cell(
        wording.percent(row["accuracy"]),
        wording.bounds(row["ci_low"], row["ci_high"]),
        note,
        run.level if condition.attack == WORST_CASE else "",
    )


def _foreign_notes(run: Run) -> Iterator[str]:
    """What was found in a network of another library, and what of the suite was left out for it."""
    found = run.manifest.foreign
    if found is not None:
        yield f"{run.label}: {found['sentence']}."
    uncounted = run.manifest.uncounted or (found or {}).get("uncounted")
    if uncounted:
        yield f"{run.label}: its operations and energy are not known: {uncounted}."
    # What is left out for a network of ours follows from its kind.
    if run.manifest.left_out and not run.manifest.kind:
        entries = wording.count(len(run.manifest.left_out), "entry", "entries")
        yield (
            f"{run.label}: {entries} of the suite {run.suite} were left out, since they do not fit"
            f" this network: {', '.join(run.manifest.left_out)}."
        )


def _accuracy_notes(comparison: Comparison) -> Iterator[str]:
    yield (
        "Each cell holds the accuracy over all images with its 95 % Wilson interval. Under attack"
        " it is an upper bound: a stronger attack can only lower it."
    )
    if any(run.manifest.cascade for run in comparison.runs):
        yield (
            "Each attack was run only on the images that survived all attacks above it at that norm"
            " and size. Its row gives the accuracy under it and these together, not under it alone."
        )
    if any(condition.attack == WORST_CASE for condition in comparison.conditions):
        yield (
            "In the worst case an image counts only if the model is right on it when clean and on"
            " every image proposed for it at that norm and size; a tie at the top counts as wrong."
        )
    yield from trust_notes(comparison)
    for run in comparison.runs:
        yield from _foreign_notes(run)
    if len(comparison.runs) > 1:
        yield (
            f"Below an accuracy stand the difference to {comparison.baseline} in percentage points"
            " and the p-value of the exact McNemar test on the same images. The p-value is"
            " Holm-adjusted over the attacks and worst cases, but not on clean images."
        )
    yield from _cost_notes(comparison)


def trust_notes(comparison: Comparison) -> list[str]:
    """What the letters mean, and why each run has its own; empty for older runs."""
    rated = [run for run in comparison.runs if run.level]
    if not rated:
        return []
    meanings = (f"{level}, {meaning[0].lower()}{meaning[1:]}" for level, meaning in LEVELS.items())
    notes = [f"A, B and C say how far the worst case can be trusted. {' '.join(meanings)}"]
    for run in rated:
        others = "".join(f" Also {one.level}: {one.sentence}" for one in other_reasons(run))
        notes.append(f"{run.label}: {level_sentence(run)}{others}")
    return notes


def _cost_notes(comparison: Comparison) -> Iterator[str]:
    runs = comparison.runs
    if not all(math.isnan(energy(run)) for run in runs):
        yield (
            "The energy is an estimate and not a measurement. It counts arithmetic only:"
            " multiply-accumulates, and one accumulate for every spike that enters a layer. With"
            " own spikes it counts the spikes that leave the layer instead, as several papers do."
        )
    if any(run.sparse for run in runs):
        yield (
            "The weights are those of convolutions and linear layers that are not zero. The factor"
            " says how many times as many the same network has when it is dense."
        )
    if any("compute_fp32_uj" in run.energy for run in runs):
        yield (
            "An operation is an input that is not zero meeting a weight that is not zero, counted"
            " exactly. In the exact compute energy it costs an accumulate if the input is a spike,"
            " and a multiply-accumulate if it is a pixel or a mean of spikes behind a pool. Memory"
            " is one read of a weight for each operation and one read and one write of each"
            " membrane at each step, without images, spikes and caches. All at 45 nm in FP32."
        )
    if any(not math.isnan(operations(run, c)) for run in runs for c in worst_cases(comparison)):
        yield (
            "The worst-case operations of an image are the most that the clean image or any image"
            " proposed for it takes. In brackets stands the ratio to clean images. The mean over"
            " the images is a lower bound, since a better attack can only raise it."
        )


def _weights(run: Run) -> Cell:
    if run.weights is None or math.isnan(run.compression):
        return Cell("–")
    return Cell(f"{run.weights:,}", f"({wording.times(run.compression)})" if run.sparse else "")


def _relative(joules: float, baseline: float) -> str:
    if math.isnan(joules) or math.isnan(baseline) or not baseline or joules == baseline:
        return ""
    return f"({joules / baseline:.2f}×)"


def _kind(run: Run) -> str:
    if run.kind == "ann":
        return "ANN"
    return f"{run.kind.upper()}, T = {run.time_steps}" if run.kind else ""


def paired_table(comparison: Comparison) -> TextTable:
    """Each model against the baseline on the same images, with the counts of the paired test."""
    rows = []
    for model in comparison.models[1:]:
        for condition in shown_conditions(comparison):
            row = comparison.cells.get((model, condition))
            if row is None or math.isnan(row["difference"]):
                continue
            rows.append(
                (
                    Cell(model),
                    Cell(condition.title, condition.size),
                    Cell(wording.points(row["difference"])),
                    Cell(f"{row['gained']:.0f}"),
                    Cell(f"{row['lost']:.0f}"),
                    Cell(wording.p_value(row["p"]).removeprefix("p = ").removeprefix("p ")),
                    Cell(wording.p_value(row["p_holm"]).removeprefix("p = ").removeprefix("p "))
                    if condition.radius != 0
                    else Cell("–"),
                )
            )
    heads = ("Model", "Attack", "Difference", "Gained", "Lost", "p", "p, Holm")
    return TextTable(
        name=f"paired-{comparison.slug}",
        title=f"Against {comparison.baseline} on the same images",
        head=tuple(Cell(head) for head in heads),
        rows=tuple(rows),
        notes=(
            "The difference is in percentage points. Gained counts the images that only the model"
            f" gets right, lost those that only {comparison.baseline} gets right. The p-value is"
            " that of the exact two-sided McNemar test on these two counts, 1 if both are 0. The"
            " last column is its Holm adjustment over the attacks and worst cases of a model.",
        ),
    )


def success_table(comparison: Comparison) -> TextTable:
    """The attack success rate by each of its three definitions."""
    rows = []
    for model in comparison.models:
        for condition in shown_conditions(comparison):
            row = comparison.cells.get((model, condition))
            if row is None or condition.attack == CLEAN:
                continue
            rates = ("attack_success_rate", "net_success_rate", "error_rate")
            rows.append(
                (
                    Cell(model),
                    Cell(condition.title, condition.size),
                    *(Cell(wording.percent(row[rate])) for rate in rates),
                )
            )
    return TextTable(
        name=f"success-rates-{comparison.slug}",
        title=f"Attack success rate by its three definitions, {comparison.title}",
        head=(
            Cell("Model"),
            Cell("Attack"),
            Cell("Of clean-correct", "RGA, HART"),
            Cell("Net loss", "PDSG"),
            Cell("Of all images", "ASSG"),
        ),
        rows=tuple(rows),
        notes=(
            "Papers use the name attack success rate for three different numbers, which must not be"
            " compared with each other. Of clean-correct: the fraction of the images right when"
            " clean that the attack breaks. Net loss: (clean accuracy − accuracy) / clean accuracy,"
            " so that images that the attack mends cancel images that it breaks. Of all images:"
            " 1 − accuracy, so that errors on clean images count as success.",
        ),
    )


def operations_table(comparison: Comparison) -> TextTable:
    """The synaptic operations of each model under each attack, next to those on clean images."""
    worst = [c for c in worst_cases(comparison) if c not in comparison.conditions]
    rows = []
    for condition in (*shown_conditions(comparison), *worst):
        cells = []
        for run in comparison.runs:
            found, clean = operations(run, condition), operations(run)
            cells.append(Cell(wording.millions(found), _times(found, clean)))
        rows.append((Cell(condition.title, condition.size), *cells))
    return TextTable(
        name=f"operations-{comparison.slug}",
        title=f"Synaptic operations under attack, {comparison.title}",
        head=(Cell("Attack"), *(Cell(run.label, "million per image") for run in comparison.runs)),
        rows=tuple(rows),
        notes=("In brackets stands the ratio to the operations on clean images.",),
    )


def layers_table(comparison: Comparison) -> TextTable:
    """The operations of each layer with synapses on clean images."""
    rows = [
        (
            Cell(run.label),
            Cell(str(layer["name"])),
            Cell(str(layer["inputs"])),
            Cell(str(layer["passes"])),
            Cell(f"{layer['weights']:,}"),
            Cell(wording.percent(layer["kept"] / layer["weights"])),
            Cell(wording.millions(layer["dense"])),
            Cell(wording.millions(layer["synaptic"])),
        )
        for run in comparison.runs
        for layer in run.manifest.operations
    ]
    heads = ("Model", "Layer", "Inputs", "Passes", "Weights", "Not zero")
    millions = (Cell("Dense", "million per image"), Cell("Operations", "million per image"))
    return TextTable(
        name=f"layers-{comparison.slug}",
        title="Operations of each layer on clean images",
        head=(*map(Cell, heads), *millions),
        rows=tuple(rows),
        notes=(
            "Dense operations are those without any zero. A layer that sees a static image is"
            " computed once, every other layer of a spiking network once for each time step. Pooled"
            " inputs are means of spikes.",
        ),
    )


def published_table(comparison: Comparison) -> TextTable | None:
    """Our accuracies next to published ones on the same data; None if there are none."""
    own = comparison.runs[0].data
    rows = []
    sources: dict[str, None] = {}
    for run in comparison.runs:
        for condition in comparison.conditions:
            found = published(run, condition)
            row = comparison.cells.get((run.label, condition))
            if found is None or row is None:
                continue
            sources[found.source] = None
            rows.append(
                (
                    Cell(run.label),
                    Cell(condition.title, condition.size),
                    Cell(wording.percent(row["accuracy"])),
                    Cell(wording.percent(found.accuracy), note=found.note),
                    Cell(found.source),
                )
            )
    if not rows:
        return None
    ours = wording.data(own)
    return TextTable(
        name=f"published-{comparison.slug}",
        title="Next to published numbers",
        head=tuple(map(Cell, ("Model", "Attack", f"Ours, {ours}", f"Published, {ours}", "Source"))),
        rows=tuple(rows),
        notes=(
            "The published values are for the same architecture, training method and attack on"
            f" {ours}; the widths and seeds differ. A derived value was computed from a difference"
            " that the paper prints, because the paper does not print the accuracy itself.",
        ),
        caption=f"Accuracies on {ours} next to those of {wording.listing(list(sources))}.",
    )
