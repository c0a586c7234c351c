"""The outcome of a comparison in sentences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from robustsnn.common import wording
from robustsnn.records.runs import Run
from robustsnn.records.schema import CLEAN_IMAGES, WORST_CASE, Condition
from robustsnn.reporting.comparison import Comparison, operations, strongest
from robustsnn.reporting.trust import Reason, level_sentence, mark_of, other_reasons

#: An adjusted p-value below this counts as a difference.
SIGNIFICANCE = 0.05

#: With more models than this, a sentence names only the best and the worst.
MANY = 4


@dataclass(frozen=True)
class Headline:
    """The outcome for one model.

    Args:
        model: The label of the model.
        number: The most important number, as text.
        meaning: The meaning of the number.
        detail: One or more sentences with further numbers.
        caution: A sentence on the flags of the run; empty if there are none.
        level: The level `A`, `B` or `C` with its title; empty for a run without one.
        trust: The first reason for the level and what to do next; empty for a run without a level.
        others: The other reasons for the level, the most serious first.
    """

    model: str
    number: str
    meaning: str
    detail: str
    caution: str
    level: str = ""
    trust: str = ""
    others: tuple[Reason, ...] = ()

    @property
    def sentence(self) -> str:
        """Number, level and detail as running text, without the caution."""
        level = f" ({self.level})" if self.level else ""
        return f"{self.model}: {self.number} {self.meaning}{level}. {self.detail}".strip()


def lead(comparison: Comparison) -> str:
    """The sentence that stands above the headlines of a comparison."""
    return _curve_lead(comparison) if comparison.is_curve else _lead(comparison)


def headlines(comparison: Comparison) -> list[Headline]:
    """One headline for each model of a comparison."""
    say = _curve if comparison.is_curve else _single
    return [
        Headline(run.label, *say(comparison, run), _caution(run), *_trust(run))
        for run in comparison.runs
    ]


def headline_condition(comparison: Comparison) -> Condition:
    """The condition that headlines are about: the one with the lowest mean accuracy of the models.

    The candidates are the worst cases over several attacks; if there is none, the single attacks;
    if there is no attack, the clean images.
    """

    def mean_accuracy(condition: Condition) -> float:
        accuracies = [
            right[condition].mean() for right in comparison.verdicts.values() if condition in right
        ]
        return float(np.mean(accuracies))

    worst = [c for c in comparison.conditions if c.attack == WORST_CASE]
    several = [c for c in worst if len(_same_size(comparison, c)) > 1]
    candidates = several or comparison.attacks or (CLEAN_IMAGES,)
    return min(candidates, key=mean_accuracy)


def _same_size(comparison: Comparison, condition: Condition) -> list[Condition]:
    return [
        c for c in comparison.attacks if (c.norm, c.epsilon) == (condition.norm, condition.epsilon)
    ]


def _is_cascade(comparison: Comparison) -> bool:
    return any(run.manifest.cascade for run in comparison.runs)


def _lead(comparison: Comparison) -> str:
    condition = headline_condition(comparison)
    numbers = []
    for model in comparison.models:
        if (row := comparison.cells.get((model, condition))) is not None:
            number = wording.percent(row["accuracy"])
            interval = wording.bounds(row["ci_low"], row["ci_high"])
            numbers.append((model, float(row["accuracy"]), f"{number} {interval}"))
    images = wording.count(comparison.samples, "image")
    if len(numbers) > MANY:
        numbers = [min(numbers, key=_accuracy), max(numbers, key=_accuracy)]
        (low, least), (high, most) = ((model, text) for model, _, text in numbers)
        kept = f"{len(comparison.models)} models stay right on {least} ({low}) to {most} ({high})"
    else:
        (first, _, number), *rest = numbers
        others = [f"{model} on {text}" for model, _, text in rest]
        stays = "is" if condition == CLEAN_IMAGES else "stays"
        kept = wording.listing([f"{first} {stays} right on {number}", *others])
    if condition == CLEAN_IMAGES:
        return f"No attack was run: {kept} of {images}."
    if condition.attack == WORST_CASE:
        names = [c.title for c in _same_size(comparison, condition)]
        strongest_of = wording.listing(names)
        if _is_cascade(comparison):
            strongest_of = f"the {len(names)} attacks of the suite {comparison.runs[0].suite}"
        under = (
            f"Against the strongest of {strongest_of} for each image ({condition.size}, {images})"
        )
    else:
        under = (
            f"Under the strongest attack run here ({condition.title}, {condition.size}, {images})"
        )
    bound, it = ("is an upper bound", "it") if len(numbers) == 1 else ("are upper bounds", "them")
    this = "This number" if len(numbers) == 1 else "These numbers"
    return f"{under}, {kept}. {this} {bound}: a stronger attack can only lower {it}."


def _accuracy(entry: tuple[str, float, str]) -> float:
    return entry[1]


def _single(comparison: Comparison, run: Run) -> tuple[str, str, str]:
    condition = headline_condition(comparison)
    row = comparison.cells.get((run.label, condition))
    if row is None:
        return "–", "not attacked", f"The model was not attacked with {condition.title}."
    number = wording.percent(row["accuracy"])
    interval = wording.bounds(row["ci_low"], row["ci_high"])
    if condition == CLEAN_IMAGES:
        return number, f"clean {interval}", _against(comparison, run.label, condition)
    clean = wording.percent(comparison.cells[run.label, CLEAN_IMAGES]["accuracy"])
    sentence = f"Its accuracy on clean images is {clean}."
    hardest = strongest(comparison, run.label)
    # An attack of a cascade sees only the survivors of those before it, so it has no number alone.
    if condition.attack == WORST_CASE and hardest is not None and not _is_cascade(comparison):
        least = wording.percent(comparison.cells[run.label, hardest]["accuracy"])
        sentence += f" The strongest single attack, {hardest.title}, leaves {least}."
    sentence += _spent(run, condition)
    return number, interval, f"{sentence} {_against(comparison, run.label, condition)}".strip()


def _spent(run: Run, condition: Condition) -> str:
    """The worst-case energy at that size, if the run counted it."""
    worst = operations(run, Condition(WORST_CASE, condition.norm, condition.epsilon))
    if np.isnan(worst) or not operations(run) > 0:
        return ""
    more = 100 * (worst / operations(run) - 1)
    return (
        f" In the worst case found it takes {wording.millions(worst)} million synaptic operations,"
        f" {more:.1f}{wording.NBSP}% more than on clean images."
    )


def _against(comparison: Comparison, model: str, condition: Condition) -> str:
    row = comparison.cells[model, condition]
    baseline = comparison.baseline
    if model == baseline or np.isnan(row["difference"]):
        return ""
    counts = f"{wording.count(int(row['gained']), 'image')} gained, {row['lost']:.0f} lost"
    test = f"{counts}, {wording.p_value(row['p_holm'])}"
    size = wording.points(abs(row["difference"])).lstrip("+±")
    if row["p_holm"] >= SIGNIFICANCE:
        difference = wording.points(row["difference"])
        return f"The model cannot be told apart from {baseline} ({difference} points; {test})."
    side = "above" if row["difference"] > 0 else "below"
    return f"The model is {size} points {side} {baseline} on the same images ({test})."


def _hardest_by_size(comparison: Comparison, model: str) -> list[Condition]:
    """The attack that leaves the least accuracy at each size, in the order of the sizes."""
    found: dict[tuple[str, str], Condition] = {}
    right = comparison.verdicts[model]
    for condition in sorted(comparison.attacks, key=lambda c: c.radius):
        if condition.radius > 0 and condition in right:
            best = found.setdefault(condition[1:], condition)
            if right[condition].mean() < right[best].mean():
                found[condition[1:]] = condition
    return list(found.values())


def _reaches_chance(comparison: Comparison, run: Run) -> Condition | None:
    """The smallest size at which the interval of the accuracy contains chance or lies below it."""
    sizes = _hardest_by_size(comparison, run.label)
    level = 1 / run.classes
    return next((c for c in sizes if comparison.cells[run.label, c]["ci_low"] <= level), None)


def _chance(run: Run) -> str:
    whole = 100 % run.classes == 0
    return f"chance ({wording.percent(1 / run.classes, 0 if whole else 1)})"


def _curve_lead(comparison: Comparison) -> str:
    reached: dict[str, list[str]] = {}
    never = []
    for run in comparison.runs:
        if (condition := _reaches_chance(comparison, run)) is None:
            never.append(run.label)
        else:
            reached.setdefault(condition.size, []).append(run.label)
    chance = _chance(comparison.runs[0])
    parts = []
    for index, (size, models) in enumerate(reached.items()):
        fall = "falls" if len(models) == 1 else "fall"
        to = chance if index == 0 else "chance"
        parts.append(f"{wording.listing(models)} {fall} to {to} at {size}")
    if never:
        stay = "stays" if len(never) == 1 else "stay"
        largest = max(comparison.attacks, key=lambda c: c.radius).size
        parts.append(
            f"{wording.listing(never)} {stay} above {chance} even at {largest}, which speaks"
            " against the attack and not for the model"
        )
    images = wording.count(comparison.samples, "image")
    return f"As the perturbation grows ({images}), {'; '.join(parts)}."


def _curve(comparison: Comparison, run: Run) -> tuple[str, str, str]:
    sizes = _hardest_by_size(comparison, run.label)
    clean = wording.percent(comparison.cells[run.label, CLEAN_IMAGES]["accuracy"])
    if not sizes:
        return clean, "clean", "The model was not attacked."

    def accuracy_at(condition: Condition) -> str:
        accuracy = comparison.cells[run.label, condition]["accuracy"]
        return f"{wording.percent(accuracy)} at {condition.epsilon}"

    shown = list(dict.fromkeys([sizes[0], sizes[len(sizes) // 2], sizes[-1]]))
    numbers = wording.listing([f"{clean} on clean images", *map(accuracy_at, shown)])
    sentence = f"Its accuracy is {numbers}."
    condition = _reaches_chance(comparison, run)
    if condition is None:
        return "never", "at chance", sentence
    return condition.epsilon, "brings it to chance", sentence


def _trust(run: Run) -> tuple[str, str, tuple[Reason, ...]]:
    """The level of a run with its title, its first reason with what to do next, and the others."""
    if not run.level:
        return "", "", ()
    title = f"{run.level}, {run.diagnosis.get('title') or ''}"
    return title, level_sentence(run), tuple(other_reasons(run))


def _caution(run: Run) -> str:
    flags = sum(mark != "note" for _, _, mark, _ in flag_sentences([run]))
    if not flags:
        return ""
    verb = "speaks" if flags == 1 else "speak"
    count = wording.count(flags, "flag")
    return f"{count} {verb} against taking these numbers as they are; see below."


def flag_sentences(runs: Iterable[Run]) -> list[tuple[str, str, str, str]]:
    """The flags and failed checks as (model, suite, mark, sentence), without repetitions.

    The mark is the level that the flag alone would give; where a run does not say, it is the
    severity of the flag, or `failed check`.
    """
    found: dict[tuple[str, str, str, str], None] = {}
    for run in runs:
        severities = {flag.get("flag"): str(flag.get("severity") or "flag") for flag in run.flags}
        for check in run.preflight:
            if not check.get("passed", True):
                text = str(check.get("sentence") or f"The check {check.get('check')} failed.")
                slug = str(check.get("check"))
                mark = mark_of(run, slug, severities.get(slug, "failed check"))
                found[run.label, run.suite, mark, text] = None
        for flag in run.flags:
            text = str(flag.get("sentence") or flag.get("flag") or "A flag without a sentence.")
            severity = mark_of(run, str(flag.get("flag")), str(flag.get("severity") or "flag"))
            if not any(key[0] == run.label and key[3] == text for key in found):
                found[run.label, run.suite, severity, text] = None
    return list(found)
