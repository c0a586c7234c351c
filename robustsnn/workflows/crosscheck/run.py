"""Attacks of other libraries next to ours: on the same network, the same images, the same epsilon.

If a peer breaks an image that survives our suite, our number was too high, and the image shows
where to look.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustsnn.common.files import expanded, write_atomically
from robustsnn.common.printable import csv_text
from robustsnn.common.wording import slug
from robustsnn.errors import InputError
from robustsnn.evaluation.entry import Entry
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.suites import Suite, load_suite
from robustsnn.workflows.crosscheck.page import frame, markdown
from robustsnn.workflows.crosscheck.rows import OURS, PEERS, Crosscheck, join

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robustsnn.data.images import Images
    from robustsnn.evaluation.progress import Progress

#: The libraries whose versions are part of the result.
LIBRARIES = ("torchattacks", "foolbox", "adversarial-robustness-toolbox", "secml-torch")


def peers_suite(name: str | Path, ours: Suite, *, allow_code: bool = False) -> Suite:
    """The suite of peers at the norm and the sizes of our suite, judged on as many draws.

    Args:
        name: The name of a suite that ships, or a YAML file.
        ours: Our suite.
        allow_code: Whether Python files that the YAML file names may be run.

    Raises:
        InputError: If there is no suite of that name, or if it fixes another threat model.
    """
    suite = load_suite(name, allow_code=allow_code)
    if (suite.norm, suite.epsilon) != (ours.norm, ours.epsilon):
        suite = suite.at(ours.norm, ",".join(ours.epsilon))
    if suite.draws != ours.draws:
        suite = suite.model_copy(update={"draws": ours.draws})
    return suite


def runnable(suite: Suite, classes: int) -> tuple[Suite, tuple[str, ...]]:
    """The suite without the entries that cannot be run, and a sentence on each of those.

    Args:
        suite: A suite of peers.
        classes: The number of classes of the network.

    Raises:
        InputError: If no entry can be run, or if the name of an attack is misspelt.
    """
    from robustsnn.adversary.catalogue import load_attack
    from robustsnn.adversary.peers import MissingLibrary

    kept: list[Entry] = []
    left_out: list[str] = []
    for entry in suite.entries:
        norm = entry.norm or suite.norm
        try:
            attack = load_attack(entry.attack)
        except MissingLibrary as error:
            left_out.append(f"{entry.label}: {error}")
            continue
        norms = getattr(attack, "norms", None)
        fewest = getattr(attack, "fewest_classes", 0)
        if norms is not None and norm not in norms:
            left_out.append(f"{entry.label}: it works only in {' and '.join(norms)}.")
        elif classes < fewest:
            left_out.append(f"{entry.label}: it needs {fewest} classes, and there are {classes}.")
        else:
            kept.append(entry)
    if not kept:
        raise InputError(f"no attack of the suite {suite.name} can be run: {' '.join(left_out)}")
    return suite.model_copy(update={"entries": tuple(kept)}), tuple(left_out)


def crosscheck(
    model: nn.Module | str | Path,
    data: Images | tuple[Tensor, Tensor] | str | None = None,
    suite: Suite | str | Path = "standard",
    peers: Suite | str | Path = "peers",
    *,
    output: Path | str | None = None,
    progress: Progress | None = None,
    command: Sequence[str] = (),
    **settings: Any,
) -> Crosscheck:
    """Evaluate a model under our suite and under the peers, and join the two runs by image.

    Args:
        model: The model, as for `evaluate`.
        data: The images, as for `evaluate`.
        suite: Our suite.
        peers: The suite of peers; it is run at the norm and sizes of ours.
        output: The folder of both runs, `crosscheck.csv` and `crosscheck.md`; by default
            `runs/crosscheck-<hash>`. The same call resumes there.
        progress: What is told of every finished batch.
        command: How the crosscheck was asked for.
        **settings: The other fields of `robustsnn.Request`.

    Raises:
        InputError: If an argument cannot be used, or if a peer fails on the network.

    Examples:
        >>> import tempfile
        >>> from robustsnn.evaluation.suites import suite_of
        >>> ours, theirs = suite_of(["pgd:steps=5"]), suite_of(["torchattacks:FGSM"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = crosscheck(
        ...         "fashion-mnist/vgg5-ann", None, ours, theirs, samples=4, output=folder
        ...     )
        >>> [row.suite for row in found.rows]
        ['custom', 'custom']
    """
    request = Request.of(model, data, suite, **settings)
    theirs = (
        peers
        if isinstance(peers, Suite)
        else peers_suite(peers, request.chosen, allow_code=request.allow_code)
    )
    return crosschecked(request, theirs, output=output, progress=progress, command=command)


def crosschecked(
    request: Request,
    peers: Suite,
    *,
    output: Path | str | None = None,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> Crosscheck:
    """The crosscheck of a request, whose suite is ours; see `crosscheck`.

    Args:
        request: What is asked for, about one model.
        peers: The suite of peers at the same norm and sizes, as `peers_suite` returns it.
        output: As for `crosscheck`, like the other arguments.
        progress: What is told of every finished batch.
        command: How the crosscheck was asked for.

    Raises:
        InputError: If something asked for cannot be done, or if a peer fails on the network.
    """
    from robustsnn.evaluation.plan import prepare
    from robustsnn.workflows.compare import run_all

    ours = prepare(request)
    subject, images = ours.subject, ours.images
    classes = getattr(subject.load(), "classes", None) or len(images.class_names)
    second, left_out = runnable(peers, int(classes or images.labels.max() + 1))
    plain = {"suite": second, "attack": (), "norm": None, "epsilon": None, "estimator": None}
    plans = [ours, prepare(request.but(**plain), subject, images)]
    if output is None:
        digest = hashlib.sha256(" ".join(plan.identity for plan in plans).encode())
        output = Path("runs") / f"crosscheck-{digest.hexdigest()[:12]}"
    output = expanded(output)
    runs = list(zip((OURS, PEERS), plans, strict=True))
    done = run_all(runs, output, progress=progress, command=command)
    labels = {slug(label): label for entry in second.entries for label, _ in entry.runs}
    rows = join(done[0].records, done[1].records, labels)
    earlier = tuple(one.manifest for one in done if one.reprinted)
    found = Crosscheck(output, subject.name, rows, left_out, earlier)
    write_atomically(output / "crosscheck.csv", csv_text(frame(rows)).encode())
    write_atomically(output / "crosscheck.md", markdown(found, library_versions()).encode())
    return found


def library_versions() -> dict[str, str]:
    """The versions of the peer libraries that are installed, by their names."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
