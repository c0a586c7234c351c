"""Checks of a network before it is attacked: whether a number about it can be believed at all."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from robustsnn.adversary.victim import Victim
from robustsnn.diagnosis.finding import CAUTIONS, MOST_ZERO_GRADIENTS, Finding, Severity
from robustsnn.errors import InputError
from robustsnn.estimators.make import make_estimator
from robustsnn.models.calling import AT_ONCE
from robustsnn.models.scoring import finite_logits, margin, score
from robustsnn.snn.copying import copy_of
from robustsnn.snn.neuron import FixedDropout
from robustsnn.snn.sparsity import SYNAPSES

#: The number of clean images that the checks look at.
IMAGES = 64
#: The share of the images on which two classes may tie.
MOST_TIES = 0.01
#: The number of images that are looked at one by one.
ALONE = 8
#: The number of passes in AutoAttack's check for randomness, and the largest distance of
#: normalised logits that it admits.
RUNS, APART = 5, 1e-4
#: The functions that AutoAttack takes for an optimisation inside a forward pass, and the folder
#: where they are defined.
INNER, DEFINED = ("grad", "backward", "_make_grads"), Path(torch.__file__).parent / "autograd"
#: How classes of spiking neurons are called, and what they hold.
NEURON = re.compile(
    r"LIF|IFNode|IFCell|IFNeuron|^A?P?IF$|[Nn]euron|[Ss]pik|Izhikevich|Leaky(?!ReLU)"
)
OF_NEURONS = ("threshold", "v_threshold", "v_th", "vth", "thresh", "mem", "membrane", "v_reset")


def _check(
    slug: str,
    passed: bool,
    evidence: float,
    sentence: str,
    id: str = "",
    details: Mapping[str, Any] | None = None,
    otherwise: str = "",
) -> Finding:
    """One check as a finding, which is flagged if the network does not pass.

    Args:
        slug: The name of the check.
        passed: Whether the network passes.
        evidence: The number behind the check.
        sentence: What came out; where `otherwise` is given, what it means not to pass.
        id: The id of the diagnostic.
        details: More numbers.
        otherwise: What it means to pass.
    """
    severity: Severity = "caution" if slug in CAUTIONS else "invalid"
    return Finding(
        id, slug, not passed, severity, sentence, evidence, details or {}, passed=otherwise
    )


def preflight(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    image_ids: Sequence[int],
    micro_batch: int,
    seed: int = 0,
) -> list[Finding]:
    """Run every check on a network.

    Args:
        network: The network, in evaluation mode; it is left as it was.
        images: A few clean images, `[batch, channel, height, width]`, in [0, 1].
        labels: The true classes, int64 `[batch]`.
        image_ids: The id of each image.
        micro_batch: The number of images in a forward pass.
        seed: The seed of the draws of a stochastic network.

    Raises:
        InputError: The network does not take the images, or its logits are not finite.
    """
    logits = finite_logits(network, images, image_ids, micro_batch, seed)
    given = (network, images, image_ids, micro_batch, seed)
    return [
        _repeatable(*given, logits),
        _same_every_time(*given, labels, logits),
        _alone(*given),
        _leaves_nothing(*given),
        _no_batch_statistics(network),
        _modes_agree(*given, logits),
        _under_attack(network, images, labels, image_ids, micro_batch, seed, logits),
        _no_inner_optimisation(*given),
        *_gradients(network, images, labels, image_ids, micro_batch, seed),
        _not_probabilities(logits),
        _ties(logits),
        _values(logits, labels),
    ]


def _repeatable(
    network: nn.Module,
    images: Tensor,
    ids: Sequence[int],
    micro_batch: int,
    seed: int,
    logits: Tensor,
) -> Finding:
    again = score(network, images, ids, micro_batch, seed)
    differing = float((again != logits).any(1).double().mean())
    if getattr(network, "stochastic", False):
        said = "The network declares itself stochastic; with the same draws two passes "
    else:
        said = "Two passes of the same images "
    passed = differing == 0
    outcome = "agree." if passed else f"differ on {differing:.1%} of images: state or draws leak."
    return _check("repeatable", passed, differing, said + outcome, "D9")


def _alone(
    network: nn.Module, images: Tensor, ids: Sequence[int], micro_batch: int, seed: int
) -> Finding:
    # In float64 a different shape moves no membrane across its threshold; in float32 it may.
    some, few = images[:ALONE].double(), list(ids[:ALONE])
    try:
        wide = copy_of(network).double()
        together = score(wide, some, few, len(some), seed)
        alone = torch.cat(
            [score(wide, some[i : i + 1], few[i : i + 1], 1, seed) for i in range(len(some))]
        )
        scale = together.abs().amax().clamp_min(1e-12)
        largest = float(((together - alone).abs() / scale).max())
        passed = largest < 1e-6
    except Exception:
        # A network of the user's own may hold float32 constants, or refuse another type or number
        # of images with any error: compare its predictions instead.
        size = getattr(network, AT_ONCE, None) or 1
        together = score(network, images[:ALONE], few, micro_batch, seed)
        alone = torch.cat(
            [score(network, images[i : i + 1], few[i : i + 1], size, seed) for i in range(len(few))]
        )
        largest = float((together.argmax(1) != alone.argmax(1)).double().mean())
        passed = largest == 0
    outcome = "are those of the image in a batch." if passed else "depend on its batch."
    said = f"The logits of an image alone {outcome}"
    return _check("alone-as-in-batch", passed, largest, said, "D9")


def _same_every_time(
    network: nn.Module,
    images: Tensor,
    ids: Sequence[int],
    micro_batch: int,
    seed: int,
    labels: Tensor,
    logits: Tensor,
) -> Finding:
    """AutoAttack's check for randomness, which makes five passes and not two."""
    runs = [logits]
    runs += [score(network, images, ids, micro_batch, seed) for _ in range(RUNS - 1)]
    right = {int((run.argmax(1) == labels).sum()) for run in runs}
    unit = [nn.functional.normalize(run.double(), dim=1) for run in runs]
    apart = max(
        float((one - other).norm(dim=1).max())
        for place, one in enumerate(unit)
        for other in unit[:place]
    )
    passed = len(right) == 1 and apart <= APART
    outcome = (
        f"agree on how many images are right and within {APART:g} on their logits."
        if passed
        else f"get {min(right)} to {max(right)} of {len(labels)} images right, their normalised "
        f"logits up to {apart:.2g} apart: declare the draws (`stochastic`, `keys`) or drop them."
    )
    return _check(
        "randomised", passed, apart, f"{RUNS} passes {outcome}", "D8", {"right": sorted(right)}
    )


