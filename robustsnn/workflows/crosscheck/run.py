"""Attacks of other libraries next to ours: on the same network, the same images, the same epsilon.

If a peer breaks an image that survives our suite, our number was too high, and the image shows
where to look.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustsnn.common.files import write_atomically
from robustsnn.errors import InputError
from robustsnn.evaluation.suites import Entry, Suite, load_suite
from robustsnn.workflows.crosscheck.page import frame, markdown
from robustsnn.workflows.crosscheck.rows import OURS, PEERS, Crosscheck, join

if TYPE_CHECKING:
    from robustsnn.data.images import Images
    from robustsnn.evaluation.run import Progress

#: The libraries whose versions are part of the result.
LIBRARIES = ("torchattacks", "foolbox", "adversarial-robustness-toolbox", "secml-torch")


def peers_suite(name: str | Path, ours: Suite) -> Suite:
    """The suite of peers at the norm and the sizes of our suite, judged on as many draws.

    Raises:
        InputError: If there is no suite of that name, or if it fixes another threat model.
    """
    suite = load_suite(name)
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
    model: str | Path,
    data: Images | str | None,
    suite: Suite,
    peers: Suite,
    *,
    data_root: Path | None = None,
    samples: int | None = None,
    weights: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int | None = None,
    output: Path | None = None,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> Crosscheck:
    """Evaluate a model under our suite and under the peers, and join the two runs by image.

    Args:
        model: A name in the zoo, a checkpoint folder or `python.module:factory`.
        data: The images, or the name of a data set; None stands for what the model was trained on.
        suite: Our suite.
        peers: The suite of peers at the same norm and sizes, as `peers_suite` returns it.
        data_root: The folder of the data set; None stands for the sample that ships.
        samples: The number of images, taken from the start of the data; None stands for all.
        weights: The file with the state dict of a factory's module.
        seed: The seed of every random draw.
        device: The device to compute on.
        batch_size: The number of images per forward pass.
        output: The folder of both runs, `crosscheck.csv` and `crosscheck.md`; by default
            `runs/crosscheck-<hash>`. The same call resumes there.
        progress: A function that is called after every finished batch.
        command: The command line, to be written into the header of both runs.

    Raises:
        InputError: If an argument cannot be used, or if a peer fails on the network.
    """
    from robustsnn.evaluation.inputs import images_of
    from robustsnn.evaluation.run import prepare
    from robustsnn.models.subject import subject_of
    from robustsnn.workflows.compare import run_all

    subject = subject_of(model, weights=weights, device=device)
    images = images_of(data, subject, root=data_root, samples=samples)
    classes = getattr(subject.load(), "classes", None) or len(images.class_names)
    second, left_out = runnable(peers, int(classes or images.labels.max() + 1))
    plans = [
        prepare(subject, images, one, seed=seed, device=device, batch_size=batch_size)
        for one in (suite, second)
    ]
    if output is None:
        digest = hashlib.sha256(" ".join(plan.identity for plan in plans).encode())
        output = Path("runs") / f"crosscheck-{digest.hexdigest()[:12]}"
    runs = list(zip((OURS, PEERS), plans, strict=True))
    done = run_all(runs, output, progress=progress, command=command)
    labels = {entry.slug: entry.label for entry in second.entries}
    rows = join(done[0].records, done[1].records, labels)
    found = Crosscheck(output, subject.name, rows, left_out)
    write_atomically(output / "crosscheck.csv", frame(rows).to_csv(index=False).encode())
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
