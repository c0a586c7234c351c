"""The attacks of a run as stages: what each one broke, what it cost, and what that says.

Records are those that an attack made itself, right when clean; in a cascade an image is seen by no
stage after the one that broke it.
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
from robustsnn.common.kinds import BEST, GRADIENT_FREE
from robustsnn.common.wording import percent
from robustsnn.diagnosis.finding import Finding
from robustsnn.records.schema import Condition, Size
from robustsnn.records.summary import broken_by, right_when_clean, survivors

#: Steps from which a gradient attack is a long one.
LONG = 50
#: A full evaluation has one of so many steps, a search of so many queries without any gradient,
#: and, on spikes, so many ways to differentiate.
FULL_STEPS, FULL_QUERIES, FULL_ESTIMATORS = 100, 1000, 3
#: Points of accuracy, as fractions of all images, from which a gap is said.
SURROGATE_GAP, STILL_BREAKS, BLACK_FINDS = 0.10, 0.005, 0.002
#: From more classes than these on every loss of a suite is defined.
FEW_CLASSES = 3
#: The network's own derivative, whatever its options.
_OWN = re.compile(r"(backprop|bptt)(:[a-z]+=[^()]*)?")


@dataclass(frozen=True)
class Stage:
    """One attack of a run at one size, as the manifest's `stages` hold it.

    Args:
        attack: The slug of the attack.
        norm: The norm of its threat model.
        epsilon: The size, as written.
        kind: The kind of the attack, one of `robustsnn.common.kinds.KINDS`.
        black: Whether it follows no gradient of the network itself.
        probe: Whether it is there to rank an estimator.
        estimator: The estimator as records name it, or `best`.
        draws: The draws that a gradient of a stochastic network is averaged over.
        steps: The steps of an iterative attack, as the attack has them.
        restarts: Its restarts.
        queries: The queries of a search without gradient.
        warm: Whether it starts from what attacks before it found.
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

    @property
    def condition(self) -> Condition:
        """Attack, norm and size, as rows of results name them."""
        return Condition(self.attack, self.norm, self.epsilon)

    @property
    def size(self) -> Size:
        """Norm and size."""
        return Size(self.norm, self.epsilon)

    @property
    def white(self) -> bool:
        """Whether it follows a gradient of the network itself."""
        return not self.black and self.kind not in GRADIENT_FREE

    @property
    def own(self) -> bool:
        """Whether that gradient is the network's own."""
        return self.white and _OWN.fullmatch(self.estimator) is not None

    @property
    def long(self) -> int:
        """How many steps it has; 0 where it has none, or not a whole number."""
        return _whole(self.steps)

    @property
    def asked(self) -> int:
        """How many queries it has; 0 where it has none."""
        return _whole(self.queries)

    def row(self) -> dict[str, Any]:
        """As the manifest has it."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Stage:
        """The stage that a row of a manifest holds."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in row.items() if name in known})


def attacking(stages: Sequence[Stage]) -> list[Stage]:
    """The stages without those of size 0, whose ball holds the image alone."""
    return [stage for stage in stages if parse_epsilon(stage.epsilon) > 0]


def as_recorded(stages: Sequence[Stage], records: pd.DataFrame) -> list[Stage]:
    """The stages, those that were seen to take no gradient of the network as black boxes."""
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
    """What a full evaluation has and these stages do not, in words; empty if nothing.

    Args:
        stages: The stages of a run.
        spiking: Whether there is a choice of how to differentiate.
        stochastic: Whether the network draws; each step is then an average over draws, and fewer
            of them are a long attack.
    """
    steps = LONG if stochastic else FULL_STEPS
    if not stages:
        return ["an attack"]
    found: dict[str, None] = {}
    for some in by_size(stages).values():
        long = [s for s in some if s.white and not s.probe and s.long >= steps]
        if not long:
            found[f"a gradient attack of {steps} steps or more"] = None
        if spiking and len({s.estimator for s in some if s.white} - {BEST}) < FULL_ESTIMATORS:
            found[f"{FULL_ESTIMATORS} or more ways to differentiate spikes"] = None
        # One that starts where gradients stopped is no evidence independent of them.
        if not any(s.black and not s.warm and s.asked >= FULL_QUERIES for s in some):
            found[f"a search of {FULL_QUERIES:,} queries or more without any gradient"] = None
    return list(found)


