"""What the study of HoSNN found: the page and its table."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd

from robustsnn.common.files import write_atomically
from studies.hosnn.study import COLUMNS, EPSILON, NETWORKS, PRINTED

_NAMES = {
    "clean": "clean images",
    "pgd-7-published": "PGD-7 along the published gradient",
    "pgd-7-live": "PGD-7 where spikes flip",
    "standard": "`standard`",
}


def write(rows: list[dict[str, Any]], output: Path, command: str) -> pd.DataFrame:
    """Write `hosnn.csv` and `hosnn.md`; the table.

    Args:
        rows: The rows of the networks; without any, the table that is there is taken.
        output: The folder.
        command: The command that the page names.
    """
    path = output / "hosnn.csv"
    if rows:
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        text = io.StringIO()
        table.to_csv(text, index=False, lineterminator="\n")
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.getvalue().encode())
    table = pd.read_csv(path, keep_default_na=False)
    write_atomically(output / "hosnn.md", page(table, command).encode())
    return table


def page(table: pd.DataFrame, command: str) -> str:
    """The text of `hosnn.md`."""
    samples = int(table["samples"].max())
    lines = [
        "# HoSNN, evaluated again",
        "",
        f"Made by `{command}`. HoSNN (Geng and Li, TMLR 2025) raises the threshold of a neuron "
        "that an input drives harder than clean images do. Its published code evaluates the "
        "surrogate at the threshold that the neuron began with, in training and in the attack, so "
        "that the attack follows another network. This is a small network of that kind, trained in "
        f"the same way on one-step attacks, next to its plain twin; accuracy in % on {samples} "
        f"test images of Fashion-MNIST at L∞ {EPSILON}. The paper prints {PRINTED['hosnn']} % and "
        f"{PRINTED['plain']} % for its own, larger networks under PGD with 7 steps.",
        "",
        f"| attack | {' | '.join(NETWORKS)} |",
        f"|---|{'---:|' * len(NETWORKS)}",
    ]
    for attack, said in _NAMES.items():
        cells = []
        for name in NETWORKS:
            some = table[(table["network"] == name) & (table["attack"] == attack)]
            level = f" ({some['level'].iloc[0]})" if len(some) and some["level"].iloc[0] else ""
            cells.append(f"{100 * float(some['accuracy'].iloc[0]):.1f}{level}" if len(some) else "")
        lines.append(f"| {said} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_claim(table), ""])


def _claim(table: pd.DataFrame) -> list[str]:
    """What is left of the gain over the plain network, in sentences."""
    at = table.set_index(["network", "attack"])["accuracy"].astype(float)
    lines = []
    for attack, said in list(_NAMES.items())[1:]:
        both = [(name, attack) in at.index for name in NETWORKS]
        if all(both):
            gain = 100 * (at[("hosnn", attack)] - at[("plain", attack)])
            lines.append(f"Under {said}, HoSNN keeps {gain:+.1f} points against its plain twin.")
    flags = " ".join(table[table["network"] == "hosnn"]["flags"].astype(str)).split()
    if flags:
        lines.append(f"Its run of `standard` is flagged: {', '.join(sorted(set(flags)))}.")
    return [" ".join(lines)] if lines else []
