"""The plan of an evaluation: everything that can be wrong is reported before anything is run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.contract import Attack
from robustsnn.adversary.threat import ThreatModel
from robustsnn.common.content import digest, files_in
from robustsnn.common.kinds import BEST, ENERGY, GRADIENT_FREE
from robustsnn.common.users_code import UsersCodeError
from robustsnn.common.wording import slug
from robustsnn.data.images import Images
from robustsnn.errors import InputError
from robustsnn.estimators.make import make_estimator
from robustsnn.evaluation.entry import Entry
from robustsnn.evaluation.identity import identity_of
from robustsnn.evaluation.inputs import check_fit, check_order, images_of
from robustsnn.evaluation.meant import entries_for, kind_of
from robustsnn.evaluation.options import Named
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.suites import Suite
from robustsnn.evaluation.until import Until
from robustsnn.foreign.check import IMAGES as CHECKED
from robustsnn.foreign.check import check
from robustsnn.foreign.original import compare_with_original
from robustsnn.foreign.wrap import adapted
from robustsnn.foreign.wrapped import Wrapped
from robustsnn.models.batching import bounded, micro_batch_for
from robustsnn.models.calling import calling
from robustsnn.models.function import Function
from robustsnn.models.growth import IMAGES as GROWING
from robustsnn.models.growth import refuse_growth
from robustsnn.models.scoring import does_not_take
from robustsnn.models.subject import (
    Subject,
    at_its_size,
    checkpoint_subject,
    recomputing,
    subject_of,
)
from robustsnn.records.schema import Size


@dataclass(frozen=True)
class Task:
    """One attack at one norm and size.

    Args:
        label: The label of the entry.
        slug: The label in the form that records have.
        attack: The attack.
        threat: The threat model.
        estimator: The estimator as the suite has it, or `best`.
        substitute: Whether the attack crafts on a second network.
        probe: Whether the attack also ranks its estimator.
        until: When the attack has converged, if it is a round of several; None for one that is not.
        family: The slug of its entry, which all rounds share.
        round: The number of the round, from 0.
        sample: The number of survivors that round 0 attacks, if round 1 attacks the others only
            where one of them broke; None for an attack on all survivors.
        when: `blind` for an attack that runs only where the score of the network is blind.
        reads: `inner` for an attack on a layer inside; None for one on the logits.
    """

    label: str
    slug: str
    attack: Attack = field(repr=False)
    threat: ThreatModel
    estimator: str
    substitute: bool
    probe: bool = False
    until: Until | None = None
    family: str = ""
    round: int = 0
    sample: int | None = None
    when: str | None = None
    reads: str | None = None

    @property
    def stream(self) -> str:
        """The name of the stream of its draws; probes share one, to be ranked from one start."""
        if self.sample is not None:
            # An image has the same draws whether or not it is one of the sample.
            return self.family
        return "probe" if self.probe else self.slug

    @property
    def size(self) -> Size:
        """The norm and epsilon, for each of which a cascade is run separately."""
        return Size(self.threat.norm, self.threat.epsilon)

    @property
    def key(self) -> str:
        """The name of its images in `examples.safetensors`."""
        return f"{self.slug}@{self.threat.epsilon}"


@dataclass(frozen=True)
class Plan:
    """One evaluation, checked and ready to run.

    Args:
        subject: The model.
        images: The images.
        suite: The suite.
        estimator: The estimator that takes the place of every entry's own, if one was asked for.
        files: The paths and digests of the user's own files.
        tasks: The attacks in the order in which they run.
        left_out: The labels of the entries that do not fit this network.
        substitute: The model that black-box attacks craft on, if there are any.
        seed: The seed of every draw.
        device: The device that computes.
        batch_size: The number of images in a forward pass.
        recompute: The number of time steps between two membranes that are kept for a gradient.
        save_images: Whether every adversarial image is kept.
        identity: The sha256 of all that decides the records.
        function: What a network of the user's own computes, which is part of the identity.
        basis: The identity without what rounding may change in it; empty for our networks.
    """

    subject: Subject
    images: Images = field(repr=False)
    suite: Suite
    estimator: str | None
    files: tuple[tuple[str, str], ...]
    tasks: tuple[Task, ...]
    left_out: tuple[str, ...]
    substitute: Subject | None
    seed: int
    device: str
    batch_size: int
    recompute: int | None
    save_images: bool
    identity: str
    function: Function | None = None
    basis: str = ""

    @property
    def default_folder(self) -> Path:
        """The run folder if no other is asked for."""
        return Path("runs") / self.identity[:12]


def prepare(request: Request, subject: Subject | None = None, images: Images | None = None) -> Plan:
    """The checked plan of a request about one model.

    Args:
        request: The request; if it names several models, the plan is about the first one.
        subject: The model, if it is loaded already.
        images: The images, if they are loaded already.

    Raises:
        InputError: The request cannot be carried out.
    """
    check_device(request.device)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    suite = request.chosen
    subject = subject or subject_for(request, request.models[0])
    if request.recompute is not None:
        subject = recomputing(subject, request.recompute)
    if images is None:
        images = images_of(request.images, subject, root=request.data_root, samples=request.samples)
    one = images.tensor(slice(0, 1)).to(request.device)
    subject = at_its_size(subject, one, [request.batch_size])
    network = checked(subject, images, request.device)
    check_fit(network, subject.name, images)
    check_order(subject, images)
    refuse_growth(network, images.tensor(slice(0, GROWING)).to(request.device))
    meant = entries_for(suite, network, images, request.device)
    run_here = {entry.slug for entry in meant}
    if not meant:
        raise InputError(
            f"the suite {suite.name} has no entry for a network such as {subject.name} "
            f"({kind_of(network).upper()}): choose another suite."
        )
    tasks = tasks_of(suite, images, meant)
    _check_spikes(tasks, network, subject.name)
    second = None
    if any(task.substitute for task in tasks):
        second = _substitute(request, subject, images)
    crafting = checked(second, images, request.device) if second else None
    if crafting is not None:
        refuse_growth(crafting, images.tensor(slice(0, GROWING)).to(request.device))
    for task in tasks:
        if task.estimator != BEST:  # `best` is the estimator of a probe, which is a task too
            estimator_name(task, network, crafting if task.substitute else None)
    named = files_of([(entry.attack, entry.estimator) for entry in suite.entries])
    files = tuple((str(path), digest(path)) for path in named)
    identity = identity_of(request, suite, subject, images, second, files)
    return Plan(
        subject=subject,
        images=images,
        suite=suite,
        estimator=request.estimator,
        files=files,
        tasks=tasks,
        left_out=tuple(e.label for e in suite.entries if e.slug not in run_here),
        substitute=second,
        seed=request.seed,
        device=request.device,
        batch_size=bounded(
            request.batch_size or subject.at_once or micro_batch_for(network), len(images)
        ),
        recompute=request.recompute,
        save_images=request.save_images,
        identity=identity.digest,
        function=identity.function,
        basis=identity.basis,
    )


def _check_spikes(tasks: Sequence[Task], network: nn.Module, name: str) -> None:
    """Refuse an attack on the energy of a network without spikes before anything is run."""
    wanting = [task.label for task in tasks if task.attack.kind == ENERGY]
    if wanting and kind_of(network) == "ann":
        raise InputError(
            f"{wanting[0]}: {name} has no spikes, so there are none to raise: write kinds: [snn] "
            "for the entry, or attack the energy of a spiking network."
        )


def plans_of(request: Request) -> list[Plan]:
    """A checked plan for each model of a request, all on the images of the first.

    Raises:
        InputError: The request cannot be carried out, or a model is named twice.
    """
    check_device(request.device)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    subjects = [subject_for(request, model) for model in request.models]
    images = images_of(request.images, subjects[0], root=request.data_root, samples=request.samples)
    plans = [prepare(request, subject, images) for subject in subjects]
    seen: dict[str, str] = {}
    for plan in plans:
        if plan.identity in seen:
            raise InputError(
                f"{plan.subject.name} and {seen[plan.identity]} are the same model: name each once."
            )
        seen[plan.identity] = plan.subject.name
    return plans


def subject_for(request: Request, model: Any) -> Subject:
    """A model of a request.

    Raises:
        InputError: The model cannot be found or read.
    """
    if isinstance(model, Subject):
        return model
    name = request.name
    if isinstance(model, Named):
        name = model.name
        model = model.model
        if isinstance(model, Subject):
            return dataclasses.replace(model, name=name)
    weights = None if request.weights is None else Path(request.weights)
    adapt = adapting(request.source)
    return subject_of(model, weights=weights, device=request.device, name=name, adapt=adapt)


def adapting(source: str) -> Callable[[nn.Module], nn.Module]:
    """What a network from elsewhere goes through, given where its neurons come from."""
    return partial(adapted, source=source)


def checked(subject: Subject, images: Images, device: str) -> nn.Module:
    """A copy of a model whose neurons are checked, if they are those of another library.

    What the check finds holds for every copy.

    Raises:
        InputError: It does not take the images, or the copy does not say what the model itself
            says.
    """
    network = subject.load()
    if isinstance(network, Wrapped):
        some = images.tensor(slice(0, CHECKED)).to(device)
        try:
            with calling(network):
                compare_with_original(network, some)
                check(network, some)
        except UsersCodeError as error:
            raise does_not_take(some, error) from error
    return network


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        InputError: There is no such device.
    """
    known = ["cpu"]
    if torch.cuda.is_available():
        known += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        known.append("mps")
    asked = "cuda:0" if device == "cuda" else device
    if asked not in known:
        raise InputError(f"no device {device!r} here: choose {' or '.join(known)}.")


