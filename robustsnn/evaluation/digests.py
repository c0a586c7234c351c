"""The digests by which a suite and a run are told apart; nothing here imports torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

#: The fields that older suites do not have, and the values with which they change nothing.
_LATER = {
    "draws": 1,
    "cascade": False,
    "probe": False,
    "kinds": None,
    "least_classes": 2,
    "deterministic": False,
    "energy": False,
    "until": None,
    "sample": None,
    "curve": False,
    "when": None,
    "reads": None,
}


def suite_digest(fields: Mapping[str, Any]) -> str:
    """The sha256 of the canonical JSON of a suite.

    Args:
        fields: The fields of the suite as JSON has them, without its description.

    Examples:
        >>> one = suite_digest({"name": "mine", "entries": [{"attack": "fgsm"}]})
        >>> one == suite_digest({"name": "mine", "draws": 1, "entries": [{"attack": "fgsm"}]})
        True
    """
    whole = {**fields, "entries": [dict(entry) for entry in fields["entries"]]}
    # Fields that a suite does not use are left out, so that runs made before these fields existed
    # keep their identity.
    for owner in (whole, *whole["entries"]):
        for name, unused in _LATER.items():
            if owner.get(name, unused) == unused:
                owner.pop(name, None)
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def run_identity(
    *,
    model: Any,
    data: Sequence[Any],
    suite: Sequence[Any],
    substitute: Any,
    seed: int,
    save_images: bool,
) -> str:
    """The sha256 of all that decides the records of a run.

    Args:
        model: The identity of the model; for a network of the user's own, with the digest of what
            it computes.
        data: The fingerprint, the name and the number of the images.
        suite: The name, the version and the digest of the suite, and the digests of the user's own
            files that it runs: if the content of one changes, it is another suite.
        substitute: The identity of the model that a black-box attacker crafts on, if there is one.
        seed: The seed of every draw.
        save_images: Whether every adversarial image is kept.
    """
    whole = {
        "model": model,
        "data": list(data),
        "suite": list(suite),
        "substitute": substitute,
        "seed": seed,
        "save_images": save_images,
    }
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()
