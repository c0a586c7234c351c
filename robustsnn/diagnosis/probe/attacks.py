"""Small attacks on a network, to see whether attacks on it behave as attacks do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustsnn.adversary.threat import ThreatModel
from robustsnn.common.randomness import derive
from robustsnn.common.wording import count, percent
from robustsnn.diagnosis.finding import Finding
from robustsnn.diagnosis.indicators import LAST_STEPS, silent, unfinished, unstable
from robustsnn.diagnosis.probe.gradients import Taken
from robustsnn.diagnosis.probe.specimen import OWN, Sample
from robustsnn.estimators.make import make_estimator
from robustsnn.models.scoring import judged_margin, score, verdict
from robustsnn.snn.draws import mean_of_draws

#: Accuracy by which a weaker attack may win before it is said.
MARGIN = 0.005
#: Width of the noise that predictions should bear, pixel units.
NOISE = 8 / 255
#: Share of its loss that an image may gain or lose under that noise, on average.
MOST_UNSTABLE = 0.5
#: Share of the images whose loss may still rise at the end of an attack.
MOST_UNFINISHED = 0.1
#: A size at which every image can be made grey, Linf.
FAR = 0.5
#: How many ways to differentiate the attack that may go so far tries.
FAR_ESTIMATORS = 3
#: The step starts at twice the radius and is halved after every such share of the steps.
PHASES = 4
#: Fresh draws that decide whether an image of a stochastic network is fooled.
VERDICT_DRAWS = 10
#: Images, and steps, on which draws are doubled.
DOUBLED_IMAGES, DOUBLED_STEPS = 16, 10
#: Steps on the twin.
TWIN_STEPS = 5


@dataclass(frozen=True, eq=False)
class Path:
    """Where an attack went.

    Args:
        loss: The margin at every iterate, the start first, `[iterate, image]`.
        last: The last iterate, `[image, ...]`.
        logits: What the attack saw there, `[image, class]`.
    """

    loss: Tensor
    last: Tensor
    logits: Tensor

    @property
    def fooled(self) -> Tensor:
        """Whether each iterate was misclassified, a tie included, `[iterate, image]`."""
        return self.loss >= 0


def climb(sample: Sample, estimator: str, threat: ThreatModel, start: Tensor, steps: int) -> Path:
    """Steps along the gradient of the margin, no image ever dropped, no iterate kept back."""
    paths = []
    for begin, part in zip(range(0, len(sample), sample.micro_batch), sample.parts(), strict=True):
        victim = part.victim(estimator)
        x = start[begin : begin + sample.micro_batch]
        loss = []
        for step in range(steps):
            found = victim.gradient(x, part.labels, "margin")
            loss.append(judged_margin(found.logits, part.labels))
            size = 2 * threat.radius / 2 ** (PHASES * step // steps)
            x = threat.project(x + size * threat.ascent(found.gradient), part.images)
        logits = victim.logits(x)
        loss.append(judged_margin(logits, part.labels))
        sample.settle(victim)
        paths.append((torch.stack(loss), x, logits))
    return Path(
        torch.cat([p[0] for p in paths], 1),
        torch.cat([p[1] for p in paths]),
        torch.cat([p[2] for p in paths]),
    )


def order(sample: Sample, taken: Taken, threat: ThreatModel, draws: int) -> list[Finding]:
    """D6: does noise, however often drawn, fool more images than one step along a gradient.

    Args:
        sample: The first images of those that gradients were taken of.
        taken: Those gradients.
        threat: Of noise and step.
        draws: Of noise, for each image.
    """
    by_noise = torch.zeros(len(sample), dtype=torch.bool)
    rng = sample.rng("noise")
    for _ in range(draws):
        by_noise |= _fooled(sample, threat.random_point(sample.images, rng))
    by_step = torch.zeros_like(by_noise)
    for gradient in taken.here.values():
        step = threat.radius * threat.ascent(gradient[: len(sample)])
        by_step |= _fooled(sample, threat.project(sample.images + step, sample.images))
    noise, one = _mean(by_noise), _mean(by_step)
    fooled = [sample.ids[i] for i in by_noise.nonzero().flatten().tolist()]
    return [
        Finding(
            "D6",
            "noise-beats-gradient",
            noise - one > MARGIN,
            "invalid",
            f"The worst of {draws} draws of noise fools {percent(noise)} of the probed images, one "
            f"step along a gradient {percent(one)}: a sign of masked gradients.",
            noise - one,
            {"noise": noise, "one step": one, "draws": draws, "fooled by noise": fooled},
        )
    ]


def far(sample: Sample, threat: ThreatModel, accuracy: float, steps: int) -> list[Finding]:
    """D6 and I6: is anything left once an attack may go anywhere.

    Args:
        sample: Images.
        threat: Its norm is kept.
        accuracy: On clean images, of which the sample is those that are right.
        steps: For each way to differentiate.
    """
    values = math.prod(sample.images.shape[1:])
    radius = FAR if threat.norm == "Linf" else FAR * math.sqrt(values)
    anywhere = ThreatModel(threat.norm, f"{radius:.6g}", threat.low, threat.high)
    left = torch.arange(len(sample))
    classes = 2
    for text in sample.estimators[:FAR_ESTIMATORS]:
        if len(left) == 0:
            break
        some = sample.at(left)
        start = anywhere.random_point(some.images, some.rng(f"far/{text}"))
        path = climb(some, text, anywhere, start, steps)
        classes = path.logits.shape[1]
        left = left[~path.fooled.any(0).cpu()]
    share = len(left) / len(sample) if len(sample) else 0.0
    size = f"epsilon {FAR:g}" if threat.norm == "Linf" else f"L2 {radius:.3g}"
    return [
        Finding(
            "D6",
            "far-above-chance",
            share * accuracy > 1 / classes,
            "invalid",
            f"At {size}, where any image can be made grey, an attack still leaves an accuracy of "
            f"{percent(share * accuracy)}, above chance ({percent(1 / classes)}): it does not find "
            "what is there.",
            share * accuracy,
            {"chance": 1 / classes, "left": share},
        ),
        Finding(
            "I6",
            "unconstrained-failure",
            share > 0,
            "caution",
            f"An attack that may change every pixel by half the range fails on {percent(share)} of "
            "the probed images.",
            share,
        ),
    ]


def stability(sample: Sample, loss: Tensor, draws: int) -> list[Finding]:
    """I2: how much of its margin an image gains or loses under noise too small to see.

    Args:
        sample: Images.
        loss: The margin of each.
        draws: Of noise, for each image.
    """
    rng = sample.rng("small noise")
    noisy = []
    for _ in range(draws):
        noise = rng.uniform(sample.images.shape[1:], -NOISE / 2, NOISE / 2, like=sample.images)
        noisy.append(_numbers(judged_margin(sample.judge(sample.images + noise), sample.labels)))
    each = unstable(_numbers(loss), np.stack(noisy))
    found = float(each.mean())
    return [
        Finding(
            "I2",
            "unstable-predictions",
            # A few images at the boundary make no rough loss.
            min(found, float(np.median(each))) > MOST_UNSTABLE,
            "caution",
            f"Noise of 4/255 changes the margin by {percent(found)} of itself on average: a "
            "gradient of so rough a loss says little about the next step.",
            found,
        )
    ]


def path(sample: Sample, threat: ThreatModel, steps: int) -> list[Finding]:
    """I3, I4 and I5: an attack with the network's own gradient, looked at step by step."""
    start = threat.random_point(sample.images, sample.rng("path"))
    walked = climb(sample, OWN, threat, start, steps)
    fooled = walked.fooled.cpu().numpy()
    loss = _numbers(walked.loss)
    lost = float(silent(fooled).mean())
    open_ended = unfinished(loss)
    unbroken = ~fooled.any(0)
    rising = float(open_ended[unbroken].mean()) if unbroken.any() else 0.0
    findings = [
        Finding(
            "I3",
            "silent-success",
            lost > 0,
            "note",
            f"The last iterate fools no longer what an earlier one did on {percent(lost)} of the "
            "images: an attack that returns the last one looks weaker than it is.",
            lost,
        ),
        Finding(
            "I4",
            "incomplete-optimisation",
            rising > MOST_UNFINISHED,
            "note",
            f"After {count(steps, 'step')} the margin still rose in the last {LAST_STEPS} on "
            f"{percent(rising)} of the images that were not broken: so few steps are too few.",
            rising,
            {"of all images": float(open_ended.mean()), "steps": steps},
        ),
    ]
    if sample.victim().stochastic:
        return findings
    judged = sample.judge(walked.last)
    differing = float((judged.argmax(1) != walked.logits.argmax(1)).double().mean())
    found = sample.gradient(OWN, walked.last)
    differing = max(differing, float((judged.argmax(1) != found.logits.argmax(1)).double().mean()))
    details = {} if (twin := _twin(sample, threat)) is None else {"of the ANN twin": twin}
    return [
        *findings,
        Finding(
            "I5",
            "attack-does-not-transfer",
            differing > 0,
            "invalid",
            f"On {percent(differing)} of the images an attack sees another class than the verdict "
            "does: it is aimed at another network.",
            differing,
            details,
        ),
    ]


