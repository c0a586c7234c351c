"""Attacks of other libraries beside ours: same network, same images, same epsilon.

If a peer breaks an image that our suite leaves standing, our number was too high, and the image
says where to look.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustsnn.common import wording as formats
from robustsnn.common.files import write_atomically
from robustsnn.common.statistics import wilson, worst_case
from robustsnn.common.wording import CLEAN
from robustsnn.errors import InputError
from robustsnn.evaluation.suites import Entry, Suite, load_suite

if TYPE_CHECKING:
    from rich.table import Table

    from robustsnn.evaluation.run import Progress
    from robustsnn.models.subject import Images

#: The run folders below the output.
OURS, PEERS = "ours", "peers"
#: The row of all peers together, each image under the one that breaks it.
TOGETHER = "all peers"
#: Libraries whose versions are part of the result.
LIBRARIES = ("torchattacks", "foolbox", "adversarial-robustness-toolbox", "secml-torch")
COLUMNS = (
    "attack suite norm epsilon samples accuracy ci_low ci_high broken_beyond_ours "
    "broken_only_by_ours passes seconds images"
).split()
#: So many images are named in a terminal; the files name all.
SHOWN = 8

Threat = tuple[str, str]


@dataclass(frozen=True)
class Row:
    """One attack, or our whole suite, at one norm and epsilon.

    Args:
        attack: As it is shown; `suite` is where it comes from.
        accuracy: Fraction of all images that are right when clean and under it, with its 95 %
            Wilson interval `low`, `high`. A tie at the top is an error.
        beyond: Ids of the images that it breaks and our suite does not.
        missed: How many images our suite breaks and it does not.
        passes: Forward and backward passes, mean per image.
        seconds: For all images.
    """

    attack: str
    suite: str
    norm: str
    epsilon: str
    samples: int
    accuracy: float
    low: float
    high: float
    beyond: tuple[int, ...]
    missed: int
    passes: float
    seconds: float
    ours: bool = False


@dataclass(frozen=True)
class Crosscheck:
    """What came out: `rows` with ours first at each size, and what was left out and why."""

    folder: Path
    model: str
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]

    @property
    def lowest(self) -> bool:
        """Whether no peer leaves a lower accuracy than our suite does, at any size."""
        return all(
            row.accuracy >= ours.accuracy for ours, peers in _sizes(self.rows) for row in peers
        )

    @property
    def against(self) -> tuple[int, ...]:
        """Ids of the images that a peer breaks and our suite does not."""
        return tuple(sorted({image for row in self.rows for image in row.beyond}))


# --- records to rows ------------------------------------------------------------------------------


def join(
    ours: pd.DataFrame, peers: pd.DataFrame, labels: Mapping[str, str] | None = None
) -> tuple[Row, ...]:
    """Rows of our suite, each peer and all peers together, from the records of two runs.

    Args:
        ours: Records of our suite, clean rows included; an image without a row under an attack
            was not attacked by it.
        peers: Records of the peers on the same images.
        labels: How an attack of the peers is shown, by its name in the records.

    Raises:
        InputError: The runs are of other images, or have no norm and epsilon in common.
    """
    clean = _clean(ours)
    if not clean.index.equals(_clean(peers).index):
        raise InputError("the two runs are not of the same images: run both on the same --samples.")
    mine, theirs = _groups(ours, clean), _groups(peers, clean)
    shared = list(dict.fromkeys(key[1:] for key in theirs if key[1:] in {k[1:] for k in mine}))
    if not shared:
        raise InputError(
            "the two suites have no norm and epsilon in common: give --norm and --epsilon."
        )
    labels = labels or {}
    suite = _suite(peers)
    rows: list[Row] = []
    for threat in shared:
        first = [group for key, group in mine.items() if key[1:] == threat]
        some = {key[0]: group for key, group in theirs.items() if key[1:] == threat}
        standing = _right(clean, first)
        rows.append(_row("ours", _suite(ours), threat, clean, first, standing, ours=True))
        rows += [
            _row(labels.get(attack, attack), suite, threat, clean, [group], standing)
            for attack, group in some.items()
        ]
        if len(some) > 1:
            rows.append(_row(TOGETHER, suite, threat, clean, list(some.values()), standing))
    return tuple(rows)


@dataclass(frozen=True)
class _Group:
    """The records of one attack at one size: margins `[image]`, passes per image, seconds."""

    margins: NDArray[np.float64]
    passes: float
    seconds: float


def _right(clean: pd.Series[float], groups: Sequence[_Group]) -> NDArray[np.bool_]:
    """Which images stay right, clean and under all of these."""
    return worst_case(np.stack([clean, *(group.margins for group in groups)]))


def _row(
    attack: str,
    suite: str,
    threat: Threat,
    clean: pd.Series[float],
    groups: Sequence[_Group],
    standing: NDArray[np.bool_],
    ours: bool = False,
) -> Row:
    """The row of attacks taken together; `standing` are the images that our suite leaves."""
    right = _right(clean, groups)
    low, high = wilson(int(right.sum()), len(right))
    return Row(
        attack=attack,
        suite=suite,
        norm=threat[0],
        epsilon=threat[1],
        samples=len(right),
        accuracy=float(right.mean()),
        low=low,
        high=high,
        beyond=tuple(clean.index[standing & ~right].tolist()),
        missed=int((right & ~standing).sum()),
        passes=sum(group.passes for group in groups),
        seconds=sum(group.seconds for group in groups),
        ours=ours,
    )


def _clean(records: pd.DataFrame) -> pd.Series[float]:
    """The margin of each clean image, by id."""
    rows = records[records["attack"] == CLEAN].set_index("image_id")
    return rows["margin"].astype(float).sort_index()


def _groups(records: pd.DataFrame, clean: pd.Series[float]) -> dict[tuple[str, str, str], _Group]:
    found = {}
    attacked = records[records["attack"] != CLEAN]
    for key, rows in attacked.groupby(["attack", "norm", "epsilon"], sort=False):
        attack, norm, epsilon = map(str, key)
        margins = rows.set_index("image_id")["margin"].astype(float)
        spent = rows["forward_passes"].sum() + rows["backward_passes"].sum()
        found[attack, norm, epsilon] = _Group(
            # A NaN margin is an error of the network; a missing row is no attack.
            np.where(clean.index.isin(margins.index), margins.reindex(clean.index), clean),
            float(spent) / len(clean),
            float(rows["seconds"].sum()),
        )
    return found


def _suite(records: pd.DataFrame) -> str:
    return str(records["suite"].iloc[0])


def _sizes(rows: Sequence[Row]) -> list[tuple[Row, list[Row]]]:
    """Our row and those of the single peers, at each norm and epsilon."""
    found = []
    for ours in (row for row in rows if row.ours):
        same = [r for r in rows if (r.norm, r.epsilon) == (ours.norm, ours.epsilon)]
        found.append((ours, [r for r in same if not r.ours and r.attack != TOGETHER]))
    return found


# --- rows to words --------------------------------------------------------------------------------


def sentences(rows: Sequence[Row]) -> list[str]:
    """For each size: whether ours is lowest, and which images speak against it."""
    return [_sentence(ours, peers) for ours, peers in _sizes(rows)]


def _sentence(ours: Row, peers: Sequence[Row]) -> str:
    at = formats.threat(ours.norm, ours.epsilon)
    best = min(peers, key=lambda row: row.accuracy)
    mine, theirs = formats.percent(ours.accuracy), formats.percent(best.accuracy)
    named = f"the strongest peer, {best.attack}, leaves {theirs}"
    if best.accuracy < ours.accuracy:
        said = f"At {at} ours is NOT lowest: it leaves {mine} and {named}"
    elif best.accuracy == ours.accuracy:
        said = f"At {at} ours is lowest, with {mine}, and not alone: {named}"
    else:
        said = f"At {at} ours is lowest: it leaves {mine} and {named}"
    by_image: dict[int, list[str]] = {}
    for row in peers:
        for image in row.beyond:
            by_image.setdefault(image, []).append(row.attack)
    if not by_image:
        return f"{said}. No peer breaks an image that ours does not."
    images = [f"{image} ({formats.listing(by_image[image])})" for image in sorted(by_image)]
    speak = "speaks" if len(images) == 1 else "speak"
    return (
        f"{said}. {formats.count(len(images), 'image')} {speak} against it, broken by a peer and "
        f"not by ours: {', '.join(images)}."
    )


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as `crosscheck.csv` has them; `images` are ids separated by spaces."""
    return pd.DataFrame(
        [
            (
                row.attack, row.suite, row.norm, row.epsilon, row.samples, row.accuracy, row.low,
                row.high, len(row.beyond), row.missed, row.passes, row.seconds,
                " ".join(map(str, row.beyond)),
            )
            for row in rows
        ],
        columns=COLUMNS,
    )  # fmt: skip


