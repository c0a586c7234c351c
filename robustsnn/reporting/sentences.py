"""What a comparison says, in sentences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from robustsnn.common import wording
from robustsnn.records.runs import Run
from robustsnn.records.schema import CLEAN_IMAGES, WORST_CASE, Condition
from robustsnn.reporting.comparison import Comparison, strongest

SIGNIFICANCE = 0.05

#: From more models than this a sentence names the extremes only.
MANY = 4


@dataclass(frozen=True)
class Headline:
    """What is said of one model: a number, what the number is, the rest, and a caution.

    `level` is `A`, `B` or `C` with what it stands for, `trust` why and what to do next; both are
    empty for a run without.
    """

    model: str
    number: str
    meaning: str
    detail: str
    caution: str
    level: str = ""
    trust: str = ""

    @property
    def sentence(self) -> str:
        """Number, level and detail as running text, without the caution."""
        level = f" ({self.level})" if self.level else ""
        return f"{self.model}: {self.number} {self.meaning}{level}. {self.detail}".strip()


def lead(comparison: Comparison) -> str:
    """What a comparison says, in one sentence."""
    return _curve_lead(comparison) if comparison.is_curve else _lead(comparison)


def headlines(comparison: Comparison) -> list[Headline]:
    """One headline for each model of a comparison."""
    say = _curve if comparison.is_curve else _single
    return [
        Headline(run.label, *say(comparison, run), _caution(run), *_trust(run))
        for run in comparison.runs
    ]


def headline_condition(comparison: Comparison) -> Condition:
    """The condition a headline is about: what leaves the models the least accuracy on average.

    A worst case over several attacks comes before the single attacks; clean if there are none.
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
    said = []
    for model in comparison.models:
        if (row := comparison.cells.get((model, condition))) is not None:
            number = wording.percent(row["accuracy"])
            interval = wording.bounds(row["ci_low"], row["ci_high"])
            said.append((model, float(row["accuracy"]), f"{number} {interval}"))
    images = wording.count(comparison.samples, "image")
    if len(said) > MANY:
        said = [min(said, key=_accuracy), max(said, key=_accuracy)]
        (low, least), (high, most) = ((model, text) for model, _, text in said)
        kept = f"{len(comparison.models)} models stay right on {least} ({low}) to {most} ({high})"
    else:
        (first, _, number), *rest = said
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
    bound = "an upper bound" if len(said) == 1 else "upper bounds"
    return f"{under}, {kept}: {bound}, since a stronger attack can only take more."


def _accuracy(said: tuple[str, float, str]) -> float:
    return said[1]


def _single(comparison: Comparison, run: Run) -> tuple[str, str, str]:
    condition = headline_condition(comparison)
    row = comparison.cells.get((run.label, condition))
    if row is None:
        return "–", "not attacked", f"It was not attacked with {condition.title}."
    number = wording.percent(row["accuracy"])
    interval = wording.bounds(row["ci_low"], row["ci_high"])
    if condition == CLEAN_IMAGES:
        return number, f"clean {interval}", _against(comparison, run.label, condition)
    clean = wording.percent(comparison.cells[run.label, CLEAN_IMAGES]["accuracy"])
    sentence = f"Down from {clean} on clean images."
    hardest = strongest(comparison, run.label)
    # An entry of a cascade leaves what those before it left too: none stands alone.
    if condition.attack == WORST_CASE and hardest is not None and not _is_cascade(comparison):
        left = wording.percent(comparison.cells[run.label, hardest]["accuracy"])
        sentence += f" The strongest attack alone, {hardest.title}, leaves {left}."
    return number, interval, f"{sentence} {_against(comparison, run.label, condition)}".strip()


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
        return f"It cannot be told apart from {baseline} ({difference} points; {test})."
    more = "more" if row["difference"] > 0 else "less"
    return f"That is {size} points {more} than {baseline} on the same images ({test})."


def _hardest_by_size(comparison: Comparison, model: str) -> list[Condition]:
    """The attack that leaves the least at each size, the sizes growing."""
    found: dict[tuple[str, str], Condition] = {}
    right = comparison.verdicts[model]
    for condition in sorted(comparison.attacks, key=lambda c: c.radius):
        if condition.radius > 0 and condition in right:
            best = found.setdefault(condition[1:], condition)
            if right[condition].mean() < right[best].mean():
                found[condition[1:]] = condition
    return list(found.values())


def _reaches_chance(comparison: Comparison, run: Run) -> Condition | None:
    """The smallest size at which the interval of the accuracy holds chance or lies below it."""
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
        fall = f" {'falls' if len(models) == 1 else 'fall'} to {chance}" if index == 0 else ""
        parts.append(f"{wording.listing(models)}{fall} at {size}")
    said = [wording.listing(parts)] if parts else []
    if never:
        stay = "stays" if len(never) == 1 else "stay"
        largest = max(comparison.attacks, key=lambda c: c.radius).size
        said.append(
            f"{wording.listing(never)} {stay} above {chance} even at {largest}, which speaks"
            " against the attack and not for the model"
        )
    images = wording.count(comparison.samples, "image")
    return f"As the perturbation grows ({images}), {'; '.join(said)}."


def _curve(comparison: Comparison, run: Run) -> tuple[str, str, str]:
    sizes = _hardest_by_size(comparison, run.label)
    clean = wording.percent(comparison.cells[run.label, CLEAN_IMAGES]["accuracy"])
    if not sizes:
        return clean, "clean", "It was not attacked."

    def accuracy_at(condition: Condition) -> str:
        accuracy = comparison.cells[run.label, condition]["accuracy"]
        return f"{wording.percent(accuracy)} at {condition.epsilon}"

    shown = list(dict.fromkeys([sizes[0], sizes[len(sizes) // 2], sizes[-1]]))
    sentence = f"From {clean} clean to {wording.listing([accuracy_at(c) for c in shown])}."
    condition = _reaches_chance(comparison, run)
    if condition is None:
        return "never", "at chance", sentence
    return condition.epsilon, "brings it to chance", sentence


def _trust(run: Run) -> tuple[str, str]:
    """The level of a run and its title; why, and what to do next."""
    said = run.diagnosis
    if not run.level:
        return "", ""
    title = str(said.get("title") or "")
    return f"{run.level}, {title}", f"{said.get('sentence', '')} {said.get('next', '')}".strip()


def _caution(run: Run) -> str:
    flags = len(flag_sentences([run]))
    if not flags:
        return ""
    verb = "speaks" if flags == 1 else "speak"
    said = wording.count(flags, "flag")
    return f"{said} {verb} against taking these numbers as they are; see below."


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
