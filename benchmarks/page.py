"""The page of the benchmark, from its table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from benchmarks.aims import aims
from benchmarks.tables import DEFAULT, OURS, TITLES

IN_SHORT = {
    "input-gradient": "input gradients, images per second",
    "training-step": "training steps, images per second",
    "inference": "inference, images per second",
    "input-gradient" + DEFAULT: "input gradients, default process",
    "peak-memory": "peak memory of an input gradient, MiB",
}


def in_short(table: pd.DataFrame, headline: tuple[str, int, int]) -> str:
    """The short table of the README: all measures of the network of the aims."""
    rows = [
        row
        for row in table.to_dict("records")
        if (row["architecture"], row["steps"], row["batch"]) == headline
        and row["library"] != "hire-loop"
    ]
    libraries = [name for name in TITLES if any(row["library"] == name for row in rows)]
    if not libraries:
        return "Nothing is measured yet."
    lines = []
    for measure, label in IN_SHORT.items():
        found = {
            str(row["library"]): float(row["value"]) for row in rows if row["measure"] == measure
        }
        cells = [
            ""
            if name not in found
            else f"{found[name] / 2**20:.0f}"
            if measure == "peak-memory"
            else _short(headline[2] / found[name])
            for name in libraries
        ]
        lines.append([label, *cells])
    return _markdown(["", *(TITLES[name] for name in libraries)], lines)


def page(
    table: pd.DataFrame,
    cells: Sequence[dict[str, Any]],
    headline: tuple[str, int, int],
    machine: str,
    attack: dict[str, Any] | None = None,
    profile: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
    long: dict[str, Any] | None = None,
) -> str:
    """The text of `speed.md`.

    Args:
        table: The table of all measurements.
        cells: The speed cells, for what was shown to be equal.
        headline: The architecture, time steps and batch size that the aims are about.
        machine: The description of the machine, in Markdown.
        attack: The PGD evaluation.
        profile: The parts of the time of an input gradient.
        notes: Remarks on how the libraries were set.
        long: The peak memory of a long sequence.
    """
    architecture, steps, batch = headline
    parts = [
        "# Speed and memory",
        f"Medians of alternating runs in one process, on the machine below. The network of the "
        f"aims is {architecture.upper()} (64-128-128, one classifier layer of 1024, 3x32x32) with "
        f"T = {steps} and batches of {batch}, float32, direct encoding, random weights scaled to "
        "spike. Before it is timed every library is shown to compute the same logits and "
        "gradients.",
        in_short(table, headline),
        "## Aims",
        _markdown(
            ["what", "against", "aim", "measured", "met"],
            [[a.what, a.against, a.aim, a.measured, _met(a.met)] for a in aims(table, headline)],
        ),
        "A ratio is that of the medians; in brackets its least and most over the rounds. "
        "*Layers alone* are the convolutions, pools and linear layers without neurons, over time "
        "x batch in one call, channels last.",
    ]
    for task in ("input-gradient", "training-step", "inference"):
        rows = table[table["measure"] == task]
        if not rows.empty:
            parts += [f"## {task.replace('-', ' ').capitalize()}, images per second", _speeds(rows)]
            if task == "input-gradient":
                parts.append("![Throughput against time steps](throughput-vs-T.png)")
    rows = table[table["measure"].str.endswith(DEFAULT)]
    if not rows.empty:
        parts += [
            "## The aims' cell in a process with default settings, images per second",
            "Above, every library runs under the process settings of `robustsnn`'s command line: "
            "an allocator that keeps freed memory, idle threads that sleep. They suit this package "
            "and SpikingJelly; a loop over time may be faster without. Here nobody has them, as in "
            "a script that imports a library.",
            _default_process(rows),
        ]
    parts += _memory_part(table, long)
    if attack is not None:
        parts += ["## A whole PGD-50 evaluation", _attack(attack)]
    if profile is not None:
        parts += ["## Where the time of our input gradient goes", profile_markdown(profile)]
    parts += ["## Shown equal first", _equality(cells)]
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    parts += ["## Machine", machine]
    return "\n\n".join(p.rstrip() for p in parts) + "\n"


def _memory_part(table: pd.DataFrame, long: dict[str, Any] | None) -> list[str]:
    parts = []
    memory = table[table["measure"] == "peak-memory"]
    if not memory.empty:
        parts += [
            "## Peak memory of an input gradient, MiB beyond what was resident",
            _memory(memory),
            "RobustSNN as its victims run, in micro-batches, and with the whole batch at once as "
            "the other libraries run. One measurement each.",
            "![Memory against time steps](memory-vs-T.png)",
        ]
    if long is not None:
        parts.append(
            f"A long sequence: the input gradient of {long['architecture'].upper()} at T = "
            f"{long['steps']}, batch {long['batch']}, recomputed in segments of "
            f"{long['recompute']} steps, needs {long['bytes'] / 2**30:.2f} GiB beyond what was "
            f"resident, {long['whole_process'] / 2**30:.2f} GiB with the whole process, and "
            f"{long['seconds']:.0f} s."
        )
    return parts


def profile_markdown(profile: dict[str, Any]) -> str:
    """A table of the parts of an input gradient, and the arithmetic that is reached."""
    total = profile["total"]
    rows = [
        [name, f"{spent:.1f}", f"{spent / total:.1%}"]
        for name, spent in profile["milliseconds"].items()
    ]
    rows.append(["all", f"{total:.1f}", "100.0%"])
    reached = profile["gflop_per_second"]
    forward, backward = reached["convolution forward"], reached["convolution backward"]
    return (
        _markdown(["part", "ms", "share"], rows)
        + f"\n\n{profile['architecture'].upper()}, T = {profile['steps']}, batch "
        f"{profile['batch']}: self time of the operations by torch.profiler; without the profiler "
        f"one gradient takes {profile['wall']:.1f} ms. The convolutions do "
        f"{profile['gflop']:.1f} GFLOP each way, at {forward:.0f} GFLOP/s forward and "
        f"{backward:.0f} GFLOP/s backward; a large matrix product reaches "
        f"{reached['matmul']:.0f} GFLOP/s here."
    )


def _speeds(table: pd.DataFrame) -> str:
    rows = table.to_dict("records")
    libraries = [name for name in TITLES if any(row["library"] == name for row in rows)]
    lines: dict[tuple[str, int, int], dict[str, str]] = {}
    for row in rows:
        batch = int(row["batch"])
        text = _short(batch / row["value"])
        if row["library"] == OURS:
            low, high = batch / row["upper_quartile"], batch / row["lower_quartile"]
            text += f" [{_short(low)}, {_short(high)}]"
        else:
            text += f" ({row['ratio_to_ours']:.2f}x)"
        key = (str(row["architecture"]), int(row["steps"]), batch)
        lines.setdefault(key, {})[str(row["library"])] = text
    body = [
        [*(str(k) for k in key), *(line.get(name, "") for name in libraries)]
        for key, line in sorted(lines.items(), key=lambda item: (item[0][0] != "vgg5", item[0]))
    ]
    return (
        _markdown(["network", "T", "batch", *(TITLES[n] for n in libraries)], body)
        + "\n\nOurs with its quartiles; beside the others, how many times as fast ours is. All "
        "spreads are in `speed.csv`."
    )


def _default_process(table: pd.DataFrame) -> str:
    rows = table.to_dict("records")
    libraries = [name for name in TITLES if any(row["library"] == name for row in rows)]
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        text = _short(int(row["batch"]) / row["value"])
        if row["library"] != OURS:
            text += f" ({row['ratio_to_ours']:.2f}x)"
        task = str(row["measure"]).removesuffix(DEFAULT).replace("-", " ")
        lines.setdefault(task, {})[str(row["library"])] = text
    body = [[task, *(line.get(name, "") for name in libraries)] for task, line in lines.items()]
    return _markdown(["", *(TITLES[name] for name in libraries)], body)


def _memory(table: pd.DataFrame) -> str:
    rows = table.to_dict("records")
    libraries = [name for name in TITLES if any(row["library"] == name for row in rows)]
    lines: dict[tuple[int, int], dict[str, str]] = {}
    for row in rows:
        key = (int(row["steps"]), int(row["batch"]))
        lines.setdefault(key, {})[str(row["library"])] = f"{row['value'] / 2**20:.0f}"
    body = [
        [str(steps), str(batch), *(line.get(name, "") for name in libraries)]
        for (steps, batch), line in sorted(lines.items())
    ]
    return _markdown(["T", "batch", *(TITLES[n] for n in libraries)], body)


def _attack(attack: dict[str, Any]) -> str:
    body = [
        [
            title,
            f"{found['seconds']:.1f}",
            f"{found['robust_accuracy']:.1%}",
            f"{found['gradients_per_image']:.1f}",
        ]
        for title, found in (
            ("RobustSNN", attack["ours"]),
            ("torchattacks, network in SpikingJelly", attack["theirs"]),
        )
    ]
    return (
        _markdown(["", "seconds", "robust accuracy", "gradients an image"], body)
        + f"\n\n{attack['model']}, the first {attack['samples']} images of {attack['data']}, Linf, "
        f"epsilon {attack['epsilon']}, {attack['steps']} steps of 2.5 epsilon / "
        f"{attack['steps']}, clean accuracy {attack['clean_accuracy']:.1%}. Both proposals are "
        "judged by a fresh copy of the network, and that counts into both times; each was run "
        "once, ours first. Ours stops with "
        "an image once it is fooled and does not attack what is wrong anyway; the gradients an "
        "image say how much that saves."
    )


def _equality(cells: Sequence[dict[str, Any]]) -> str:
    worst: dict[str, list[float]] = {}
    for measured in cells:
        for library, found in measured["differences"].items():
            so_far = worst.setdefault(library, [0.0, 0.0])
            so_far[0] = max(so_far[0], found["logits"])
            so_far[1] = max(so_far[1], found["gradient"])
    body = [[TITLES[n], f"{a:.1e}", f"{b:.1e}"] for n, (a, b) in worst.items()]
    rates = [rate for measured in cells for rate in measured["rates"].values()]
    redrawn = sum(measured["redrawn"] for measured in cells)
    text = _markdown(["library", "logits", "gradients"], body)
    text += (
        "\n\nLargest differences from ours over all cells, relative to the largest entry; of "
        "gradients to the input in the first task, to the weights in the second. "
    )
    if rates:
        text += (
            f"Layers spike at {min(rates):.0%} to {max(rates):.0%} a neuron and step. "
            f"{redrawn} images were drawn anew, because a membrane met the threshold exactly."
        )
    return text


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _met(met: bool | None) -> str:
    return "" if met is None else "met" if met else "**not met**"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
