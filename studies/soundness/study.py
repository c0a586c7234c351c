"""Is our number the lowest? `standard` next to every peer and single estimator, by image."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from robustsnn.common.files import write_atomically
from robustsnn.evaluation.plan import prepare
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.run import Evaluation, run
from robustsnn.evaluation.suites import Suite, load_suite
from robustsnn.models.subject import subject_of
from robustsnn.records.schema import CLEAN
from robustsnn.workflows.crosscheck.rows import PEERS, join
from robustsnn.workflows.crosscheck.run import runnable
from studies.shared import NETWORKS, first_images, is_finished

#: The suite that the entries of the other suites are compared with.
OURS = "standard"
#: The other suites.
OTHERS = (PEERS, "estimators", "overestimate")
COLUMNS = (
    "model samples suite attack estimator norm epsilon clean accuracy ci_low ci_high "
    "ours beyond_ours only_ours forward_passes backward_passes seconds level because version "
    "images"
).split()
#: The columns that identify one run of a network in the table.
RUN = ["model", "samples", "suite"]
#: The columns that are kept of a run's records, to look up an image, and to continue a study
#: without the folder of the run.
KEPT = (
    "image_id label suite attack estimator norm epsilon prediction margin forward_passes "
    "backward_passes seconds"
).split()


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished run: its identity, the columns `KEPT` of its records, its level and flags."""

    identity: str
    records: pd.DataFrame = field(repr=False)
    level: str
    because: tuple[str, ...]

    @classmethod
    def of(cls, run: Evaluation) -> Outcome:
        """The outcome of a run."""
        diagnosis = run.manifest.verdict
        return cls(
            run.manifest.identity,
            run.records[KEPT].astype({"margin": "float32", "seconds": "float32"}),
            str(diagnosis["level"]),
            tuple(str(reason["flag"]) for reason in diagnosis["because"]),
        )

    @classmethod
    def read(cls, path: Path) -> Outcome:
        """Read a file that `write` wrote."""
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[b"outcome"])
        return cls(about["identity"], table.to_pandas(), about["level"], tuple(about["because"]))

    def write(self, path: Path) -> None:
        """Write a Parquet file."""
        about = {"identity": self.identity, "level": self.level, "because": self.because}
        table = pa.Table.from_pandas(self.records, preserve_index=False)
        table = table.replace_schema_metadata({"outcome": json.dumps(about)})
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        write_atomically(path, buffer.getvalue())


@dataclass(frozen=True)
class Study:
    """The outcomes of one network by suite, without the suites that were not run."""

    model: str
    samples: int
    runs: Mapping[str, Outcome]
    labels: Mapping[str, str]


def study(
    model: str,
    samples: int,
    folder: Path,
    suites: Sequence[str] = (OURS, *OTHERS),
    *,
    data_root: Path | None = None,
    epsilon: str | None = None,
    kept: Path | None = None,
    say: Callable[[str], None] = print,
    finished_only: bool = False,
) -> Study:
    """Run, resume or read the suites of one network.

    Args:
        model: A zoo name.
        samples: The number of images, taken from the first one on.
        folder: The folder of the run folders of all networks.
        suites: The names of the suites, ours first.
        data_root: The folder of the data sets' folders, such as `data` with `data/cifar10`.
        epsilon: A size that replaces the size of the suites.
        kept: The folder of kept outcomes: a suite whose outcome is there is not run again.
        say: A function that prints progress.
        finished_only: Whether to read what is finished and run nothing.
    """
    subject = subject_of(model)
    images = first_images(subject, samples, data_root, say, finished_only)
    runs: dict[str, Outcome] = {}
    labels: dict[str, str] = {}
    if images is None:
        return Study(model, samples, runs, labels)
    for name in suites:
        suite = _suite(name, epsilon, len(images.class_names) or 10)
        labels |= {entry.slug: entry.label for entry in suite.entries}
        plan = prepare(Request.of(subject, images, suite))
        network = f"{model.replace('/', '-')}-{samples}"
        outcome = None if kept is None else kept / f"{network}-{name}.parquet"
        if outcome is not None and outcome.exists():
            earlier = Outcome.read(outcome)
            if earlier.identity == plan.identity:
                runs[name] = earlier
                continue
        output = folder / network / name
        if finished_only and not is_finished(output):
            continue
        say(f"{model}, {samples} images, {name}")
        runs[name] = Outcome.of(run(plan, output, command=["studies", "soundness"]))
        if outcome is not None:
            runs[name].write(outcome)
    return Study(model, samples, runs, labels)


