"""Small attacks on a network, which show whether attacks on it behave as attacks should."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustsnn.adversary.threat import ThreatModel
from robustsnn.common.randomness import derive
from robustsnn.common.users_code import UsersCodeError
from robustsnn.common.wording import count, percent
from robustsnn.diagnosis.finding import MARGIN, Finding
from robustsnn.diagnosis.indicators import LAST_STEPS, silent, unfinished, unstable
from robustsnn.diagnosis.probe.specimen import OWN, Specimen
from robustsnn.diagnosis.probe.taken import Taken
from robustsnn.estimators.make import make_estimator
from robustsnn.models.scoring import judged_margin, score, verdict
from robustsnn.snn.draws import mean_of_draws

#: The width of the noise under which predictions should be stable, in pixel units.
NOISE = 8 / 255
#: The share of its loss that an image may gain or lose under that noise, on average.
MOST_UNSTABLE = 0.5
#: The share of the images whose loss may still rise at the end of an attack.
MOST_UNFINISHED = 0.1
#: The Linf size at which every image can be made grey.
FAR = 0.5
#: The number of estimators that the attack of that size tries.
FAR_ESTIMATORS = 3
#: The number of phases of an attack. Its step is twice the radius in the first phase, and half as
#: long in each next one.
PHASES = 4
#: The number of fresh draws that decide whether an image of a stochastic network is fooled.
VERDICT_DRAWS = 10
#: The numbers of images and of steps of the attacks whose draws are doubled.
DOUBLED_IMAGES, DOUBLED_STEPS = 16, 10
#: The steps of the attack on the ANN twin.
TWIN_STEPS = 5


@dataclass(frozen=True, eq=False)
class Path:
    """The path of an attack.

    Args:
        loss: The margin at every iterate, the start first, `[iterate, image]`.
        last: The last iterate, `[image, ...]`.
        logits: The logits that the attack saw at the last iterate, `[image, class]`.
    """

    loss: Tensor
    last: Tensor
    logits: Tensor

    @property
    def fooled(self) -> Tensor:
        """Whether each iterate was misclassified, ties included, bool `[iterate, image]`."""
        return self.loss >= 0


def climb(
    specimen: Specimen, estimator: str, threat: ThreatModel, start: Tensor, steps: int
) -> Path:
    """Make steps along the gradient of the margin, with every image until the last step.

    Args:
        specimen: The images and the network.
        estimator: The estimator of the gradient.
        threat: The threat model of the attack.
        start: The points to start from, `[image, ...]`.
        steps: The number of steps.
    """
    paths = []
    for begin, part in zip(
        range(0, len(specimen), specimen.micro_batch), specimen.parts(), strict=True
    ):
        victim = part.victim(estimator)
        x = start[begin : begin + specimen.micro_batch]
        loss = []
        for step in range(steps):
            found = victim.gradient(x, part.labels, "margin")
            loss.append(judged_margin(found.logits, part.labels))
            size = 2 * threat.radius / 2 ** (PHASES * step // steps)
            x = threat.project(x + size * threat.ascent(found.gradient), part.images)
        logits = victim.logits(x)
        loss.append(judged_margin(logits, part.labels))
        specimen.settle(victim)
        paths.append((torch.stack(loss), x, logits))
    return Path(
        torch.cat([p[0] for p in paths], 1),
        torch.cat([p[1] for p in paths]),
        torch.cat([p[2] for p in paths]),
    )


def order(specimen: Specimen, taken: Taken, threat: ThreatModel, draws: int) -> list[Finding]:
    """D6: whether many draws of noise fool more images than one step along a gradient.

    Args:
        specimen: The first of the images at which gradients were taken.
        taken: Those gradients.
        threat: The threat model of the noise and of the step.
        draws: The number of draws of noise for each image.
    """
    by_noise = torch.zeros(len(specimen), dtype=torch.bool)
    rng = specimen.rng("noise")
    for _ in range(draws):
        by_noise |= _fooled(specimen, threat.random_point(specimen.images, rng))
    by_step = torch.zeros_like(by_noise)
    for gradient in taken.here.values():
        step = threat.radius * threat.ascent(gradient[: len(specimen)])
        by_step |= _fooled(specimen, threat.project(specimen.images + step, specimen.images))
    noise, one = _mean(by_noise), _mean(by_step)
    fooled = [specimen.ids[i] for i in by_noise.nonzero().flatten().tolist()]
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
            passed=f"The worst of {draws} draws of noise fools {percent(noise)} of the probed "
            f"images, one step along a gradient {percent(one)}: a gradient helps as it should.",
        )
    ]


def far(specimen: Specimen, threat: ThreatModel, accuracy: float, steps: int) -> list[Finding]:
    """D6 and I6: whether any image survives an attack that may change every pixel at will.

    Args:
        specimen: The images and the network.
        threat: The threat model, whose norm and pixel range are kept.
        accuracy: The accuracy on clean images; those of the specimen are classified right.
        steps: The steps of the attack with each estimator.
    """
    values = math.prod(specimen.images.shape[1:])
    radius = FAR if threat.norm == "Linf" else FAR * math.sqrt(values)
    anywhere = ThreatModel(threat.norm, f"{radius:.6g}", threat.low, threat.high)
    survivors = torch.arange(len(specimen))
    classes = 2
    for text in specimen.estimators[:FAR_ESTIMATORS]:
        if len(survivors) == 0:
            break
        some = specimen.at(survivors)
        start = anywhere.random_point(some.images, some.rng(f"far/{text}"))
        path = climb(some, text, anywhere, start, steps)
        classes = path.logits.shape[1]
        survivors = survivors[~path.fooled.any(0).cpu()]
    share = len(survivors) / len(specimen) if len(specimen) else 0.0
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
            passed=f"At {size}, where any image can be made grey, an attack leaves an accuracy of "
            f"{percent(share * accuracy)}, not above chance ({percent(1 / classes)}).",
        ),
        Finding(
            "I6",
            "unconstrained-failure",
            share > 0,
            "caution",
            f"An attack that may change every pixel by half the range fails on {percent(share)} of "
            "the probed images.",
            share,
            passed="An attack that may change every pixel by half the range succeeds on every "
            "probed image.",
        ),
    ]


def stability(specimen: Specimen, loss: Tensor, draws: int) -> list[Finding]:
    """I2: the share of its margin that an image gains or loses under noise too small to see.

    Args:
        specimen: The images and the network.
        loss: The margin of each image, `[image]`.
        draws: The number of draws of noise for each image.
    """
    rng = specimen.rng("small noise")
    noisy = []
    for _ in range(draws):
        noise = rng.uniform(specimen.images.shape[1:], -NOISE / 2, NOISE / 2, like=specimen.images)
        noisy.append(
            _numbers(judged_margin(specimen.judge(specimen.images + noise), specimen.labels))
        )
    each = unstable(_numbers(loss), np.stack(noisy))
    found = float(each.mean())
    return [
        Finding(
            "I2",
            "unstable-predictions",
            # The median too, since a few images at the boundary do not make a loss rough.
            min(found, float(np.median(each))) > MOST_UNSTABLE,
            "caution",
            f"Noise of 4/255 changes the margin by {percent(found)} of itself on average: a "
            "gradient of so rough a loss says little about the next step.",
            found,
            passed=f"Noise of 4/255 changes the margin by {percent(found)} of itself on average.",
        )
    ]


def path(specimen: Specimen, threat: ThreatModel, steps: int) -> list[Finding]:
    """I3, I4 and I5: an attack with the network's own gradient, looked at step by step.

    Args:
        specimen: The images and the network.
        threat: The threat model of the attack.
        steps: The number of steps.
    """
    start = threat.random_point(specimen.images, specimen.rng("path"))
    walked = climb(specimen, OWN, threat, start, steps)
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
            passed="The last iterate fools whatever an earlier one did.",
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
            passed=f"After {count(steps, 'step')} the margin still rose in the last {LAST_STEPS} "
            f"on {percent(rising)} of the images that were not broken.",
        ),
    ]
    if specimen.victim().stochastic:
        return findings
    judged = specimen.judge(walked.last)
    differing = float((judged.argmax(1) != walked.logits.argmax(1)).double().mean())
    found = specimen.gradient(OWN, walked.last)
    differing = max(differing, float((judged.argmax(1) != found.logits.argmax(1)).double().mean()))
    details = {} if (twin := _twin(specimen, threat)) is None else {"of the ANN twin": twin}
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
            passed="On every image an attack sees the class that the verdict sees.",
        ),
    ]


def _twin(specimen: Specimen, threat: ThreatModel) -> float | None:
    """The share of the proposals of an attack on the ANN twin that the SNN classifies differently.

    None if the network does not spike or has no twin.
    """
    if not specimen.spiking:
        return None
    start = threat.random_point(specimen.images, specimen.rng("twin"))
    twin = make_estimator("twin", specimen.network)
    try:
        last = climb(specimen, "twin", threat, start, TWIN_STEPS).last
        with twin.applied(specimen.network):
            said = score(specimen.network, last, specimen.ids, specimen.micro_batch, specimen.seed)
    except (RuntimeError, TypeError, UsersCodeError):
        # A foreign layer may lack what a twin is made of.
        return None
    specimen.spent.forward += len(specimen)
    return float((said.argmax(1) != specimen.judge(last).argmax(1)).double().mean())


def doubling(specimen: Specimen, threat: ThreatModel, draws: int) -> list[Finding]:
    """D8: whether averaging a stochastic network's gradient over twice the draws breaks more.

    Args:
        specimen: The images, and a network that draws.
        threat: The threat model of the attack.
        draws: The draws that the attacks of the run average over; 1 if they do not.
    """
    some = specimen.first(DOUBLED_IMAGES)
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
            passed=f"Averaged over {count(draws, 'draw')} an attack breaks "
            f"{percent(broken[draws])} of the images, over twice as many "
            f"{percent(broken[2 * draws])}.",
        )
    ]


def _mean_margin(specimen: Specimen, images: Tensor) -> Tensor:
    """The margin of the mean logits over fresh draws, `[image]`."""
    every = []
    for draw in range(VERDICT_DRAWS):
        seed = derive(specimen.seed, "fresh", draw)
        every.append(score(specimen.network, images, specimen.ids, specimen.micro_batch, seed))
    specimen.spent.forward += VERDICT_DRAWS * len(specimen)
    return judged_margin(mean_of_draws(torch.stack(every)), specimen.labels)


def _fooled(specimen: Specimen, images: Tensor) -> Tensor:
    """Whether each image is misclassified, ties included, bool `[image]`.

    A stochastic network is judged by a vote over fresh draws: among a hundred draws of noise, one
    would meet a draw of the network that errs anyway.
    """
    fooled = (judged_margin(specimen.judge(images), specimen.labels) >= 0).cpu()
    if not specimen.victim().stochastic or not bool(fooled.any()):
        return fooled
    some = specimen.at(fooled.nonzero().flatten())
    said = verdict(
        some.network, images[fooled], some.labels, some.ids, some.micro_batch, some.seed,
        VERDICT_DRAWS,
    )  # fmt: skip
    specimen.spent.forward += VERDICT_DRAWS * len(some)
    fooled[fooled.clone()] = ~(said.margins < 0).cpu()
    return fooled


def _mean(mask: Tensor) -> float:
    return float(mask.double().mean()) if len(mask) else 0.0


def _numbers(values: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return values.double().cpu().numpy()
