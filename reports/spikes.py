"""Spikes per neuron and time step in each layer of the spiking models."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from robustsnn.common import wording
from robustsnn.records.runs import Run, Runs
from robustsnn.reporting import figures


def render(runs: Runs, output: Path) -> list[Path]:
    """Draw one figure of all spiking models, or none if no model spikes."""
    # Several runs of a model differ only in their images: take the run with the most images.
    largest: dict[str, Run] = {}
    for run in runs.runs:
        if len(run.activity) and (
            run.label not in largest or run.samples > largest[run.label].samples
        ):
            largest[run.label] = run
    return _draw(runs, largest, output) if largest else []


def _draw(runs: Runs, spiking: dict[str, Run], output: Path) -> list[Path]:
    layers = list(dict.fromkeys(name for r in spiking.values() for name in r.activity["layer"]))
    labels = list(spiking)
    below = figures.legend_height(figures.WIDTH, labels)
    longest = max(len(name) for name in layers)
    slanted = longest * len(layers) > 58
    under = 0.075 * min(longest, 16) + 0.1 if slanted else 0.2
    height = 2.5 + under + below
    with figures.style():
        figure = Figure(figsize=(figures.WIDTH, height))
        axes = figure.subplots()
        for index, (model, run) in enumerate(spiking.items()):
            by_layer = run.activity.groupby("layer")["spikes_per_neuron"]
            mean, low, high = by_layer.mean(), by_layer.min(), by_layer.max()
            offset = (index - (len(spiking) - 1) / 2) * min(0.16, 0.7 / len(spiking))
            present = [i for i, name in enumerate(layers) if name in mean.index]
            x = [i + offset for i in present]
            names = [layers[i] for i in present]
            shade = figures.colour(runs.models, model)
            axes.vlines(
                x,
                [low[n] for n in names],
                [high[n] for n in names],
                color=shade,
                linewidth=3.2,
                alpha=0.35,
            )
            axes.plot(
                x,
                [mean[n] for n in names],
                color=shade,
                marker=figures.marker(runs.models, model),
                markersize=6.5,
                markeredgecolor=figures.PAPER,
                markeredgewidth=0.8,
                linestyle="none",
            )
        axes.set_xticks(range(len(layers)), [figures.shorten(name, 16) for name in layers])
        if slanted:
            for text in axes.get_xticklabels():
                text.set(rotation=40, ha="right", rotation_mode="anchor")
        axes.set_xlim(-0.55, len(layers) - 0.45)
        axes.set_ylim(bottom=0)
        axes.margins(y=0.1)
        axes.set_ylabel("spikes per neuron and step")
        figure.subplots_adjust(
            left=0.135, right=0.985, top=1 - 0.1 / height, bottom=(below + under + 0.12) / height
        )
        handles = [
            figures.line(figures.colour(runs.models, m), figures.marker(runs.models, m))
            for m in spiking
        ]
        figures.legend(figure, handles, labels, below)
    steps = wording.listing([str(t) for t in sorted({r.time_steps for r in spiking.values()})])
    silent = list(dict.fromkeys(run.label for run in runs.runs if run.kind == "ann"))
    verb, are = ("does", "is") if len(silent) == 1 else ("do", "are")
    note = f" {wording.listing(silent)} {verb} not spike and {are} not shown." if silent else ""
    return figures.save(
        figure,
        output,
        "spikes",
        "Spikes per neuron and step",
        f"The marker is the mean over the clean images and the {steps} time steps in each spiking"
        f" layer; the bar is the range of the single steps.{note}",
    )