def surrogate_gap(records: pd.DataFrame, some: Sequence[Stage], cascade: bool) -> Finding | None:
    """D3: what attacks by the network's own derivative leave and others break.

    In a cascade the first probe, which has to be the network's own, against all probes.
    Otherwise the attacks by its own derivative against those by others. None where a run has not
    both.

    Args:
        records: Of the run.
        some: Its stages at one norm and size.
        cascade: Whether they saw only what earlier ones left.
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
    left = (len(clean) - len(by_own)) / images
    return Finding(
        "D3",
        "surrogate-gap",
        gap > SURROGATE_GAP,
        "caution" if cascade else "invalid",
        f"{wording.attack(own[0].attack)}, by the network's own derivative, leaves "
        f"{percent(left)} at {wording.threat(*some[0].size)}; others break {100 * gap:.1f} points "
        "more: what attacks by its own derivative alone say of this network is too high.",
        gap,
        {"own": left, "all": left - gap, "attack": own[0].attack},
    )


def convergence(records: pd.DataFrame, some: Sequence[Stage], cascade: bool) -> Finding | None:
    """D5: what the last long gradient attack still broke; None unless another came before it.

    Those for the nearest image are none: what they break says little of more steps in the ball.
    """
    white = [s for s in some if s.white and not s.probe and s.kind == "fixed-epsilon"]
    long = [s for s in white if s.long >= LONG]
    if not cascade or len(long) < 2:
        return None
    last = long[-1]
    still = len(broken_by(records).get(last.condition, set())) / images_of(records)
    return Finding(
        "D5",
        "not-converged",
        still > STILL_BREAKS,
        "caution",
        f"{wording.attack(last.attack)}, the last long gradient attack at "
        f"{wording.threat(*last.size)}, still broke {100 * still:.1f} points: more steps would "
        "break more.",
        still,
        {"attack": last.attack, "by stage": _per_stage(records, long)},
    )


def black_box(records: pd.DataFrame, some: Sequence[Stage]) -> Finding | None:
    """D7: what only attacks without the network's gradient broke; None without both kinds."""
    white = [s for s in some if s.white]
    black = [s for s in some if s.black and s.kind not in GRADIENT_FREE]
    if not white or not black:
        return None
    broken = broken_by(records)
    by_white: set[int] = set().union(*(broken.get(s.condition, set()) for s in white))
    by_black: set[int] = set().union(*(broken.get(s.condition, set()) for s in black))
    only = len((by_black - by_white) & right_when_clean(records)) / images_of(records)
    names = wording.listing([wording.attack(s.attack) for s in black])
    return Finding(
        "D7",
        "black-box-finds-more",
        only > BLACK_FINDS,
        "caution",
        f"At {wording.threat(*some[0].size)} {names} broke {100 * only:.1f} points that no "
        "gradient found: gradients are not the whole story, and a longer search may find more.",
        only,
        {"by stage": _per_stage(records, black)},
    )


def noise_survives(records: pd.DataFrame, size: Size, fooled: Sequence[int], draws: int) -> Finding:
    """D6: images that noise fooled in the probe and every attack of the run left.

    Args:
        records: Of the run.
        size: The norm and size.
        fooled: The ids of images that a draw of noise of that size fooled.
        draws: Of noise, for each image.
    """
    left = sorted(survivors(records, size).intersection(fooled))
    share = len(left) / images_of(records)
    return Finding(
        "D6",
        "noise-beats-suite",
        bool(left),
        "invalid",
        f"{draws} draws of noise fool {wording.count(len(left), 'image')} that every attack at "
        f"{wording.threat(*size)} left: the attacks do not find what is in the ball.",
        share,
        {"images": left[:20]},
    )


def _per_stage(records: pd.DataFrame, stages: Sequence[Stage]) -> dict[str, float]:
    broken, images = broken_by(records), images_of(records)
    return {s.attack: len(broken.get(s.condition, set())) / images for s in stages}


def rows_of(records: pd.DataFrame, stage: Stage) -> pd.DataFrame:
    """The records of a stage."""
    mask = records["attack"] == stage.attack
    return records[mask & (records["norm"] == stage.norm) & (records["epsilon"] == stage.epsilon)]


def images_of(records: pd.DataFrame) -> int:
    """How many images there are records of, at least 1 so that shares can be taken."""
    return max(1, int(records["image_id"].nunique()))


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
