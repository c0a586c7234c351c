"""The words of trust: what A, B and C mean, and what a run, a flag or a finding says in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustsnn.records.runs import Run

#: What each level says about the worst case.
LEVELS = {
    "A": "No flag: no known warning sign was found. It is not a proof.",
    "B": "Upper bound: the number is right for these attacks, and stronger ones may lower it.",
    "C": "Not reliable: attacks failed or met another network; do not quote the number.",
}
#: The page that explains every column, next to the code and on the web.
GUIDE = "docs/reading-a-report.md"
GUIDE_URL = f"https://github.com/robustsnn/robustsnn/blob/main/{GUIDE}"

#: What is said of an unflagged finding of a run that is older than the sentences for such findings.
UNFLAGGED = "Not flagged: the value is within the limits of this diagnostic."
#: The checks whose sentence, in older runs, was that of the flag; the others had two.
_ONE_SENTENCE = frozenset(("zero-gradient", "nonfinite-gradient", "ties"))
#: The findings that are never flagged, whose sentences say nothing against a number.
_NEUTRAL = frozenset(("temporal-share", "ledger", "logit-values"))


@dataclass(frozen=True)
class Reason:
    """One reason for the level of a run.

    Args:
        level: The level that this reason alone would give.
        sentence: The reason, in one sentence.
        next: What to do next, in one sentence.
    """

    level: str
    sentence: str
    next: str


def reasons(run: Run) -> list[Reason]:
    """All reasons for the level of a run, the most serious first; none for an A or an older run."""
    because = run.diagnosis.get("because") or ()
    texts = (
        [str(row.get(name) or "") for name in ("level", "sentence", "next")] for row in because
    )
    return [Reason(*text) for text in texts]


def level_sentence(run: Run) -> str:
    """The level of a run, its first reason, and what to do next; empty for an older run."""
    diagnosis = run.diagnosis
    if not run.level:
        return ""
    found = reasons(run)
    said = str(diagnosis.get("sentence") or "")
    if found:
        # The stored sentence counts the other reasons, which are listed instead.
        said = f"{run.level}, {diagnosis.get('title') or ''}: {found[0].sentence}"
    parts = (said, str(diagnosis.get("next") or ""), run.manifest.diagnosed_again)
    return " ".join(part for part in parts if part)


def other_reasons(run: Run) -> list[Reason]:
    """The reasons for the level of a run after the first."""
    return reasons(run)[1:]


def mark_of(run: Run, slug: str, severity: str) -> str:
    """The level that a flag alone would give a run; its severity where the run does not say.

    Args:
        run: The run.
        slug: The name of the flag.
        severity: The severity of the flag, such as `note`.
    """
    for row in run.diagnosis.get("because") or ():
        if row.get("flag") == slug and row.get("level"):
            return str(row["level"])
    return severity


def sentence_of(row: Mapping[str, Any], slug: str) -> str:
    """What a stored check or finding says; never an accusation if it is not flagged.

    Args:
        row: A row of the manifest's `preflight`, `probe` or `diagnostics`.
        slug: The name of the finding.
    """
    sentence = str(row.get("sentence") or "")
    is_check = "passed" in row
    if (not row["passed"]) if is_check else row.get("flagged"):
        return sentence
    if row.get("wording") or slug in _NEUTRAL or (is_check and slug not in _ONE_SENTENCE):
        return sentence
    return UNFLAGGED
