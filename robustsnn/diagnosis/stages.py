"""The attacks of a run as stages: what each of them is, and what the records of them together say.

The records are those that an attack made itself. In a cascade, no stage sees an image after the
stage that broke it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robustsnn.common import wording
from robustsnn.common.epsilon import parse_epsilon
from robustsnn.common.kinds import BEST, ENERGY, GRADIENT_FREE
from robustsnn.common.statistics import wilson
from robustsnn.common.wording import percent
from robustsnn.diagnosis.finding import Finding
from robustsnn.records.schema import Condition, Size
from robustsnn.records.summary import broken_by, right_when_clean, survivors

#: The number of steps from which a gradient attack is a long one.
LONG = 50
#: A full evaluation has a gradient attack of at least that many steps, a search of at least that
#: many queries without any gradient and, for spikes, at least that many ways to differentiate.
FULL_STEPS, FULL_QUERIES, FULL_ESTIMATORS = 100, 1000, 3
#: The differences of accuracy, as fractions of all images, above which D3, D5 and D7 are flagged.
SURROGATE_GAP, STILL_BREAKS, BLACK_FINDS = 0.10, 0.005, 0.002
#: The number of images that the last of several rounds of doubled length may break.
STILL_ONE = 1
#: With more classes than this, every loss of a suite is defined.
FEW_CLASSES = 3
#: The estimators that are the network's own derivative, with any options.
_OWN = re.compile(r"(backprop|bptt)(:[a-z]+=[^()]*)?")


@dataclass(frozen=True)
class Stage:
    """One attack of a run at one size, as the manifest's `stages` hold it.

    Args:
        attack: The slug of the attack.
        norm: The norm of its threat model.
        epsilon: The size, as the user wrote it.
        kind: The kind of the attack, one of `robustsnn.common.kinds.KINDS`.
        black: Whether the attack follows no gradient of the network itself.
        probe: Whether the attack is there to rank an estimator.
        estimator: The estimator as records name it, or `best`.
        draws: The draws that a gradient of a stochastic network is averaged over.
        steps: The steps of an iterative attack, as the attack declares them.
        restarts: The restarts of the attack, as it declares them.
        queries: The queries of a search without gradient, as it declares them.
        warm: Whether the attack starts from what attacks before it found.
        family: The slug of the entry whose rounds of doubled length this stage is one of; empty if
            it is not one.
        gain: The gain of a round, in points, below which that entry has converged.
        sample: The number of survivors that the attack was asked for, if it was for a part of them.
        when: The finding without which the attack does not run, such as `blind`; empty for none.
    """

    attack: str
    norm: str
    epsilon: str
    kind: str
    black: bool
    probe: bool = False
    estimator: str = "bptt"
    draws: int = 1
    steps: Any = None
    restarts: Any = None
    queries: Any = None
    warm: bool = False
    family: str = ""
    gain: float | None = None
    sample: int | None = None
    when: str = ""

    @property
    def condition(self) -> Condition:
        """The attack with its norm and size, as rows of results name them."""
        return Condition(self.attack, self.norm, self.epsilon)

    @property
    def size(self) -> Size:
        """The norm and the size."""
        return Size(self.norm, self.epsilon)

    @property
    def white(self) -> bool:
        """Whether the attack follows a gradient of the network itself to a wrong class."""
        return not self.black and self.kind not in (*GRADIENT_FREE, ENERGY)

    @property
    def own(self) -> bool:
        """Whether the attack follows the network's own derivative."""
        return self.white and _OWN.fullmatch(self.estimator) is not None

    @property
    def long(self) -> int:
        """The number of steps; 0 if there is none or it is not a whole number."""
        return _whole(self.steps)

    @property
    def asked(self) -> int:
        """The number of queries; 0 if there is none or it is not a whole number."""
        return _whole(self.queries)

    def row(self) -> dict[str, Any]:
        """The stage as a row of the manifest."""
        row = dataclasses.asdict(self)
        # A stage that is not one of several rounds is stored as it always was.
        later = ("family", "gain", "sample", "when")
        return {name: value for name, value in row.items() if value or name not in later}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Stage:
        """The stage that a row of a manifest holds."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in row.items() if name in known})


def attacking(stages: Sequence[Stage]) -> list[Stage]:
    """The stages without those of size 0, whose ball holds only the image itself."""
    return [stage for stage in stages if parse_epsilon(stage.epsilon) > 0]


def as_recorded(stages: Sequence[Stage], records: pd.DataFrame) -> list[Stage]:
    """The stages; those whose records show forward passes only become black boxes.

    Args:
        stages: The stages as they were planned.
        records: The records of the run.
    """
    found = []
    for stage in stages:
        own = rows_of(records, stage)
        free = own["forward_passes"].sum() > 0 and own["backward_passes"].sum() == 0
        found.append(dataclasses.replace(stage, black=stage.black or bool(free)))
    return found


def by_size(stages: Sequence[Stage]) -> dict[Size, list[Stage]]:
    """The stages of each norm and size, in their order."""
    found: dict[Size, list[Stage]] = {}
    for stage in stages:
        found.setdefault(stage.size, []).append(stage)
    return found


def missing(stages: Sequence[Stage], spiking: bool, stochastic: bool = False) -> list[str]:
    """What a full evaluation has and these stages do not, in words; empty if there is nothing.

    Args:
        stages: The stages of a run; those that run on a condition do not count.
        spiking: Whether the network spikes, so that there are several ways to differentiate it.
        stochastic: Whether the network draws; each step is then an average over draws, and fewer
            steps make a long attack.

    Examples:
        >>> missing([], spiking=True)
        ['an attack']
    """
    steps = LONG if stochastic else FULL_STEPS
    stages = [stage for stage in stages if not stage.when]
    if not stages:
        return ["an attack"]
    found: dict[str, None] = {}
    for some in by_size(stages).values():
        long = [s for s in some if s.white and not s.probe and s.long >= steps]
        if not long:
            found[f"a gradient attack of {steps} steps or more"] = None
        if spiking and len({s.estimator for s in some if s.white} - {BEST}) < FULL_ESTIMATORS:
            found[f"{FULL_ESTIMATORS} or more ways to differentiate spikes"] = None
        # A search that starts where gradients stopped is not evidence independent of them.
        if not any(s.black and not s.warm and s.asked >= FULL_QUERIES for s in some):
            found[f"a search of {FULL_QUERIES:,} queries or more without any gradient"] = None
    return list(found)


def surrogate_gap(records: pd.DataFrame, some: Sequence[Stage], cascade: bool) -> Finding | None:
    """D3: the images that survive attacks by the network's own derivative and not the others.

    In a cascade, the first probe, which has to use the network's own derivative, is compared with
    the other probes. In other runs, all attacks by its own derivative are compared with all those
    by other derivatives. None if a run does not have both.

    Args:
        records: The records of the run.
        some: The stages of the run at one norm and size.
        cascade: Whether each stage saw only the survivors of earlier ones.
    """
    chosen = [s for s in some if s.white and (s.probe or not cascade)]
    own = [s for s in chosen if s.own]
    if cascade:
        own = chosen[:1] if chosen and chosen[0].own else []
    others = [s for s in chosen if s not in own and not s.own]
    if not own or not others:
        return None
    broken, clean = broken_by(records), right_when_clean(records)
    images = images_of(records)
    by_own: set[int] = set().union(*(broken.get(s.condition, set()) for s in own)) & clean
    by_others: set[int] = set().union(*(broken.get(s.condition, set()) for s in others)) & clean
    gap = len(by_others - by_own) / images
    survive = (len(clean) - len(by_own)) / images
    said = (
        f"{wording.attack(own[0].attack)}, by the network's own derivative, leaves "
        f"{percent(survive)} at {wording.threat(*some[0].size)}; others break {100 * gap:.1f}"
    )
    return Finding(
        "D3",
        "surrogate-gap",
        gap > SURROGATE_GAP,
        "caution" if cascade else "invalid",
        f"{said} points more: what attacks by its own derivative alone say of this network is too "
        "high.",
        gap,
        {"own": survive, "all": survive - gap, "attack": own[0].attack},
        passed=f"{said} points more.",
    )


def convergence(records: pd.DataFrame, some: Sequence[Stage], cascade: bool) -> Finding | None:
    """D5: what the last long gradient attack of a cascade still broke.

    Where entries are repeated with doubled length, the last round of each is what counts: a run as
    long as those before it says little about longer ones. None outside a cascade, and without such
    rounds unless another long attack came before the last. Attacks for the nearest adversarial
    image do not count: what they break says little about more steps in the ball.

    Args:
        records: The records of the run.
        some: The stages of the run at one norm and size.
        cascade: Whether each stage saw only the survivors of earlier ones.
    """
    white = [
        s
        for s in some
        if s.white and not s.probe and s.kind == "fixed-epsilon"
        # What waited for a finding in vain broke nothing because it did not run.
        if not s.when or _attacked(records, s)
    ]
    if cascade and any(s.gain is not None for s in white):
        return _doubling(records, [s for s in white if s.gain is not None])
    long = [s for s in white if s.long >= LONG]
    if not cascade or len(long) < 2:
        return None
    last = long[-1]
    still = len(broken_by(records).get(last.condition, set())) / images_of(records)
    said = (
        f"{wording.attack(last.attack)}, the last long gradient attack at "
        f"{wording.threat(*last.size)},"
    )
    return Finding(
        "D5",
        "not-converged",
        still > STILL_BREAKS,
        "caution",
        f"{said} still broke {100 * still:.1f} points: more steps would break more.",
        still,
        {"attack": last.attack, "by stage": _per_stage(records, long)},
        passed=f"{said} broke {100 * still:.1f} points: few enough to stop there.",
    )


def _doubling(records: pd.DataFrame, rounds: Sequence[Stage]) -> Finding:
    """What the last round of each entry that is repeated with doubled length broke; the most."""
    broken, images = broken_by(records), images_of(records)
    lasts: list[tuple[int, Stage, dict[str, float]]] = []
    for family in dict.fromkeys(s.family for s in rounds):
        ran = [s for s in rounds if s.family == family and _attacked(records, s)]
        if ran:
            counts = [len(broken.get(s.condition, set())) for s in ran]
            by_steps = {str(s.long): n / images for s, n in zip(ran, counts, strict=True)}
            lasts.append((counts[-1], ran[-1], by_steps))
    if not lasts:
        # All images had fallen before the first round.
        lasts = [(0, rounds[0], {})]
    most, last, by_steps = max(lasts, key=lambda found: found[0])
    assert last.gain is not None
    still = most / images
    said = (
        f"{wording.attack(last.attack)}, the last round of doubled length at "
        f"{wording.threat(*last.size)},"
    )
    broke = f"{100 * still:.1f} points ({wording.count(most, 'image')})"
    return Finding(
        "D5",
        "not-converged",
        100 * still >= last.gain or most > STILL_ONE,
        "caution",
        f"{said} still broke {broke}: longer runs would break more.",
        still,
        {"attack": last.attack, "by steps": by_steps},
        passed=f"{said} broke {broke}: few enough to stop there.",
    )


def _attacked(records: pd.DataFrame, stage: Stage) -> bool:
    """Whether a stage of a cascade spent passes on any image."""
    return bool(rows_of(records, stage)["forward_passes"].sum() > 0)


def black_box(records: pd.DataFrame, some: Sequence[Stage]) -> Finding | None:
    """D7: what only attacks without the network's gradient broke; None without both kinds.

    Args:
        records: The records of the run.
        some: The stages of the run at one norm and size.
    """
    white = [s for s in some if s.white]
    black = [s for s in some if s.black and s.kind not in GRADIENT_FREE]
    if not white or not black:
        return None
    broken = broken_by(records)
    by_white: set[int] = set().union(*(broken.get(s.condition, set()) for s in white))
    by_black: set[int] = set().union(*(broken.get(s.condition, set()) for s in black))
    only = len((by_black - by_white) & right_when_clean(records)) / images_of(records)
    ran = [s for s in black if _attacked(records, s)]
    names = wording.listing([wording.attack(s.attack) for s in ran or black])
    parts = [part for s in black if (part := _part(records, s)) is not None]
    sampled = "".join(f" {part['sentence']}" for part in parts)
    said = (
        f"At {wording.threat(*some[0].size)} {names} broke {100 * only:.1f} points that no "
        "gradient found"
    )
    return Finding(
        "D7",
        "black-box-finds-more",
        only > BLACK_FINDS,
        "caution",
        f"{said}: gradients are not the whole story, and a longer search may find more.{sampled}",
        only,
        {"by stage": _per_stage(records, black)} | ({"samples": parts} if parts else {}),
        passed=f"{said}.{sampled}",
    )


def _part(records: pd.DataFrame, stage: Stage) -> dict[str, Any] | None:
    """What a search of a part of the survivors says of the others; None if it is not one."""
    rows = rows_of(records, stage)
    asked = int((rows["forward_passes"] > 0).sum())
    left = len(right_when_clean(records) - _broken_before(records, stage))
    if stage.sample is None or not asked or asked >= left:
        return None
    broke = len(broken_by(records).get(stage.condition, set()))
    if broke:
        # The others were attacked too.
        return None
    most = wilson(0, asked).high * left / images_of(records)
    return {
        "attack": stage.attack,
        "asked": asked,
        "of": left,
        "at most": most,
        "sentence": f"{wording.attack(stage.attack)} was asked for {asked} of {left} survivors and "
        f"broke none, so that it would break at most {100 * most:.1f} points (95 %).",
    }


def noise_survives(records: pd.DataFrame, size: Size, fooled: Sequence[int], draws: int) -> Finding:
    """D6: images that noise fooled in the probe and that survived every attack of the run.

    Args:
        records: The records of the run.
        size: The norm and the size.
        fooled: The ids of the images that a draw of noise of that size fooled.
        draws: The number of draws of noise for each image.
    """
    missed = sorted(survivors(records, size).intersection(fooled))
    share = len(missed) / images_of(records)
    return Finding(
        "D6",
        "noise-beats-suite",
        bool(missed),
        "invalid",
        f"{draws} draws of noise fool {wording.count(len(missed), 'image')} that every attack at "
        f"{wording.threat(*size)} left: the attacks do not find what is in the ball.",
        share,
        {"images": missed[:20]},
        passed=f"{draws} draws of noise fool no image that every attack at "
        f"{wording.threat(*size)} left.",
    )


def _broken_before(records: pd.DataFrame, stage: Stage) -> set[int]:
    """The ids of the images that earlier stages of the same norm and size broke."""
    found: set[int] = set()
    for condition, images in broken_by(records).items():
        if condition == stage.condition:
            break
        if (condition.norm, condition.epsilon) == stage.size:
            found |= images
    return found


def _per_stage(records: pd.DataFrame, stages: Sequence[Stage]) -> dict[str, float]:
    broken, images = broken_by(records), images_of(records)
    return {s.attack: len(broken.get(s.condition, set())) / images for s in stages}


def rows_of(records: pd.DataFrame, stage: Stage) -> pd.DataFrame:
    """The records of a stage."""
    mask = records["attack"] == stage.attack
    return records[mask & (records["norm"] == stage.norm) & (records["epsilon"] == stage.epsilon)]


def images_of(records: pd.DataFrame) -> int:
    """The number of images in the records, at least 1 so that shares can be taken."""
    return max(1, int(records["image_id"].nunique()))


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