def markdown(found: Crosscheck, versions: Mapping[str, str]) -> str:
    """`crosscheck.md`: the table, what it says, what was left out, and the versions."""
    lines = [f"# Crosscheck of {found.model}", ""]
    for ours, _ in _sizes(found.rows):
        lines += [
            f"{formats.threat(ours.norm, ours.epsilon)}, {formats.count(ours.samples, 'image')}; "
            "accuracy with its 95 % Wilson interval.",
            "",
            "| attack | robust accuracy | broken, not by ours | broken by ours only | passes per "
            "image | seconds |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for row in found.rows:
            if (row.norm, row.epsilon) == (ours.norm, ours.epsilon):
                lines.append(f"| {' | '.join(c.replace('|', '/') for c in _cells(row))} |")
        lines.append("")
    lines += [f"{sentence}\n" for sentence in sentences(found.rows)]
    lines += [f"Left out: {text}\n" for text in found.left_out]
    lines.append(", ".join(f"{name} {version}" for name, version in versions.items()) + ".")
    return "\n".join(lines) + "\n"


def table(rows: Sequence[Row]) -> list[Table]:
    """A table for a terminal at each size."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = []
    for ours, _ in _sizes(rows):
        one = Table(
            title=f"{formats.threat(ours.norm, ours.epsilon)}, "
            f"{formats.count(ours.samples, 'image')}",
            title_style="bold",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1),
            collapse_padding=True,
        )
        heads = ("attack", "robust accuracy", "not by ours", "ours only", "passes", "seconds")
        for index, head in enumerate(heads):
            # A number and its interval stay on one line; names and ids may break.
            one.add_column(head, justify="right" if index else "left", no_wrap=index not in (0, 2))
        for row in rows:
            if (row.norm, row.epsilon) == (ours.norm, ours.epsilon):
                # Text objects, not strings: an attack called [red] is a name and no markup.
                cells = [Text(cell) for cell in _cells(row, SHOWN)]
                one.add_row(*cells, style="bold" if row.ours else None)
        found.append(one)
    return found


def _cells(row: Row, shown: int | None = None) -> list[str]:
    accuracy = f"{formats.percent(row.accuracy)} {formats.bounds(row.low, row.high)}"
    name = f"{row.attack} ({row.suite})" if row.ours else row.attack
    spent = (f"{row.passes:,.0f}", f"{row.seconds:,.{0 if row.seconds >= 10 else 1}f}")
    if row.ours:
        return [name, accuracy, "", "", *spent]
    ids = ", ".join(map(str, row.beyond[:shown]))
    more = f", and {len(row.beyond) - shown} more" if shown and len(row.beyond) > shown else ""
    beyond = f"{len(row.beyond)}: {ids}{more}" if row.beyond else "0"
    return [name, accuracy, beyond, str(row.missed), *spent]


# --- running --------------------------------------------------------------------------------------


def peers_suite(name: str | Path, ours: Suite) -> Suite:
    """The suite of peers at the norm and the sizes of ours, judged on as many draws.

    Raises:
        InputError: There is none, or it fixes another threat model.
    """
    suite = load_suite(name)
    if (suite.norm, suite.epsilon) != (ours.norm, ours.epsilon):
        suite = suite.at(ours.norm, ",".join(ours.epsilon))
    if suite.draws != ours.draws:
        suite = suite.model_copy(update={"draws": ours.draws})
    return suite


def runnable(suite: Suite, classes: int) -> tuple[Suite, tuple[str, ...]]:
    """The entries that can be run here on a network of so many classes, and why not the others.

    Raises:
        InputError: None can be run, or an attack is misspelt.
    """
    from robustsnn.adversary.peers import MissingLibrary
    from robustsnn.registry import load_attack

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
            left_out.append(f"{entry.label}: it works in {' and '.join(norms)} only.")
        elif classes < fewest:
            left_out.append(f"{entry.label}: it needs {fewest} classes and there are {classes}.")
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
    """Evaluate a model under our suite and under the peers, and join the two by image.

    Args:
        model: A zoo name, a checkpoint folder or `python.module:factory`.
        data: As for `evaluate`.
        suite: Ours.
        peers: Theirs, at the same norm and sizes, as `peers_suite` gives them.
        data_root: As for `evaluate`, like the other settings.
        samples: The first so many images.
        weights: State dict of a factory's module.
        seed: Of every draw.
        device: Where to compute.
        batch_size: Images per forward pass.
        output: Folder of both runs, `crosscheck.csv` and `crosscheck.md`; by default
            `runs/crosscheck-<hash>`. The same call resumes there.
        progress: Told of every finished batch.
        command: How it was asked for.

    Raises:
        InputError: Something given cannot be used, or a peer fails on the network.
    """
    from robustsnn.evaluation.run import prepare
    from robustsnn.models.subject import images_of, subject_of
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
    """The peers that are installed, with their versions."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