def _leaves_nothing(
    network: nn.Module, images: Tensor, ids: Sequence[int], micro_batch: int, seed: int
) -> Finding:
    """Whether other images leave a trace in the logits of the next ones, or in buffers."""
    few, some = images[:ALONE], list(ids[:ALONE])
    others = images[-ALONE:].flip(0)
    network = copy_of(network)
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    before = score(network, few, some, micro_batch, seed)
    score(network, 1 - others, some[: len(others)], micro_batch, seed)
    after = score(network, few, some, micro_batch, seed)
    differing = float((before != after).any(1).double().mean())
    changed = [
        name
        for name, value in network.named_buffers()
        if name not in buffers or not torch.equal(value, buffers[name])
    ]
    # A buffer that no logit follows, such as a count of passes, does no harm.
    outcome = (
        f"change the logits of {differing:.1%} of the next ones: reset all state."
        if differing
        else "leave no trace."
        if not changed
        else f"leave no trace in the logits of the next ones, only in {', '.join(changed[:3])}."
    )
    said = f"Images seen before {outcome}"
    return _check("state-leak", differing == 0, differing, said, "D9", {"changed": changed})


def _no_batch_statistics(network: nn.Module) -> Finding:
    """Whether no normalisation takes its statistics from the batch at hand."""
    kinds = (nn.modules.batchnorm._BatchNorm,)
    found = [
        name
        for name, module in network.named_modules()
        if isinstance(module, kinds) and (module.training or module.running_mean is None)
    ]
    outcome = (
        f"takes its statistics from the batch in {', '.join(found[:3])}: evaluate with stored ones."
        if found
        else "takes no statistics from the batch."
    )
    return _check("batch-statistics", not found, float(len(found)), f"The network {outcome}", "D9")