def _suite(name: str, epsilon: str | None, classes: int) -> Suite:
    """A suite at a size, without the entries that cannot run on that number of classes."""
    suite = load_suite(name)
    if epsilon is not None:
        suite = suite.at(epsilon=epsilon)
    if name in OTHERS:
        suite, _ = runnable(suite, classes)
    if name == "overestimate":
        # AutoAttack is an entry of the suite of peers already.
        kept = tuple(e for e in suite.entries if "AutoAttack" not in e.attack)
        suite = suite.model_copy(update={"entries": kept})
    return suite


# --- records to rows ------------------------------------------------------------------------------


def rows(studies: Sequence[Study]) -> pd.DataFrame:
    """The rows of `soundness.csv`: for each network our suite, then each entry of the others."""
    found = []
    for one in studies:
        ours = one.runs.get(OURS)
        if ours is None:
            continue
        first, *_ = join(ours.records, ours.records)
        unattacked = ours.records[ours.records["attack"] == CLEAN]
        clean = float((unattacked["prediction"] == unattacked["label"]).mean())
        common = {
            "model": one.model,
            "samples": one.samples,
            "clean": clean,
            "version": load_suite(OURS).version,
        }
        spent = _spent(ours.records)
        found.append(
            {
                **common, "suite": OURS, "attack": OURS, "estimator": "",
                "norm": first.norm, "epsilon": first.epsilon, "accuracy": first.accuracy,
                "ci_low": first.low, "ci_high": first.high, "ours": first.accuracy,
                "beyond_ours": 0, "only_ours": 0, **spent.sum(), "images": "",
                "level": ours.level, "because": " ".join(ours.because),
            }
        )  # fmt: skip
        for name in OTHERS:
            if name not in one.runs:
                continue
            other = one.runs[name]
            estimators = dict(zip(other.records["attack"], other.records["estimator"], strict=True))
            spent = _spent(other.records)
            slugs = {one.labels.get(slug, slug): slug for slug in estimators}
            for row in join(ours.records, other.records, one.labels):
                if row.ours or row.attack not in slugs:
                    continue
                slug = slugs[row.attack]
                found.append(
                    {
                        **common, "suite": name, "attack": row.attack,
                        "estimator": estimators[slug], "norm": row.norm, "epsilon": row.epsilon,
                        "accuracy": row.accuracy, "ci_low": row.low, "ci_high": row.high,
                        "ours": first.accuracy, "beyond_ours": len(row.beyond),
                        "only_ours": row.missed, **spent.loc[slug],
                        "level": "", "because": "", "images": " ".join(map(str, row.beyond)),
                    }
                )  # fmt: skip
    return pd.DataFrame(found, columns=COLUMNS)


def with_earlier(table: pd.DataFrame, earlier: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table, with those rows of an earlier table that it does not replace.

    A row of a run on another machine is kept under two conditions. It is of the present version of
    `standard`. And `standard` was not run again, or has the same accuracy as before: the other
    rows were compared with it image by image.

    Args:
        table: The rows that were found now.
        earlier: The rows that `soundness.csv` held.
    """
    fresh = set(table[RUN].itertuples(index=False, name=None))
    ours = table[table["suite"] == OURS]
    accuracy = {
        (model, samples): float(found)
        for model, samples, found in zip(ours["model"], ours["samples"], ours["ours"], strict=True)
    }
    earlier = earlier[earlier["version"].astype(str) == str(load_suite(OURS).version)]
    kept = [
        key not in fresh and abs(accuracy.get(key[:2], float(before)) - float(before)) < 1e-5
        for key, before in zip(
            earlier[RUN].itertuples(index=False, name=None), earlier["ours"], strict=True
        )
    ]
    # An empty table would turn the numbers of the other one into objects.
    filled = [one for one in (earlier[kept], table) if len(one)]
    both = pd.concat(filled) if filled else table
    models = list(dict.fromkeys([*NETWORKS, *both["model"]]))
    suites = [OURS, *OTHERS]
    return both.sort_values(
        RUN,
        kind="stable",
        ignore_index=True,
        key=lambda column: column.map(
            {"model": models.index, "suite": suites.index}.get(str(column.name), int)
        ),
    )


def _spent(records: pd.DataFrame) -> pd.DataFrame:
    """The passes of each attack, as means over all images, and its seconds."""
    attacked = records[records["attack"] != CLEAN]
    grouped = attacked.groupby("attack", sort=False)
    images = attacked["image_id"].nunique()
    return pd.DataFrame(
        {
            "forward_passes": grouped["forward_passes"].sum() / images,
            "backward_passes": grouped["backward_passes"].sum() / images,
            "seconds": grouped["seconds"].sum(),
        }
    )
