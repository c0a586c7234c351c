"""Is our number the lowest: `standard` beside every peer and every single estimator, by image."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.tables import write_results
from robustsnn.common import wording as formats
from robustsnn.common.files import write_atomically
from robustsnn.common.statistics import wilson
from robustsnn.errors import InputError
from robustsnn.evaluation.inputs import images_of
from robustsnn.evaluation.run import Evaluation, prepare, run
from robustsnn.evaluation.suites import Suite, load_suite
from robustsnn.models.subject import subject_of
from robustsnn.records.folder import RunFolder
from robustsnn.records.schema import CLEAN
from robustsnn.workflows.crosscheck.rows import PEERS, join
from robustsnn.workflows.crosscheck.run import library_versions, runnable

#: Ours first; the others are set beside it, entry by entry.
OURS = "standard"
OTHERS = (PEERS, "estimators", "overestimate")
#: What papers print, by its label in the suites, in the order of the table.
PRINTED = ("FGSM", "PGD-7", "PGD-20", "AutoAttack")
#: Points that attacks on spiking networks are said to miss.
GAP = 10
#: Images, and networks that are asked about more.
SAMPLES, MORE = 200, 1000
NETWORKS: Mapping[str, int] = {
    "fashion-mnist/vgg5-ann": SAMPLES,
    "fashion-mnist/vgg5-snn": MORE,
    "fashion-mnist/vgg5-snn-hire": SAMPLES,
    "fashion-mnist/vgg5-ann-at": MORE,
    "fashion-mnist/vgg5-snn-at": MORE,
    "fashion-mnist/resnet12-ann": SAMPLES,
    "fashion-mnist/resnet12-snn": SAMPLES,
    "cifar10/vgg5-ann": SAMPLES,
    "cifar10/vgg5-snn": SAMPLES,
}
COLUMNS = (
    "model samples suite attack estimator norm epsilon clean accuracy ci_low ci_high "
    "ours beyond_ours only_ours forward_passes backward_passes seconds level because version "
    "images"
).split()
#: What one run of a network is known by in the table.
RUN = ["model", "samples", "suite"]


#: What is kept of a run's records: to look an image up, and to go on without the run's folder.
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
        """What is kept of a run."""
        verdict = run.manifest["verdict"]
        return cls(
            str(run.manifest["identity"]),
            run.records[KEPT].astype({"margin": "float32", "seconds": "float32"}),
            str(verdict["level"]),
            tuple(str(reason["flag"]) for reason in verdict["because"]),
        )

    @classmethod
    def read(cls, path: Path) -> Outcome:
        """What `write` wrote."""
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
    """One network's runs, by suite; a suite that was not run is absent."""

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
        samples: The first so many images.
        folder: Where the run folders of all networks are.
        suites: Which, ours first.
        data_root: Folder of the data sets' folders, such as `data` with `data/cifar10`.
        epsilon: In place of the suites'.
        kept: Where outcomes are kept: one of the same network, suite and images is not run again.
        say: Told what is done.
        finished_only: Read what is finished and run nothing.
    """
    subject = subject_of(model)
    root = None if data_root is None else root_of(data_root, subject.meta)
    images = images_of(None, subject, root=root, samples=samples)
    runs: dict[str, Outcome] = {}
    labels: dict[str, str] = {}
    for name in suites:
        suite = load_suite(name)
        if epsilon is not None:
            suite = suite.at(epsilon=epsilon)
        if name in OTHERS:
            suite, _ = runnable(suite, len(images.class_names) or 10)
        if name == "overestimate":
            suite = _without_autoattack(suite)
        labels |= {entry.slug: entry.label for entry in suite.entries}
        plan = prepare(subject, images, suite)
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
        runs[name] = Outcome.of(run(plan, output, command=["benchmarks", "soundness"]))
        if outcome is not None:
            runs[name].write(outcome)
    return Study(model, samples, runs, labels)


def is_finished(output: Path) -> bool:
    """Whether a run folder holds a run to its end."""
    try:
        return RunFolder(output).manifest().get("status") == "done"
    except InputError:
        return False


def root_of(data_root: Path, meta: Mapping[str, object]) -> Path:
    """The folder of a model's data set, its name with dashes or underscores."""
    data = str(meta.get("data") or "")
    for name in (data, data.replace("-", "_")):
        if (data_root / name).is_dir():
            return data_root / name
    return data_root