def _modes_agree(
    network: nn.Module,
    images: Tensor,
    ids: Sequence[int],
    micro_batch: int,
    seed: int,
    logits: Tensor,
) -> Finding:
    """Whether the network predicts the same with neurons in training mode.

    Some libraries take gradients in that mode.
    """
    network = copy_of(network)
    named = getattr(network, "neuron_modules", None)
    neurons = named() if named else [m for m in network.modules() if is_neuron(m)]
    for module in neurons:
        module.training = True
    differing, usable = 0.0, True
    try:
        trained = score(network, images, ids, micro_batch, seed) if neurons else logits
        differing = float((trained.argmax(1) != logits.argmax(1)).double().mean())
    except InputError:
        # Nobody takes a gradient of what cannot be run.
        usable = False
    outcome = (
        "do not run."
        if not usable
        else "predict as in evaluation mode."
        if differing == 0
        else f"predict otherwise on {differing:.1%} of images than in evaluation mode: gradients "
        "taken there are of another network."
    )
    return _check(
        "neuron-modes",
        differing == 0,
        differing,
        f"Neurons in training mode {outcome}",
        "D9",
        {"modules": len(neurons)},
    )


def is_neuron(module: nn.Module) -> bool:
    """Whether a module looks like a layer of spiking neurons.

    It is a class of its own, and not one of torch's layers or derived of one, since normalisation
    and dropout are meant to differ in training mode. It holds no layers with weights, and its name
    or that of one of its attributes says that it spikes.

    Examples:
        >>> is_neuron(nn.BatchNorm2d(1)), is_neuron(type("LIFCell", (nn.Module,), {})())
        (False, True)
    """
    kinds = [one for one in type(module).__mro__ if one not in (nn.Module, object)]
    if not kinds or any(one.__module__.startswith("torch.") for one in kinds):
        return False
    if isinstance(module, FixedDropout) or any(isinstance(m, SYNAPSES) for m in module.modules()):
        return False
    named = any(NEURON.search(one.__name__) for one in kinds)
    held = [*vars(module), *module._parameters, *module._buffers]
    return named or any(name.lstrip("_").lower() in OF_NEURONS for name in held)


def _no_inner_optimisation(
    network: nn.Module, images: Tensor, ids: Sequence[int], micro_batch: int, seed: int
) -> Finding:
    """AutoAttack's check for a defence that optimises while it predicts."""
    with _calls_seen() as seen:
        score(network, images[:2], ids[:2], min(2, micro_batch), seed)
    outcome = (
        f"calls {', '.join(sorted(seen))} while it predicts: attacks that do not see that "
        "optimisation are too weak; attack it through its steps."
        if seen
        else "takes no gradient while it predicts."
    )
    return _check("dynamic", not seen, float(len(seen)), f"The network {outcome}", "AA")


@contextmanager
def _calls_seen() -> Iterator[set[str]]:
    """Collect the functions of torch's autograd that are called inside the block."""
    seen: set[str] = set()

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_name in INNER and str(DEFINED) in code.co_filename:
            seen.add(code.co_name)

    if sys.getprofile() is not None:
        # A profiler is already at work, and Python has room for one only.
        yield seen
        return
    try:
        sys.setprofile(watch)
        yield seen
    finally:
        sys.setprofile(None)


