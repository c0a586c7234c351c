"""The attacks of a run as stages: what each one broke, what it cost, and what that says.

Records are those that an attack made itself, right when clean; in a cascade an image is seen by no
stage after the one that broke it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from robustsnn.common import wording as formats
from robustsnn.common.kinds import BEST, GRADIENT_FREE
from robustsnn.common.wording import percent
from robustsnn.diagnosis.finding import Finding
from robustsnn.records.schema import Size
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
    """One attack of a run at one size.

    Args:
        attack: Its slug.
        norm: Of its threat.
        epsilon: As written.
        kind: Of the attack.
        black: Whether it follows no gradient of the network itself.
        probe: Whether it is there to rank an estimator.
        estimator: As the suite names it.
        steps: Of an iterative attack.
        queries: Of a search without gradient.
        warm: Whether it starts from what attacks before it found.
    """

    attack: str
    norm: str
    epsilon: str
    kind: str
    black: bool
    probe: bool = False
    estimator: str = "bptt"
    steps: int | None = None
    queries: int | None = None
    warm: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """As rows of results name it."""
        return self.attack, self.norm, self.epsilon

    @property
    def line(self) -> Size:
        """Norm and epsilon."""
        return Size(self.norm, self.epsilon)

    @property
    def white(self) -> bool:
        """Whether it follows a gradient of the network itself."""
        return not self.black and self.kind not in GRADIENT_FREE

    @property
    def own(self) -> bool:
        """Whether that gradient is the network's own."""
        return self.white and _OWN.fullmatch(self.estimator) is not None


def as_recorded(stages: Sequence[Stage], records: pd.DataFrame) -> list[Stage]:
    """The stages, those that were seen to take no gradient of the network as black boxes."""
    found = []
    for stage in stages:
        own = _rows_of(records, stage)
        free = own["forward_passes"].sum() > 0 and own["backward_passes"].sum() == 0
        found.append(dataclasses.replace(stage, black=stage.black or bool(free)))
    return found


def lines_of(stages: Sequence[Stage]) -> dict[Size, list[Stage]]:
    """The stages of each norm and size, in their order."""
    found: dict[Size, list[Stage]] = {}
    for stage in stages:
        found.setdefault(stage.line, []).append(stage)
    return found


def missing(stages: Sequence[Stage], spiking: bool, stochastic: bool = False) -> list[str]:
    """What a full evaluation has and these stages do not, in words; empty if nothing.

    Args:
        stages: Of a run.
        spiking: Whether there is a choice of how to differentiate.
        stochastic: Whether the network draws; each step is then an average over draws, and fewer
            of them are a long attack.
    """
    steps = LONG if stochastic else FULL_STEPS
    if not stages:
        return ["an attack"]
    found: dict[str, None] = {}
    for some in lines_of(stages).values():
        long = [s for s in some if s.white and not s.probe and (s.steps or 0) >= steps]
        if not long:
            found[f"a gradient attack of {steps} steps or more"] = None
        if spiking and len({s.estimator for s in some if s.white} - {BEST}) < FULL_ESTIMATORS:
            found[f"{FULL_ESTIMATORS} or more ways to differentiate spikes"] = None
        # One that starts where gradients stopped is no evidence independent of them.
        if not any(s.black and not s.warm and (s.queries or 0) >= FULL_QUERIES for s in some):
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
    images = _images(records)
    by_own: set[int] = set().union(*(broken.get(s.key, set()) for s in own)) & clean
    by_others: set[int] = set().union(*(broken.get(s.key, set()) for s in others)) & clean
    gap = len(by_others - by_own) / images
    left = (len(clean) - len(by_own)) / images
    return Finding(
        "D3",
        "surrogate-gap",
        gap > SURROGATE_GAP,
        "caution" if cascade else "invalid",
        f"{formats.attack(own[0].attack)}, by the network's own derivative, leaves "
        f"{percent(left)} at {formats.threat(*some[0].line)}; others break {100 * gap:.1f} points "
        "more: what attacks by its own derivative alone say of this network is too high.",
        gap,
        {"own": left, "all": left - gap, "attack": own[0].attack},
    )


def convergence(records: pd.DataFrame, some: Sequence[Stage], cascade: bool) -> Finding | None:
    """D5: what the last long gradient attack still broke; None unless another came before it.

    Those for the nearest image are none: what they break says little of more steps in the ball.
    """
    white = [s for s in some if s.white and not s.probe and s.kind == "fixed-epsilon"]
    long = [s for s in white if (s.steps or 0) >= LONG]
    if not cascade or len(long) < 2:
        return None
    last = long[-1]
    still = len(broken_by(records).get(last.key, set())) / _images(records)
    return Finding(
        "D5",
        "not-converged",
        still > STILL_BREAKS,
        "caution",
        f"{formats.attack(last.attack)}, the last long gradient attack at "
        f"{formats.threat(*last.line)}, still broke {100 * still:.1f} points: more steps would "
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
    by_white: set[int] = set().union(*(broken.get(s.key, set()) for s in white))
    by_black: set[int] = set().union(*(broken.get(s.key, set()) for s in black))
    only = len((by_black - by_white) & right_when_clean(records)) / _images(records)
    names = formats.listing([formats.attack(s.attack) for s in black])
    return Finding(
        "D7",
        "black-box-finds-more",
        only > BLACK_FINDS,
        "caution",
        f"At {formats.threat(*some[0].line)} {names} broke {100 * only:.1f} points that no "
        "gradient found: gradients are not the whole story, and a longer search may find more.",
        only,
        {"by stage": _per_stage(records, black)},
    )


def noise_survives(records: pd.DataFrame, line: Size, fooled: Sequence[int], draws: int) -> Finding:
    """D6: images that noise fooled in the probe and every attack of the run left.

    Args:
        records: Of the run.
        line: Norm and size.
        fooled: The ids of images that a draw of noise of that size fooled.
        draws: Of noise, for each image.
    """
    left = sorted(survivors(records, line).intersection(fooled))
    share = len(left) / _images(records)
    return Finding(
        "D6",
        "noise-beats-suite",
        bool(left),
        "invalid",
        f"{draws} draws of noise fool {formats.count(len(left), 'image')} that every attack at "
        f"{formats.threat(*line)} left: the attacks do not find what is in the ball.",
        share,
        {"images": left[:20]},
    )


def _per_stage(records: pd.DataFrame, stages: Sequence[Stage]) -> dict[str, float]:
    broken, images = broken_by(records), _images(records)
    return {s.attack: len(broken.get(s.key, set())) / images for s in stages}


def _rows_of(records: pd.DataFrame, stage: Stage) -> pd.DataFrame:
    mask = records["attack"] == stage.attack
    return records[mask & (records["norm"] == stage.norm) & (records["epsilon"] == stage.epsilon)]


def _images(records: pd.DataFrame) -> int:
    return max(1, int(records["image_id"].nunique()))
