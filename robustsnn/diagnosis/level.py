"""The level of a run, A, B or C: how far its numbers can be trusted, by fixed criteria."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from robustsnn.common import wording
from robustsnn.diagnosis.finding import BLIND, Finding

Grade = Literal["A", "B", "C"]

TITLES: dict[str, str] = {"A": "no flag", "B": "upper bound", "C": "not reliable"}
#: The ids of the reasons that are not flags: the suite is not a full one, or the images are few.
SUITE, IMAGES = "suite", "images"
#: The number of images from which a number may be of level A. On fewer, a suite that has stopped
#: breaking images could still break one in 70, by the 95 % interval of none of 200.
FEWEST_IMAGES = 200


@dataclass(frozen=True)
class Criterion:
    """What a flag does to the level of a run, and what to do about it.

    Args:
        id: The id of the diagnostic.
        flags: The slugs of the flags that the criterion is about.
        invalid: The level if the flag is `invalid`.
        caution: The level if the flag is `caution`, as it is if it concerns one attack of several.
        next: What to do next, in one sentence.
        overestimates: Whether the only possible error is that too many images survive. If none
            survives, the number cannot be wrong in this way, and C becomes B.
    """

    id: str
    flags: tuple[str, ...]
    invalid: Grade
    caution: Grade
    next: str
    overestimates: bool = True


#: The most serious criterion first: of several reasons of one level, the first says what to do.
CRITERIA = (
    Criterion(
        "D9",
        ("repeatable", "alone-as-in-batch", "attack-mode", "state-leak", "batch-statistics"),
        "C",
        "C",
        "Reset all state before every pass and evaluate in evaluation mode, then run again: what "
        "was attacked is not what was judged.",
        overestimates=False,
    ),
    Criterion(
        "D8",
        ("randomised",),
        "C",
        "C",
        "Declare the draws (`stochastic`, and `keys` that fix them) or remove them, then run "
        "again.",
        overestimates=False,
    ),
    Criterion(
        "I5",
        ("attack-does-not-transfer",),
        "C",
        "C",
        "Make the network say the same whether or not a gradient is asked for, then run again.",
        overestimates=False,
    ),
    Criterion(
        "D1",
        ("no-gradient",),
        "C",
        "C",
        "Make a gradient exist (a surrogate that evaluation mode keeps, spiking layers that "
        "estimators can reach) and run again: until then only a search by score has tried.",
    ),
    Criterion(
        "D8",
        ("stochastic", "too-few-draws"),
        "C",
        "C",
        "Average gradients over more draws (`draws=20` behind the estimator) and run again.",
    ),
    Criterion(
        "D6",
        (
            "noise-beats-suite",
            "noise-beats-gradient",
            "one-step-beats-many",
            "far-above-chance",
            "curve-not-monotone",
            "curve-above-chance",
        ),
        "C",
        "B",
        "Do not quote the number: find out why the attacks fail, by another estimator, loss or "
        "search, and run again.",
    ),
    Criterion(
        "D15",
        (BLIND,),
        "C",
        "B",
        "Quote a suite that attacks the layer in front of what is flat and searches by labels, and "
        "do not believe searches by score: what the network returns says too little.",
    ),
    Criterion(
        "D4",
        ("gradient-fidelity",),
        "C",
        "B",
        "Do not quote what its own gradient says: quote a suite of several derivatives and of "
        "searches, standard or plus, and look for a part that is differentiated as another "
        "function.",
    ),
    Criterion(
        "D16",
        ("surrogate-misplaced",),
        "C",
        "B",
        "Differentiate spikes where they flip: give the threshold of every step (`live` in "
        "the trace of a layer) and run a suite of several derivatives.",
    ),
    Criterion(
        "D3",
        ("surrogate-gap",),
        "C",
        "B",
        "Do not quote any attack by its own derivative for this network: quote a suite of several "
        "derivatives, such as plus.",
    ),
    Criterion(
        "D1",
        ("zero-gradient", "nonfinite-gradient"),
        "C",
        "B",
        "Do not quote any attack by this gradient: quote a suite of several derivatives and "
        "losses, such as standard.",
    ),
    Criterion(
        "D1",
        ("neurons-not-reached",),
        "B",
        "B",
        "Let estimators reach the neurons (drop --from none, or use neurons whose dynamics are "
        "known): attacks by one gradient alone see little of a spiking network.",
    ),
    Criterion(
        "D8",
        ("gradient-draws",),
        "C",
        "B",
        "Trust searches by score over gradients here, or remove what draws: run the suite plus.",
    ),
    Criterion(
        "AA",
        ("dynamic",),
        "C",
        "C",
        "Attack the network through the steps of its inner optimisation: no suite here does.",
    ),
    Criterion(
        "D10",
        ("logits",),
        "C",
        "C",
        "Return logits in place of probabilities and run again: a softmax hides gradients.",
    ),
    Criterion(
        "D7",
        ("black-box-finds-more", "black-box-beats-white-box"),
        "B",
        "B",
        "Run the suite plus: searches without gradients still find what gradients miss.",
    ),
    Criterion(
        "D5",
        ("not-converged",),
        "B",
        "B",
        "Run the suite plus: with more steps and restarts the number may fall further.",
    ),
    Criterion(
        "D2",
        ("out-of-support",),
        "B",
        "B",
        "Quote a suite of several derivatives: attacks by its own surrogate see little of it.",
    ),
    Criterion(
        "D9",
        ("neuron-modes",),
        "B",
        "B",
        "Find out why neurons spike otherwise in training mode, and give gradients of the network "
        "that is evaluated.",
    ),
    Criterion(
        "D10",
        ("clean-at-chance",),
        "C",
        "B",
        "Mend the network or its data first: check weights, normalisation, the numbers of the "
        "classes and the reset of states on clean images, then run again.",
        overestimates=False,
    ),
    Criterion(
        "D10",
        ("ties", "saturated"),
        "B",
        "B",
        "Quote the worst case, which counts a tie as an error, of a suite that follows margins.",
    ),
    Criterion(
        "D12",
        ("vanishing-through-layers", "underflow"),
        "B",
        "B",
        "Run again in float64, or scale the network up: float32 loses its gradient on the way.",
    ),
    Criterion(
        "I2",
        ("unstable-predictions",),
        "B",
        "B",
        "Trust searches by score over gradients here: run the suite plus.",
    ),
    Criterion(
        "I6",
        ("unconstrained-failure",),
        "B",
        "B",
        "Run the suite plus: an attack that may change everything should leave nothing.",
    ),
)

_OTHER = Criterion(
    "", (), "C", "B", "Read the flag, mend its cause and run again.", overestimates=False
)


@dataclass(frozen=True)
class Reason:
    """One flag, or a suite that is not full, and the level that it alone would give.

    Args:
        id: The id of the diagnostic, or `suite` or `images`.
        flag: The slug of the flag.
        level: The level that this reason alone would give.
        sentence: The reason, in one sentence.
        next: What to do next, in one sentence.
    """

    id: str
    flag: str
    level: Grade
    sentence: str
    next: str


@dataclass(frozen=True)
class Level:
    """The level of a run's numbers.

    Args:
        level: A: there is no flag. B: the numbers are upper bounds that may still fall. C: they
            are not reliable.
        sentence: The level and its first reason, or that there is no reason.
        next: What to do next, in one sentence.
        reasons: All reasons, the most serious first.
    """

    level: Grade
    sentence: str
    next: str
    reasons: tuple[Reason, ...]

    def row(self) -> dict[str, Any]:
        """The level as it is stored in `manifest.json`."""
        return {
            "level": self.level,
            "title": TITLES[self.level],
            "sentence": self.sentence,
            "next": self.next,
            "because": [vars(reason) for reason in self.reasons],
        }


#: Flags that tell something and leave the level as it is.
INFORMATION = ("weights-not-named",)


def level_of(
    flags: Sequence[Finding],
    missing: Sequence[str],
    survivors: int,
    full: str = "standard",
    images: int = FEWEST_IMAGES,
) -> Level:
    """The level of a run's numbers, by `CRITERIA`.

    Args:
        flags: The flags of the run.
        missing: What a full suite has and the suite of the run does not, in words.
        survivors: The largest number of images that survived every attack of one norm and size.
        full: The name of the full suite for such a network.
        images: The number of images of the run.

    Examples:
        >>> level_of([], [], survivors=3).level
        'A'
        >>> level_of([], ["a search"], survivors=3).level
        'B'
    """
    found: dict[str, tuple[int, Reason]] = {}
    for flag in flags:
        if flag.slug in INFORMATION:
            continue
        place, criterion = criterion_of(flag.slug)
        level = criterion.invalid if flag.severity == "invalid" else criterion.caution
        if level == "C" and criterion.overestimates and survivors == 0:
            level = "B"
        reason = Reason(criterion.id or flag.id, flag.slug, level, flag.sentence, criterion.next)
        if flag.slug not in found or level > found[flag.slug][1].level:
            found[flag.slug] = (place, reason)
    if missing:
        # Placed before every flag of its level: the missing attacks should be run first.
        found[SUITE] = (-1, _short_suite(missing, full))
    if not found and images < FEWEST_IMAGES:
        # Beside other reasons it would say nothing new.
        found[IMAGES] = (0, _few_images(images))
    ranked = sorted(found.values(), key=lambda pair: (-ord(pair[1].level), pair[0]))
    reasons = tuple(reason for _, reason in ranked)
    if not reasons:
        return Level(
            "A",
            "A, no flag: no diagnostic speaks against the number, which stays an upper bound.",
            "Quote it with its interval and the name and version of the suite.",
            (),
        )
    first = reasons[0]
    more = len(reasons) - 1
    are = "is" if more == 1 else "are"
    others = f" There {are} {wording.count(more, 'more reason')}." if more else ""
    return Level(
        first.level,
        f"{first.level}, {TITLES[first.level]}: {first.sentence}{others}",
        first.next,
        reasons,
    )


def _short_suite(missing: Sequence[str], full: str) -> Reason:
    return Reason(
        SUITE,
        "upper-bound",
        "B",
        f"The suite lacks {wording.listing(list(missing))}.",
        f"Run the suite {full}: a stronger attack can only lower this upper bound.",
    )


def _few_images(images: int) -> Reason:
    return Reason(
        IMAGES,
        "few-images",
        "B",
        f"A level A needs {FEWEST_IMAGES} images, and this run has {images}.",
        f"Run it on {FEWEST_IMAGES} images or more.",
    )


def criterion_of(slug: str) -> tuple[int, Criterion]:
    """The place and the criterion of a flag; a flag that none names counts by its severity.

    Examples:
        >>> criterion_of("repeatable")[1].id
        'D9'
    """
    for place, criterion in enumerate(CRITERIA):
        if slug in criterion.flags:
            return place, criterion
    return len(CRITERIA), _OTHER