def _twin(sample: Sample, threat: ThreatModel) -> float | None:
    """Share of the images that an attack on the ANN twin proposes which the SNN calls otherwise."""
    if not sample.spiking:
        return None
    start = threat.random_point(sample.images, sample.rng("twin"))
    twin = make_estimator("twin", sample.network)
    try:
        last = climb(sample, "twin", threat, start, TWIN_STEPS).last
        with twin.applied(sample.network):
            said = score(sample.network, last, sample.ids, sample.micro_batch, sample.seed)
    except (RuntimeError, TypeError):
        # A foreign layer need not have what a twin is made of.
        return None
    sample.spent.forward += len(sample)
    return float((said.argmax(1) != sample.judge(last).argmax(1)).double().mean())


def doubling(sample: Sample, threat: ThreatModel, draws: int) -> list[Finding]:
    """D8: does averaging a stochastic network's gradient over twice the draws break more.

    Args:
        sample: Images of a network that draws.
        threat: Of the attack.
        draws: What the attacks of the run average over; 1 if they do not.
    """
    some = sample.first(DOUBLED_IMAGES)
    start = threat.random_point(some.images, some.rng("draws"))
    broken = {}
    for number in (draws, 2 * draws):
        text = f"{OWN}:draws={number},average=logits"
        last = climb(some, text, threat, start, DOUBLED_STEPS).last
        broken[number] = float((_mean_margin(some, last) >= 0).double().mean())
    gain = broken[2 * draws] - broken[draws]
    return [
        Finding(
            "D8",
            "too-few-draws",
            gain * len(some) > 1,
            "invalid",
            f"Averaged over {count(draws, 'draw')} an attack breaks {percent(broken[draws])} of "
            f"the images, over twice as many {percent(broken[2 * draws])}: average over more.",
            gain,
            {"broken by draws": broken},
        )
    ]


