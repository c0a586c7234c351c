"""How far a number can be trusted: the flags of a run, by fixed rules, to a level A, B or C."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from robustsnn.common import wording
from robustsnn.diagnosis.finding import Finding

Grade = Literal["A", "B", "C"]

TITLES: dict[str, str] = {"A": "no flag", "B": "upper bound", "C": "not reliable"}
#: The reason that is no flag: a suite that is not a full one.
SUITE = "suite"


@dataclass(frozen=True)
class Criterion:
    """What a flag does to the level of a number, and what to do about it.

    Args:
        id: Of the diagnostic.
        flags: Slugs.
        invalid: The level where the flag is `invalid`.
        caution: The level where it is `caution`: it then concerns one attack of several.
        next: What to do, in one sentence.
        overestimates: Whether all that is wrong is that too much may survive. Where nothing
            survives there is then nothing to be wrong about, and C becomes B.
    """

    id: str
    flags: tuple[str, ...]
    invalid: Grade
    caution: Grade
    next: str
    overestimates: bool = True


#: The most serious first: of several reasons of one level the first says what to do next.
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
        "D4",
        ("gradient-fidelity",),
        "C",
        "B",
        "Do not quote what its own gradient says: quote a suite of several derivatives and of "
        "searches, standard or plus, and look for a part that is differentiated as another "
        "function.",
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
    """One flag, or a suite that is not full, and the level that it alone would give."""

    id: str
    flag: str
    level: Grade
    sentence: str
    next: str


@dataclass(frozen=True)
class Level:
    """The level of a run's numbers.

    Args:
        level: A: no flag. B: an upper bound that may still fall. C: not reliable.
        sentence: The level and its first reason, or that there is none.
        next: What to do, in one sentence.
        reasons: All of them, the most serious first.
    """

    level: Grade
    sentence: str
    next: str
    reasons: tuple[Reason, ...]

    def row(self) -> dict[str, Any]:
        """As it stands in `manifest.json`."""
        return {
            "level": self.level,
            "title": TITLES[self.level],
            "sentence": self.sentence,
            "next": self.next,
            "because": [vars(reason) for reason in self.reasons],
        }


def level_of(
    flags: Sequence[Finding], missing: Sequence[str], left: int, full: str = "standard"
) -> Level:
    """The level of a run's numbers, by `CRITERIA`.

    Args:
        flags: Of the run.
        missing: What a full suite has and the run's has not.
        left: Images that survived anything.
        full: The full suite for such a network.
    """
    found: dict[str, tuple[int, Reason]] = {}
    for flag in flags:
        place, criterion = criterion_of(flag.slug)
        level = criterion.invalid if flag.severity == "invalid" else criterion.caution
        if level == "C" and criterion.overestimates and left == 0:
            level = "B"
        reason = Reason(criterion.id or flag.id, flag.slug, level, flag.sentence, criterion.next)
        if flag.slug not in found or level > found[flag.slug][1].level:
            found[flag.slug] = (place, reason)
    if missing:
        # What is missing is to be run before anything more.
        found[SUITE] = (
            -1,
            Reason(
                SUITE,
                "upper-bound",
                "B",
                f"The suite lacks {wording.listing(list(missing))}.",
                f"Run the suite {full}: a stronger attack can only lower this upper bound.",
            ),
        )
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


def criterion_of(slug: str) -> tuple[int, Criterion]:
    """The rule for a flag and its place; one that no rule names counts by its severity."""
    for place, criterion in enumerate(CRITERIA):
        if slug in criterion.flags:
            return place, criterion
    return len(CRITERIA), _OTHER
