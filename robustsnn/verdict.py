"""What a comparison says, in sentences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from robustsnn import formats
from robustsnn.comparison import CLEAN_THREAT, Comparison, Threat, strongest
from robustsnn.formats import WORST_CASE
from robustsnn.reporting import Run

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Verdict:
    """What is said of one model: the number first, then the rest of the sentences."""

    model: str
    number: str
    sentence: str
    caution: str


def verdicts(comparison: Comparison) -> list[Verdict]:
    """One verdict for each model of a comparison."""
    say = _curve if comparison.is_curve else _headline
    found = []
    for run in comparison.runs:
        number, sentence = say(comparison, run)
        found.append(Verdict(run.label, number, sentence, _caution(run)))
    return found


def headline_threat(comparison: Comparison) -> Threat:
    """The threat a verdict is about: what leaves the models the least accuracy on average.

    A worst case over several attacks comes before the single attacks; clean if there are none.
    """

    def left(threat: Threat) -> float:
        accuracies = [
            right[threat].mean() for right in comparison.verdicts.values() if threat in right
        ]
        return float(np.mean(accuracies))

    worst = [t for t in comparison.threats if t.attack == WORST_CASE]
    several = [t for t in worst if len(_same_size(comparison, t)) > 1]
    candidates = several or comparison.attacks or (CLEAN_THREAT,)
    return min(candidates, key=left)


def _same_size(comparison: Comparison, threat: Threat) -> list[Threat]:
    return [t for t in comparison.attacks if (t.norm, t.epsilon) == (threat.norm, threat.epsilon)]


def _headline(comparison: Comparison, run: Run) -> tuple[str, str]:
    threat = headline_threat(comparison)
    row = comparison.cells.get((run.label, threat))
    clean = comparison.cells[run.label, CLEAN_THREAT]
    images = formats.count(comparison.samples, "image")
    if row is None:
        return "–", f"{run.label} was not attacked with {threat.title}."
    number = formats.percent(row["accuracy"])
    interval = formats.bounds(row["ci_low"], row["ci_high"])
    if threat == CLEAN_THREAT:
        return number, f"{run.label} gets {number} {interval} of {images} right; no attack was run."
    hardest = strongest(comparison, run.label)
    if threat.attack != WORST_CASE or hardest is None:
        under = f"Under the strongest attack run here ({threat.title} at {threat.size}, {images})"
        alone = ""
    else:
        names = [
            t.title for t in _same_size(comparison, threat) if (run.label, t) in comparison.cells
        ]
        under = (
            f"Under the strongest of {formats.listing(names)} for each image"
            f" ({threat.size}, {images})"
        )
        left = formats.percent(comparison.cells[run.label, hardest]["accuracy"])
        alone = f"; {hardest.title} alone leaves {left}"
    sentence = (
        f"{under} {run.label} still gets {number} {interval} right, of"
        f" {formats.percent(clean['accuracy'])} clean{alone}. An upper bound: a stronger attack"
        " can only lower it."
    )
    return number, f"{sentence} {_against(comparison, run.label, threat)}".strip()


def _against(comparison: Comparison, model: str, threat: Threat) -> str:
    row = comparison.cells[model, threat]
    baseline = comparison.baseline
    if model == baseline or np.isnan(row["difference"]):
        return ""
    counts = f"{row['gained']:.0f} images gained, {row['lost']:.0f} lost"
    test = f"{counts}, {formats.p_value(row['p_holm'])}"
    size = formats.points(abs(row["difference"])).lstrip("+±")
    if row["p_holm"] >= SIGNIFICANCE:
        difference = formats.points(row["difference"])
        return f"It cannot be told apart from {baseline} ({difference} points; {test})."
    more = "more" if row["difference"] > 0 else "less"
    return f"That is {size} points {more} than {baseline} on the same images ({test})."


def _curve(comparison: Comparison, run: Run) -> tuple[str, str]:
    cells = {
        threat: comparison.cells[run.label, threat]
        for threat in sorted(comparison.attacks, key=lambda t: t.radius)
        if threat.radius > 0 and (run.label, threat) in comparison.cells
    }
    clean = formats.percent(comparison.cells[run.label, CLEAN_THREAT]["accuracy"])
    if not cells:
        return clean, f"{run.label} gets {clean} right; no attack was run."
    # The last of equal sizes would do as well; the lowest of each size is the harder attack.
    by_size: dict[tuple[str, str], Threat] = {}
    for threat, row in cells.items():
        key = (threat.norm, threat.epsilon)
        if key not in by_size or row["accuracy"] < cells[by_size[key]]["accuracy"]:
            by_size[key] = threat
    steps = list(by_size.values())
    shown = list(dict.fromkeys([steps[0], steps[len(steps) // 2], steps[-1]]))
    path = formats.listing(
        [f"{formats.percent(cells[t]['accuracy'])} at {t.epsilon}" for t in shown]
    )
    level = 1 / run.classes
    chance = f"chance ({formats.percent(level, 0 if (100 / run.classes).is_integer() else 1)})"
    reached = [t for t in steps if cells[t]["ci_low"] <= level]
    last = cells[steps[-1]]
    if reached:
        end = f"It reaches {chance} at {reached[0].epsilon}."
    else:
        end = (
            f"It stays above {chance} even at {steps[-1].epsilon}, which speaks against the attack"
            " and not for the model."
        )
    images = formats.count(comparison.samples, "image")
    sentence = f"As the perturbation grows {run.label} falls from {clean} clean to {path}"
    return formats.percent(last["accuracy"]), f"{sentence} ({images}). {end}"


def _caution(run: Run) -> str:
    failed = [c for c in run.preflight if not c.get("passed", True)]
    flags = len(run.flags)
    if not flags and not failed:
        return ""
    said = [formats.count(flags, "flag")] if flags else []
    said += [formats.count(len(failed), "failed check")] if failed else []
    verb = "speaks" if flags + len(failed) == 1 else "speak"
    return f"{formats.listing(said)} {verb} against taking these numbers as they are; see below."


def flag_sentences(runs: Iterable[Run]) -> list[tuple[str, str, str, str]]:
    """Every flag and failed check as (model, suite, severity, sentence), each once."""
    found: dict[tuple[str, str, str, str], None] = {}
    for run in runs:
        for check in run.preflight:
            if not check.get("passed", True):
                text = str(check.get("sentence") or f"The check {check.get('check')} failed.")
                found[run.label, run.suite, "failed check", text] = None
        for flag in run.flags:
            text = str(flag.get("sentence") or flag.get("flag") or "A flag without a sentence.")
            severity = str(flag.get("severity") or "flag")
            if not any(key[0] == run.label and key[3] == text for key in found):
                found[run.label, run.suite, severity, text] = None
    return list(found)
