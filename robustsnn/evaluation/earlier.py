"""An earlier start of a run: whether a folder holds it, and whether this machine may go on."""

from __future__ import annotations

from pathlib import Path

from robustsnn.errors import InputError
from robustsnn.evaluation.header import versions
from robustsnn.evaluation.plan import Plan
from robustsnn.records.manifest import Manifest, read_manifest
from robustsnn.records.schema import MANIFEST

#: The packages that round: with another version of one, a run is not gone on with.
ROUNDING = ("robustsnn", "torch")
#: Those whose neurons a network may be made of.
NEURONS = ("spikingjelly", "snntorch", "norse", "sinabs")


def identity_in(folder: Path, plan: Plan) -> str:
    """The identity under which a folder holds the run of a plan; the plan's own if it does not.

    Another machine or version of torch rounds otherwise, so what a network of the user's own says
    of a few images may have another digest there. It is the same run if the code and the weights
    are the same and the numbers differ by no more than rounding.

    Args:
        folder: The run folder, which need not exist.
        plan: The plan.

    Raises:
        InputError: The folder holds a run of the same request about a network that was another.
    """
    if not (folder / MANIFEST).is_file():
        return plan.identity
    held = read_manifest(folder)
    if held.identity == plan.identity:
        return plan.identity
    numbers = (held.function or {}).get("numbers") or ()
    if plan.function is not None and held.basis == plan.basis != "":
        if plan.function.rounded_alike(numbers):
            return held.identity
    asked = (plan.subject.name, plan.images.fingerprint, len(plan.images), plan.suite.digest())
    if (held.model, held.data_fingerprint, held.samples, held.suite_sha256) == asked:
        if held.seed == plan.seed:
            raise InputError(
                f"{folder} holds another run: it was {held.made}, when {held.model} had other "
                "weights or other code: name another --output."
            )
    return plan.identity


def refuse_other_versions(folder: Path, held: Manifest) -> None:
    """Refuse to go on with a run that other versions began, since half of it would be rounded so.

    Args:
        folder: The run folder, for the message.
        held: The manifest of the run, which is not finished.

    Raises:
        InputError: Another version of RobustSNN, of torch or of the network's library began it.
    """
    here = versions()
    named = ROUNDING + (NEURONS if held.foreign else ())
    other = [
        f"{package} {held.versions[package]}, here {here.get(package, 'not installed')}"
        for package in named
        if package in held.versions and held.versions[package] != here.get(package)
    ]
    if other:
        raise InputError(
            f"{folder} is a run that other versions began ({'; '.join(other)}) and that is not "
            "finished: finish it with those, or begin anew in another --output."
        )
