"""What the study of stages found: the best order of the stages, the page and the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from robustsnn.common import wording as formats
from studies.shared import survivors_in, write_results
from studies.stages.study import COLUMNS


def greedy(some: pd.DataFrame, passes: float = np.inf) -> list[tuple[str, int]]:
    """The order in which each stage breaks the most survivors of the stages before it.

    Args:
        some: Rows of one network.
        passes: The most passes of a stage by itself; more expensive stages are not considered.

    Returns:
        The stages with the number of images that each adds, up to the last one that adds any.
    """
    pending = {
        str(row["stage"]): survivors_in(row)
        for _, row in some.iterrows()
        if row["passes"] <= passes
    }
    surviving = set().union(*pending.values()) if pending else set()
    count = round(float(some["probed"].iloc[0]) * int(some["samples"].iloc[0]))
    found: list[tuple[str, int]] = []
    while pending:
        stage = min(pending, key=lambda name: len(pending[name] & surviving))
        after = surviving & pending.pop(stage)
        if len(after) == count:
            break
        found.append((stage, count - len(after)))
        surviving, count = after, len(after)
    return found


def page(table: pd.DataFrame, command: str) -> str:
    """The text of `stages.md`."""
    lines = [
        "# Stages",
        "",
        f"Made by `{command}`. What one stage by itself breaks of the training images that the "
        "probes of `standard` left, L∞ 8/255, seed 0; the gradient stages of `standard` are put "
        "together from this, and not from test images; its probes and its search from the best "
        "point were not tried here. Passes are forward and backward, a mean over those images; "
        "*only* is what no other candidate breaks.",
        "",
    ]
    for (model, samples), some in table.groupby(["model", "samples"], sort=False):
        probed = round(some["probed"].iloc[0] * samples)
        sets = {row["stage"]: survivors_in(row) for _, row in some.iterrows()}
        together = set.intersection(*sets.values())
        lines += [
            f"## {model}, {samples} training images",
            "",
            f"{100 * some['clean'].iloc[0]:.1f} % clean; the probes leave "
            f"{formats.count(probed, 'image')}, all candidates together {len(together)}.",
            "",
            "| stage | broken | only | passes | seconds |",
            "|---|---:|---:|---:|---:|",
        ]
        for _, row in some.sort_values("broken", ascending=False, kind="stable").iterrows():
            others = [ids for name, ids in sets.items() if name != row["stage"]]
            only = set.intersection(*others) - sets[row["stage"]] if others else set()
            lines.append(
                f"| {row['stage']} | {row['broken']} | {len(only)} | {row['passes']:,.0f} "
                f"| {row['seconds']:,.0f} |"
            )
        order = ", ".join(f"{stage} ({added})" for stage, added in greedy(some))
        lines += ["", f"Greedily, with what each adds: {order or 'nothing'}.", ""]
    return "\n".join(lines)


def write(studies: Sequence[pd.DataFrame], output: Path, command: str) -> pd.DataFrame:
    """Write the table and the page of all that was run, now or earlier."""
    filled = [one for one in studies if len(one)]
    table = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=COLUMNS)
    if (output / "stages.csv").exists():
        earlier = pd.read_csv(output / "stages.csv", keep_default_na=False)
        kept = earlier[~earlier["model"].isin(table["model"])]
        # An empty table would turn the numbers of the other one into objects.
        filled = [one for one in (kept, table) if len(one)]
        table = pd.concat(filled, ignore_index=True) if filled else table
    write_results(output, "stages", table, page(table, command))
    return table
