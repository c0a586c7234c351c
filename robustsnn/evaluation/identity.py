"""The identity of a run: the sha256 of all that decides its records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robustsnn.data.images import Images
from robustsnn.evaluation.digests import run_identity
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.suites import Suite
from robustsnn.models.function import Function, function_of
from robustsnn.models.subject import Subject


@dataclass(frozen=True)
class Identity:
    """What makes a run this run and no other.

    Args:
        digest: The sha256 of model, data, suite, substitute and seed.
        function: What a network of the user's own computes, which is a part of it.
        basis: The digest without what the rounding of a machine decides of that; empty for a
            network of ours, which its weights and settings describe.
    """

    digest: str
    function: Function | None = None
    basis: str = ""


def identity_of(
    request: Request,
    suite: Suite,
    subject: Subject,
    images: Images,
    second: Subject | None,
    files: Sequence[tuple[str, str]],
) -> Identity:
    """The identity of the run that a request asks for.

    Args:
        request: The request.
        suite: Its suite.
        subject: The model.
        images: The images.
        second: The model that black-box attacks craft on, if there are any.
        files: The paths and digests of the user's own attacks and estimators.
    """
    function = function_in(subject, images)
    substitute = computed(second, images) if second else None

    def digest(of: str | None) -> str:
        return run_identity(
            model=[subject.identity, of] if of else subject.identity,
            data=[images.fingerprint, images.name, len(images)],
            suite=[suite.name, suite.version, suite.digest(), [sha256 for _, sha256 in files]],
            substitute=substitute,
            seed=request.seed,
            save_images=request.save_images,
        )

    if function is None:
        return Identity(digest(None))
    return Identity(digest(function.digest), function, digest(function.contents))


def function_in(subject: Subject, images: Images) -> Function | None:
    """What a model of the user's own computes; None for one that its weights describe.

    Args:
        subject: The model.
        images: The images, whose shape it takes.
    """
    return None if subject.described else function_of(subject.load, images.shape)


def computed(subject: Subject, images: Images) -> Any:
    """The identity of a model, with the digest of what it computes if it is the user's own.

    Args:
        subject: The model.
        images: The images, whose shape it takes.
    """
    function = function_in(subject, images)
    return [subject.identity, function.digest] if function else subject.identity