def _mean_margin(sample: Sample, images: Tensor) -> Tensor:
    """Margin of the mean logits over fresh draws, `[image]`."""
    every = []
    for draw in range(VERDICT_DRAWS):
        seed = derive(sample.seed, "fresh", draw)
        every.append(score(sample.network, images, sample.ids, sample.micro_batch, seed))
    sample.spent.forward += VERDICT_DRAWS * len(sample)
    return judged_margin(mean_of_draws(torch.stack(every)), sample.labels)


def _fooled(sample: Sample, images: Tensor) -> Tensor:
    """Whether each image is misclassified, a tie included, bool `[image]`.

    Of a stochastic network by a vote: noise tried a hundred times finds a draw that errs anyway.
    """
    fooled = (judged_margin(sample.judge(images), sample.labels) >= 0).cpu()
    if not sample.victim().stochastic or not bool(fooled.any()):
        return fooled
    some = sample.at(fooled.nonzero().flatten())
    said = verdict(
        some.network, images[fooled], some.labels, some.ids, some.micro_batch, some.seed,
        VERDICT_DRAWS,
    )  # fmt: skip
    sample.spent.forward += VERDICT_DRAWS * len(some)
    fooled[fooled.clone()] = ~(said.margins < 0).cpu()
    return fooled


def _mean(mask: Tensor) -> float:
    return float(mask.double().mean()) if len(mask) else 0.0


def _numbers(values: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return values.double().cpu().numpy()