def _without_autoattack(suite: Suite) -> Suite:
    """The peers ran it already."""
    kept = tuple(e for e in suite.entries if "AutoAttack" not in e.attack)
    return suite.model_copy(update={"entries": kept})


# --- records to rows ------------------------------------------------------------------------------


def rows(studies: Sequence[Study]) -> pd.DataFrame:
    """One row for our suite and each other entry of each network, as `soundness.csv` has them."""
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
    """The rows of a table, and those of an earlier one that it says nothing of.

    What was run on another machine is kept where `standard` is still of that version, and was not
    run again or left the same accuracy: the other rows were set beside it image by image.

    Args:
        table: What was found now.
        earlier: What `soundness.csv` held.
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
    both = pd.concat([earlier[kept], table]) if any(kept) else table
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
    """Passes, a mean over all images, and seconds of each attack."""
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


# --- rows to pages --------------------------------------------------------------------------------


def page(table: pd.DataFrame, command: str) -> str:
    """`soundness.md`."""
    lines = [
        "# Soundness",
        "",
        f"Made by `{command}`, `standard` being version {load_suite(OURS).version}. Robust "
        "accuracy in %, with 95 % Wilson intervals, on the first images of the fixed order, seed "
        "0; clean errors count as errors, and so does a tie at the top. Passes and seconds are "
        "those of the attacks, without the probe beside them, which looks at 64 images at most.",
        "",
        "## Ours and the lowest of everything else",
        "",
        "| network | images | clean | standard | level | lowest peer | lowest single estimator "
        "| images against standard | forward / backward passes per image | seconds "
        "| seconds per survivor |",
        "|---|---:|---:|---:|---|---|---|---|---:|---:|---:|",
    ]
    for (model, samples), some in table.groupby(["model", "samples"], sort=False):
        ours = some[some["suite"] == OURS].iloc[0]
        lines.append(
            f"| {model} | {samples} | {_percent(ours['clean'])} | **{_interval(ours)}** "
            f"| {_level(ours)} | {_lowest(some, PEERS)} | {_lowest(some, 'estimators')} "
            f"| {_against(some)} "
            f"| {ours['forward_passes']:,.0f} / {ours['backward_passes']:,.0f} "
            f"| {ours['seconds']:,.0f} | {_per_survivor(ours)} |"
        )
    lines += ["", *claims(table), "", "## What papers print, and what is left", ""]
    lines += _overestimates(table)
    if found := gaps(table):
        lines += [
            "",
            f"The literature suggests that attacks on spiking networks miss {GAP} points or more. "
            "On the spiking networks here:",
            *found,
        ]
    for (model, samples), some in table.groupby(["model", "samples"], sort=False):
        lines += ["", f"## {model}, {samples} images", ""]
        lines += [
            "| suite | attack | estimator | robust accuracy | broken, not by standard "
            "| broken by standard only | forward / backward | seconds |",
            "|---|---|---|---:|---:|---:|---:|---:|",
        ]
        for _, row in some.iterrows():
            beyond = "" if row["suite"] == OURS else str(row["beyond_ours"])
            only = "" if row["suite"] == OURS else str(row["only_ours"])
            lines.append(
                f"| {row['suite']} | {row['attack']} | {row['estimator']} | {_interval(row)} "
                f"| {beyond} | {only} | {row['forward_passes']:,.0f} / "
                f"{row['backward_passes']:,.0f} | {row['seconds']:,.0f} |"
            )
    missing = [name for name in NETWORKS if name not in set(table["model"])]
    if missing:
        lines += ["", f"Not run yet: {formats.listing(missing)}."]
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    return "\n".join([*lines, "", f"{versions}.", ""])


def claims(table: pd.DataFrame) -> list[str]:
    """Whether `standard` is the lowest, in a sentence for each network where it is not."""
    asked = table[table["suite"].isin([PEERS, "estimators"])]
    if asked.empty:
        return ["Nothing was set beside `standard` yet."]
    higher = asked[asked["accuracy"] < asked["ours"]]
    more = asked[asked["beyond_ours"] > 1]
    networks = formats.count(asked.groupby(["model", "samples"]).ngroups, "network")
    lines = [
        f"{formats.count(len(asked), 'comparison')} on {networks}, each attack of a peer or with "
        f"a single estimator against `standard`: in {len(higher)} the other leaves a lower "
        f"accuracy, in {len(more)} it breaks more than one image that `standard` leaves."
    ]
    for _, row in pd.concat([higher, more]).drop_duplicates().iterrows():
        lines.append(
            f"- {row['model']}, {row['samples']} images: {row['attack']} leaves "
            f"{_percent(row['accuracy'])} against {_percent(row['ours'])}, and breaks "
            f"{formats.count(int(row['beyond_ours']), 'image')} that `standard` leaves."
        )
    return lines


def in_short(table: pd.DataFrame) -> str:
    """The table of the README: what papers print and what `standard` leaves, in %."""
    lines = [
        "| network | images | clean | FGSM | PGD-7 | PGD-20 | AutoAttack | `standard` | level |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for (model, samples), some in table.groupby(["model", "samples"], sort=False):
        ours = some[some["suite"] == OURS].iloc[0]
        cells = []
        for label in PRINTED:
            rows = _printed(some, label)
            cells.append(_percent(rows.iloc[0]["accuracy"]) if len(rows) else "–")
        lines.append(
            f"| {model} | {samples} | {_percent(ours['clean'])} | {' | '.join(cells)} "
            f"| {_interval(ours)} | {_level(ours)} |"
        )
    return "\n".join(lines)


def _overestimates(table: pd.DataFrame) -> list[str]:
    lines = [
        "Points by which an evaluation is above `standard` on the same images, with the 95 % "
        "interval of the share of images that it leaves and `standard` breaks.",
        "",
        f"| network | images | {' | '.join(PRINTED)} |",
        f"|---|---:|{'---|' * len(PRINTED)}",
    ]
    for (model, samples), some in table.groupby(["model", "samples"], sort=False):
        cells = [overestimate(some, label) for label in PRINTED]
        if any(cells):
            lines.append(f"| {model} | {samples} | {' | '.join(c or '–' for c in cells)} |")
    return lines


def gaps(table: pd.DataFrame) -> list[str]:
    """On which spiking networks what papers print is as far off as the literature suggests."""
    lines = []
    for label in PRINTED:
        above: list[str] = []
        below: list[str] = []
        for (model, _), some in table.groupby(["model", "samples"], sort=False):
            rows = _printed(some, label)
            # Without spikes the estimator is plain backpropagation.
            if rows.empty or rows.iloc[0]["estimator"] == "backprop":
                continue
            gap = round(100 * (rows.iloc[0]["accuracy"] - rows.iloc[0]["ours"]), 3)
            (above if gap >= GAP else below).append(f"{model} ({gap:.1f})")
        if above or below:
            lines.append(
                f"- {label}: {GAP} points or more on {formats.listing(above) or 'none'}"
                + (f"; less on {formats.listing(below)}." if below else ".")
            )
    return lines


def overestimate(some: pd.DataFrame, label: str) -> str:
    """Such as `40.5 [33.9, 47.4]`, empty where the attack was not run."""
    rows = _printed(some, label)
    if rows.empty:
        return ""
    row = rows.iloc[0]
    low, high = wilson(int(row["only_ours"]), int(row["samples"]))
    gap = 100 * (row["accuracy"] - row["ours"])
    return f"{gap:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _printed(some: pd.DataFrame, label: str) -> pd.DataFrame:
    """The row of what papers print, or none."""
    asked = some["suite"].isin([PEERS, "overestimate"])
    # The last word, so that torchattacks MIFGSM is not taken for FGSM.
    return some[asked & (some["attack"].str.split().str[-1] == label)]


def _level(ours: pd.Series) -> str:
    return str(ours["level"]) or "–"


def _per_survivor(ours: pd.Series) -> str:
    left = round(ours["accuracy"] * ours["samples"])
    return f"{ours['seconds'] / left:.1f}" if left else "none left"


def _lowest(some: pd.DataFrame, suite: str) -> str:
    rows = some[some["suite"] == suite]
    if rows.empty:
        return "not run"
    row = rows.sort_values("accuracy", kind="stable").iloc[0]
    return f"{_percent(row['accuracy'])} {row['attack']}"


def _against(some: pd.DataFrame) -> str:
    if not some["suite"].isin([PEERS, "estimators"]).any():
        return "not asked"
    by_image: dict[str, list[str]] = {}
    for _, row in some.iterrows():
        for image in str(row["images"]).split():
            by_image.setdefault(image, []).append(str(row["attack"]))
    if not by_image:
        return "none"
    return "; ".join(f"{image} ({formats.listing(by_image[image])})" for image in sorted(by_image))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _interval(row: pd.Series) -> str:
    low, high = 100 * row["ci_low"], 100 * row["ci_high"]
    return f"{_percent(row['accuracy'])} [{low:.1f}, {high:.1f}]"


def figure(table: pd.DataFrame, path: Path) -> None:
    """What each printed evaluation leaves, above what `standard` leaves, for each network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(table.groupby(["model", "samples"], sort=False))
    labels = [*(label for label in PRINTED if not _printed(table, label).empty), OURS]
    width = 0.8 / len(labels)
    fig, axis = plt.subplots(figsize=(max(6.0, 1.7 * len(groups) + 1.5), 4.0), layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0.15, 0.9, len(labels)))
    for index, label in enumerate(labels):
        heights: list[float] = []
        errors: list[NDArray[np.float64]] = []
        for _, some in groups:
            rows = some[some["suite"] == OURS] if label == OURS else _printed(some, label)
            row = None if rows.empty else rows.iloc[0]
            accuracy = np.nan if row is None else float(row["accuracy"])
            heights.append(100 * accuracy)
            ends = (np.nan, np.nan) if row is None else (row["ci_low"], row["ci_high"])
            errors.append(100 * np.abs(np.array(ends, dtype=float) - accuracy))
        where = np.arange(len(groups)) + (index - (len(labels) - 1) / 2) * width
        axis.bar(
            where, heights, width, label=label, color=colours[index], yerr=np.array(errors).T,
            error_kw={"linewidth": 0.8},
        )  # fmt: skip
    names = [str(model).replace("/", "\n") for (model, _), _ in groups]
    axis.set_xticks(np.arange(len(groups)), names, fontsize=8)
    axis.set_ylabel("robust accuracy, %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, ncols=len(labels), fontsize=8, loc="upper center")
    axis.set_ylim(0, 100)
    fig.savefig(path, dpi=150)
    plt.close(fig)


def write(studies: Sequence[Study], output: Path, command: str) -> pd.DataFrame:
    """Table, page and figure of all networks that were run, now or before."""
    table = rows(studies)
    if (output / "soundness.csv").exists():
        earlier = pd.read_csv(output / "soundness.csv", keep_default_na=False)
        table = with_earlier(table, earlier.reindex(columns=COLUMNS, fill_value=""))
    write_results(output, "soundness", table, page(table, command))
    if len(table):
        figure(table, output / "overestimate.png")
    return table
