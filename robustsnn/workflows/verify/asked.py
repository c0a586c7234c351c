"""What a manifest says was asked for: its suite, and the attacks that have to be in its records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from torch import nn

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.peers import MissingLibrary
from robustsnn.adversary.threat import ThreatModel
from robustsnn.common.content import files_in
from robustsnn.common.epsilon import resolve_epsilon
from robustsnn.common.kinds import BEST
from robustsnn.common.wording import slug
from robustsnn.data.images import Images
from robustsnn.errors import InputError
from robustsnn.evaluation.diagnose import stage_of
from robustsnn.evaluation.digests import suite_digest
from robustsnn.evaluation.entry import Entry
from robustsnn.evaluation.meant import entries_for
from robustsnn.evaluation.plan import Task, estimator_name
from robustsnn.evaluation.suites import Suite, load_suite, suite_names
from robustsnn.records.manifest import Manifest
from robustsnn.records.schema import Condition

#: How the name of a suite goes on whose estimators were all replaced.
UNDER = "-under-"
#: The attacks that are those of other libraries.
LIBRARIES = ("torchattacks", "foolbox", "art", "secml")


@dataclass(frozen=True)
class Expected:
    """One attack at one size that has to be in the records.

    Args:
        condition: The attack, the norm and the size.
        stage: The row of the manifest's `stages`; None for an attack that cannot be made here.
        black_box: Whether the attack crafts on a substitute.
        spec: The specification of the attack.
    """

    condition: Condition
    stage: Mapping[str, Any] | None
    black_box: bool
    spec: str


@dataclass(frozen=True)
class Asked:
    """The suite that a manifest describes.

    Args:
        suite: The suite. An attack that is a file of the user's own is named `none` in it, since
            no file that a manifest names is looked for.
        specs: The attack of each entry as the manifest has it.
        digests: The digests that the suite may have: a manifest does not say whether its suite
            fixes its sizes.
    """

    suite: Suite
    specs: tuple[str, ...]
    digests: tuple[str, ...]


def asked_by(manifest: Manifest, counted: bool) -> Asked:
    """The suite of a manifest.

    Args:
        manifest: The manifest of a finished run.
        counted: Whether the records count synaptic operations.

    Raises:
        InputError: The manifest does not describe a suite.
    """
    specs = tuple(str(entry.get("attack", "")) for entry in manifest.entries)
    fields: dict[str, Any] = {
        "name": manifest.suite,
        "version": manifest.suite_version,
        "norm": manifest.norm,
        "epsilon": manifest.epsilon.split(", "),
        "attack_misclassified": manifest.attack_misclassified,
        "cascade": manifest.cascade,
        "curve": manifest.curve,
        "draws": manifest.draws,
        "energy": counted,
        "entries": [dict(entry) for entry in manifest.entries],
    }
    # Files are neither looked for nor loaded, and what is not a name that ships is told later.
    named = [
        {**dict(entry), "attack": "none" if files_in(spec) else spec}
        for entry, spec in zip(manifest.entries, specs, strict=True)
    ]
    try:
        suite = Suite.model_validate({**fields, "entries": named})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "entries"
        raise InputError(
            f"the manifest of {manifest.model} under {manifest.suite} describes no suite ({where}: "
            f"{first['msg']}): run the evaluation again."
        ) from None
    digests = tuple(suite_digest({**fields, "fixed": fixed}) for fixed in (False, True))
    return Asked(suite, specs, digests)


def mislabelled(manifest: Manifest, asked: Asked) -> tuple[str, ...]:
    """What the digest and the name of a suite say and is not so, one sentence each."""
    said = []
    if manifest.suite_sha256 not in asked.digests:
        said.append("the digest of the suite is not that of the entries")
    base, under, _ = manifest.suite.partition(UNDER)
    ours = base in suite_names()
    if (ours or base == "custom") and bool(under) != (manifest.estimator is not None):
        said.append(
            f"the suite is called {manifest.suite} and the manifest names "
            f"{manifest.estimator or 'no estimator'} in place of the entries' own"
        )
    elif ours and (suite := load_suite(base)).version == manifest.suite_version:
        try:
            if suite.norm != manifest.norm or ", ".join(suite.epsilon) != manifest.epsilon:
                suite = suite.at(manifest.norm, manifest.epsilon)
            if manifest.estimator is not None:
                suite = suite.under(manifest.estimator)
        except InputError:
            return (*said, f"{base} cannot be run at {manifest.norm} {manifest.epsilon}")
        suite = _as_crosschecked(suite, asked.suite)
        suite = suite.model_copy(update={"energy": asked.suite.energy})
        if suite.digest() != manifest.suite_sha256:
            said.append(
                f"the suite is called {manifest.suite}, version {manifest.suite_version}, and is "
                "not the one of that name"
            )
    return tuple(said)


def other_version(manifest: Manifest) -> tuple[str, ...]:
    """Whether a suite has the name of one that ships and a version that does not; one sentence."""
    base = manifest.suite.partition(UNDER)[0]
    if base not in suite_names() or load_suite(base).version == manifest.suite_version:
        return ()
    return (f"version {manifest.suite_version} of the suite {base} does not ship any more",)


def _as_crosschecked(shipped: Suite, asked: Suite) -> Suite:
    """A suite of peers without the attacks that a crosscheck left out, judged on as many draws.

    A crosscheck leaves out attacks of libraries that are not installed or that do not fit.
    """
    libraries = [entry for entry in shipped.entries if entry.attack.partition(":")[0] in LIBRARIES]
    if len(libraries) < len(shipped.entries):
        return shipped
    held = {entry.slug for entry in asked.entries}
    kept = tuple(entry for entry in shipped.entries if entry.slug in held)
    return shipped.model_copy(update={"entries": kept, "draws": asked.draws})


def expected_of(
    asked: Asked,
    network: nn.Module,
    second: nn.Module | None,
    images: Images,
    device: str,
) -> tuple[list[Expected], list[str], list[str]]:
    """The attacks that a suite runs on a network, the entries left out, and what cannot be made.

    Args:
        asked: The suite.
        network: The network.
        second: The network that black-box attacks craft on, if it is at hand.
        images: The images, or some of them.
        device: The device that computes.

    Raises:
        InputError: The network does not take the images.
    """
    # Entries for other networks may have the same label, so a label does not tell who runs.
    meant = {id(entry) for entry in entries_for(asked.suite, network, images, device)}
    run_here = {entry.slug for entry in asked.suite.entries if id(entry) in meant}
    left_out = [entry.label for entry in asked.suite.entries if entry.slug not in run_here]
    values = 1
    for length in images.shape:
        values *= length
    found: list[Expected] = []
    unseen: list[str] = []
    for entry, spec in zip(asked.suite.entries, asked.specs, strict=True):
        if id(entry) not in meant:
            continue
        attack, why = _attack(spec)
        if why:
            unseen.append(f"{entry.label} was not looked up ({why})")
        if attack is not None and attack.kind == "none":
            continue
        black = entry.substitute or spec.partition(":")[0].strip() == "transfer"
        sizes = asked.suite.epsilon if entry.epsilon is None else (entry.epsilon,)
        runs = entry.model_copy(update={"attack": spec}).runs
        for size in sizes:
            norm, epsilon = entry.norm or asked.suite.norm, resolve_epsilon(size, values)
            for place, (label, one) in enumerate(runs):
                about = Condition(slug(label), norm, epsilon)
                stage = None
                if attack is not None and not files_in(entry.estimator):
                    stage = _stage(entry, place, _attack(one)[0], about, network, second, black)
                found.append(Expected(about, stage, black, one))
    return found, left_out, unseen


def _attack(spec: str) -> tuple[Any, str]:
    """An attack that ships, or None and the reason why it cannot be made."""
    if files_in(spec):
        return None, "it is a file of the user's own"
    try:
        return load_attack(spec), ""
    except MissingLibrary as error:
        return None, str(error).rstrip(".")


def _stage(
    entry: Entry,
    place: int,
    attack: Any,
    about: Condition,
    network: nn.Module,
    second: nn.Module | None,
    black: bool,
) -> Mapping[str, Any] | None:
    """The row of an attack in `stages`; None if its substitute is not at hand."""
    if black and second is None:
        return None
    task = Task(
        label=entry.label,
        slug=about.attack,
        attack=attack,
        threat=ThreatModel(about.norm, about.epsilon),
        estimator=entry.estimator.strip(),
        substitute=black,
        probe=entry.probe,
        until=entry.until,
        family=entry.slug,
        round=place,
        sample=entry.sample,
    )
    best = task.estimator == BEST
    stage = stage_of(
        attack,
        *about,
        estimator=BEST if best else estimator_name(task, network, second if black else None),
        probe=entry.probe,
        substitute=black,
        rounds=task,
    )
    row: dict[str, Any] = json.loads(json.dumps(stage.row()))
    return row