def tasks_of(suite: Suite, images: Images, meant: Sequence[Entry]) -> tuple[Task, ...]:
    """The entries that are meant for a network, each at each of its sizes.

    Args:
        suite: The suite; all its attacks are checked.
        images: The images, whose shape decides sizes such as `0.031*sqrt(d)`.
        meant: The entries that are meant for the network.

    Raises:
        InputError: An attack cannot be made, or does not fit its norm, its estimator, its
            substitute or the suite.
    """
    tasks = []
    values = int(np.prod(images.shape))
    for entry in suite.entries:
        attack = load_attack(entry.attack)
        if entry not in meant:
            continue
        if entry.probe and not follows_gradient(attack):
            raise InputError(
                f"{entry.label}: {entry.attack} follows no gradient and ranks no estimator: drop "
                "probe, or choose an attack such as apgd."
            )
        if attack.kind == "none":
            continue
        if entry.substitute and attack.kind != "transfer":
            # It would be run on the network itself and yet be recorded as a black box.
            raise InputError(
                f"{entry.label}: {entry.attack} does not craft on a substitute: write "
                f"transfer:{entry.attack}, or drop substitute."
            )
        if getattr(attack, "warm", False) and not suite.cascade:
            raise InputError(
                f"{entry.label}: {entry.attack} starts where earlier attacks of a cascade stopped: "
                "add cascade: true to the suite, or drop warm."
            )
        if entry.estimator.strip() == BEST and attack.kind == "transfer":
            raise InputError(
                f"{entry.label}: {BEST} is an estimator for the network itself: name one for the "
                "substitute."
            )
        norms = getattr(attack, "norms", None)
        sizes = suite.budgets(entry, values)
        if suite.curve:
            sizes = sorted(sizes, key=lambda size: ThreatModel(*size).radius)
        for norm, epsilon in sizes:
            if norms is not None and norm not in norms:
                raise InputError(
                    f"{entry.attack} works in {' and '.join(norms)} only, not in {norm}: choose "
                    "another attack or norm."
                )
            tasks += [
                Task(
                    label=label,
                    slug=slug(label),
                    attack=load_attack(spec),
                    threat=ThreatModel(norm, epsilon),
                    estimator=entry.estimator.strip(),
                    substitute=entry.substitute or attack.kind == "transfer",
                    probe=entry.probe,
                    until=entry.until,
                    family=entry.slug,
                    round=place,
                    sample=entry.sample,
                    when=entry.when,
                    reads=entry.reads,
                )
                for place, (label, spec) in enumerate(entry.runs)
            ]
    return tuple(tasks)


