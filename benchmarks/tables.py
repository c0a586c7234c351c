"""Measurements to a tidy table, the aims and a page; nothing is measured here."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.timing import Spread, paired_ratios

OURS = "robustsnn"
WHOLE = "robustsnn-whole"
SPIKINGJELLY = "spikingjelly"
COMPILED = "spikingjelly-compiled"
PEER_ATTACK = "torchattacks"
#: Ends the name of a measure taken in a process with default settings.
DEFAULT = ", default process"
LONG = "peak-memory, recomputed"
TITLES = {
    OURS: "RobustSNN",
    WHOLE: "RobustSNN, whole batch",
    "snntorch": "snnTorch",
    SPIKINGJELLY: "SpikingJelly",
    COMPILED: "SpikingJelly, compiled",
    "hire-loop": "HIRE's loop",
    "layers-alone": "layers alone",
}
IN_SHORT = {
    "input-gradient": "input gradients, images per second",
    "training-step": "training steps, images per second",
    "inference": "inference, images per second",
    "input-gradient" + DEFAULT: "input gradients, default process",
    "peak-memory": "peak memory of an input gradient, MiB",
}
COLUMNS = (
    *("measure", "architecture", "steps", "batch", "library", "rounds", "value", "unit"),
    *("lower_quartile", "upper_quartile", "least", "most"),
    *("ratio_to_ours", "ratio_least", "ratio_most"),
)


@dataclass(frozen=True)
class Aim:
    """One aim, and what was measured; None where nothing was."""

    what: str
    against: str
    aim: str
    measured: str
    met: bool | None


def tidy(
    cells: Sequence[dict[str, Any]],
    memory: Sequence[dict[str, Any]] = (),
    attack: dict[str, Any] | None = None,
    default_process: Sequence[dict[str, Any]] = (),
    long: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """One row a measure, network, size and library.

    Times are seconds a call, the median with its quartiles and extremes; `ratio_to_ours` is the
    quotient of medians, its least and most those of the rounds, each library's run against ours
    in the same round. Memory is bytes, robust accuracy a fraction. Measures of a process with
    default settings end in `DEFAULT`.
    """
    rows: list[dict[str, Any]] = []
    for measured, suffix in [*((m, "") for m in cells), *((m, DEFAULT) for m in default_process)]:
        cell, seconds = measured["cell"], measured["seconds"]
        for library, values in seconds.items():
            spread = Spread.of(values)
            ratios = paired_ratios(values, seconds[OURS])
            rows.append(
                {
                    "measure": cell["task"] + suffix,
                    "architecture": cell["architecture"],
                    "steps": cell["steps"],
                    "batch": cell["batch"],
                    "library": library,
                    "rounds": len(values),
                    "value": spread.median,
                    "unit": "s",
                    "lower_quartile": spread.lower,
                    "upper_quartile": spread.upper,
                    "least": spread.least,
                    "most": spread.most,
                    "ratio_to_ours": spread.median / Spread.of(seconds[OURS]).median,
                    "ratio_least": min(ratios),
                    "ratio_most": max(ratios),
                }
            )
    bytes_of = {(m["steps"], m["batch"], m["library"]): m["bytes"] for m in memory}
    for m in memory:
        ours = bytes_of.get((m["steps"], m["batch"], OURS))
        rows.append(
            {
                "measure": "peak-memory",
                **{name: m[name] for name in ("architecture", "steps", "batch", "library")},
                "rounds": 1,
                "value": m["bytes"],
                "unit": "B",
                "ratio_to_ours": m["bytes"] / ours if ours else None,
            }
        )
    if long is not None:
        rows.append(
            {
                "measure": LONG,
                **{name: long[name] for name in ("architecture", "steps", "batch", "library")},
                "rounds": 1,
                "value": long["bytes"],
                "unit": "B",
            }
        )
    if attack is not None:
        for library, key in ((OURS, "ours"), (PEER_ATTACK, "theirs")):
            for measure, field, unit in (
                ("pgd-50", "seconds", "s"),
                ("robust-accuracy", "robust_accuracy", "1"),
            ):
                ours = attack["ours"][field]
                value = attack[key][field]
                rows.append(
                    {
                        "measure": measure,
                        "architecture": attack["model"],
                        "batch": attack["samples"],
                        "library": library,
                        "rounds": 1,
                        "value": value,
                        "unit": unit,
                        "ratio_to_ours": value / ours if ours else None,
                    }
                )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def aims(table: pd.DataFrame, headline: tuple[str, int, int]) -> list[Aim]:
    """What was wanted of the headline's network, and what came of it."""
    rows = table.to_dict("records")

    def speed(task: str, library: str, least: float) -> Aim:
        found = [
            row
            for row in rows
            if row["measure"] == task
            and (row["architecture"], row["steps"], row["batch"]) == headline
            and row["library"] == library
        ]
        what, aim = task.replace("-", " "), f"at least {least:g}x"
        if not found:
            return Aim(what, TITLES[library], aim, "not measured", None)
        ratio = float(found[0]["ratio_to_ours"])
        spread = f"{found[0]['ratio_least']:.2f} to {found[0]['ratio_most']:.2f}"
        return Aim(what, TITLES[library], aim, f"{ratio:.2f}x ({spread})", ratio >= least)

    return [
        speed("input-gradient", "snntorch", 3.2),
        speed("input-gradient", SPIKINGJELLY, 2.5),
        speed("input-gradient", COMPILED, 2.5),
        speed("input-gradient", "layers-alone", 1.0),
        speed("training-step", "snntorch", 2.5),
        speed("training-step", SPIKINGJELLY, 1.8),
        speed("training-step", COMPILED, 1.8),
        speed("inference", SPIKINGJELLY, 2.0),
        speed("inference", COMPILED, 2.0),
        *_memory_aims(rows),
        _attack_aim(rows),
    ]