def _under_attack(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    ids: Sequence[int],
    micro_batch: int,
    seed: int,
    logits: Tensor,
) -> Finding:
    if getattr(network, "stochastic", False):
        # Draws of an attack are others; the mode of its modules alone can be compared.
        seen = logits
        if any(module.training for module in network.modules()):
            seen = score(copy_of(network).eval(), images, ids, micro_batch, seed)
    else:
        seen = _victim(network, ids, micro_batch, seed).gradient(images, labels).logits
    differing = float((seen.argmax(1) != logits.argmax(1)).double().mean())
    outcome = (
        "the same classes as when it is evaluated."
        if differing == 0
        else f"other classes on {differing:.1%} of images than when it is evaluated."
    )
    said = f"Under attack the network predicts {outcome}"
    if getattr(network, "stochastic", False) and differing == 0:
        said = "Draws of an attack differ from those of the verdict, as declared."
    return _check("attack-mode", differing == 0, differing, said, "D9")


def _gradients(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    ids: Sequence[int],
    micro_batch: int,
    seed: int,
) -> list[Finding]:
    victim = _victim(network, ids, micro_batch, seed)
    victim.gradient(images, labels)
    zero = float(victim.zero_grad.double().mean())
    bad = float(victim.nonfinite_grad.double().mean())
    return [
        _check(
            "zero-gradient",
            zero <= MOST_ZERO_GRADIENTS,
            zero,
            f"The input gradient ({victim.estimator.name}) is all zero for {zero:.1%} of the clean "
            "images: an attack that follows it cannot move there.",
            "D1",
            otherwise=f"The input gradient ({victim.estimator.name}) is not zero on "
            f"{1 - zero:.1%} of the clean images.",
        ),
        _check(
            "nonfinite-gradient",
            bad == 0,
            bad,
            f"The input gradient has NaN or infinite entries for {bad:.1%} of the clean images.",
            "D1",
            otherwise="The input gradient is finite on every clean image.",
        ),
    ]


def _not_probabilities(logits: Tensor) -> Finding:
    inside = bool(((logits >= -1e-5) & (logits <= 1 + 1e-5)).all())
    sums = float((logits.double().sum(1) - 1).abs().max())
    looks = inside and sums < 1e-5
    outcome = (
        "looks like probabilities: a softmax at the end hides gradients; return what it takes in."
        if looks
        else "is logits, not probabilities."
    )
    return _check("logits", not looks, sums, f"What the network returns {outcome}", "D10")


def _ties(logits: Tensor) -> Finding:
    top = logits.topk(2, dim=1).values
    tied = float((top[:, 0] == top[:, 1]).double().mean())
    return _check(
        "ties",
        tied <= MOST_TIES,
        tied,
        f"Two classes share the highest logit on {tied:.1%} of the clean images; the worst case "
        "counts a tie as an error.",
        "D10",
        otherwise=f"One class alone has the highest logit on {1 - tied:.1%} of the clean images.",
    )


def _values(logits: Tensor, labels: Tensor) -> Finding:
    """How finely the logits are graded and how large they are; never flagged."""
    distinct = int(logits.unique().numel())
    lead = -margin(logits.double(), labels)
    return _check(
        "logit-values",
        True,
        float(distinct),
        f"The logits of the clean images take {distinct} values; the largest is "
        f"{float(logits.abs().max()):.3g}.",
        "D10",
        {
            "images": len(logits),
            "largest": float(logits.abs().max()),
            "median lead of the label": float(lead.median()),
            "cross-entropy exactly 0": float(
                (nn.functional.cross_entropy(logits, labels, reduction="none") == 0).double().mean()
            ),
        },
    )


def _victim(network: nn.Module, ids: Sequence[int], micro_batch: int, seed: int) -> Victim:
    return Victim(network, make_estimator("bptt", network), ids, micro_batch=micro_batch, seed=seed)