def _substitute(request: Request, subject: Subject, images: Images) -> Subject:
    named = subject.meta.get("substitute")
    if request.substitute is not None:
        second = subject_for(request.but(weights=None, name=None), request.substitute)
    elif named is None:
        raise InputError(
            f"the suite attacks through a substitute network and {subject.name} names none: add "
            "--substitute MODEL, such as the same recipe trained with another seed."
        )
    else:
        # The name comes from the file of a checkpoint, so its errors name that checkpoint.
        second = _named_substitute(named, subject, request.device)
    check_fit(second.load(), f"the substitute {second.name}", images)
    one = images.tensor(slice(0, 1)).to(request.device)
    return at_its_size(second, one, [request.batch_size])


def _named_substitute(named: object, subject: Subject, device: str) -> Subject:
    try:
        return checkpoint_subject(str(named), device=device)
    except InputError as error:
        raise InputError(
            f"{subject.name} names the substitute {named!r}, which cannot be used ({error}) Give "
            "another with --substitute."
        ) from None


def estimator_name(task: Task, network: nn.Module, second: nn.Module | None) -> str:
    """The estimator of a task as records name it; `none` for an attack that follows no gradient.

    Args:
        task: The task.
        network: The network under attack.
        second: The network that the attack crafts on instead, if there is one.

    Raises:
        InputError: The estimator does not fit the network that the attack crafts on.
    """
    if not follows_gradient(task.attack):
        return "none"
    crafted_on = network if second is None else second
    return make_estimator(task.estimator, crafted_on).name


def follows_gradient(attack: Attack) -> bool:
    """Whether an attack asks for gradients, so that its estimator matters."""
    return attack.kind not in GRADIENT_FREE and not getattr(attack, "gradient_free", False)


def files_of(specs: Sequence[tuple[str, str]]) -> list[Path]:
    """The user's own files that a suite runs, in the order of its entries.

    Args:
        specs: The attack and the estimator of each entry.
    """
    attacks = [path for attack, _ in specs for path in files_in(attack)]
    return [*attacks, *dict.fromkeys(path for _, one in specs for path in files_in(one))]