def in_short(table: pd.DataFrame, headline: tuple[str, int, int]) -> str:
    """The headline's network at a glance; what the README shows."""
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


def _memory_aims(rows: Sequence[Mapping[Hashable, Any]]) -> list[Aim]:
    what, peer, aim = "peak memory of an input gradient", TITLES[SPIKINGJELLY], "at most 0.5"
    bytes_of = {
        (int(row["steps"]), row["library"]): float(row["value"])
        for row in rows
        if row["measure"] == "peak-memory"
    }
    found = []
    for steps in sorted({steps for steps, _ in bytes_of}):
        theirs = bytes_of.get((steps, SPIKINGJELLY))
        for ours, how in ((OURS, ""), (WHOLE, ", whole batch")):
            mine = bytes_of.get((steps, ours))
            if mine is not None and theirs:
                share = mine / theirs
                text = f"{what}, T = {steps}{how}"
                found.append(Aim(text, peer, aim, f"{share:.2f}", share <= 0.5))
    return found or [Aim(what, peer, aim, "not measured", None)]


def _attack_aim(rows: Sequence[Mapping[Hashable, Any]]) -> Aim:
    peer = "torchattacks on SpikingJelly"
    aim = "at least 8x sooner, robust accuracy equal or lower and at most 10 %"
    seconds = {r["library"]: r for r in rows if r["measure"] == "pgd-50"}
    left = {r["library"]: float(r["value"]) for r in rows if r["measure"] == "robust-accuracy"}
    if PEER_ATTACK not in seconds:
        return Aim("PGD-50", peer, aim, "not measured", None)
    row = seconds[PEER_ATTACK]
    sooner, mine, theirs = float(row["ratio_to_ours"]), left[OURS], left[PEER_ATTACK]
    return Aim(
        f"PGD-50 on {int(row['batch'])} images",
        peer,
        aim,
        f"{sooner:.1f}x, robust accuracy {mine:.1%} against {theirs:.1%}",
        sooner >= 8 and mine <= theirs and mine <= 0.1,
    )


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
    """`speed.md`."""
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
            [
                [a.what, a.against, a.aim, a.measured, _verdict(a.met)]
                for a in aims(table, headline)
            ],
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
    if attack is not None:
        parts += ["## A whole PGD-50 evaluation", _attack(attack)]
    if profile is not None:
        parts += ["## Where the time of our input gradient goes", profile_markdown(profile)]
    parts += ["## Shown equal first", _equality(cells)]
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    parts += ["## Machine", machine]
    return "\n\n".join(p.rstrip() for p in parts) + "\n"


def profile_markdown(profile: dict[str, Any]) -> str:
    """Shares of the parts, and the arithmetic reached."""
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


def profile_csv(profile: dict[str, Any]) -> pd.DataFrame:
    """`profile.csv`: part, milliseconds, share."""
    rows = [
        (name, spent, spent / profile["total"]) for name, spent in profile["milliseconds"].items()
    ]
    return pd.DataFrame(rows, columns=["part", "milliseconds", "share"])


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_results(folder: Path, name: str, table: pd.DataFrame, page: str) -> None:
    """A table as `name.csv` and its page as `name.md`, six digits a number."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"))
    write(folder / f"{name}.md", page)


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


def _verdict(met: bool | None) -> str:
    return "" if met is None else "met" if met else "**not met**"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
