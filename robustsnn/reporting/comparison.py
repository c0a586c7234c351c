"""Comparisons of models under the same suite on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustsnn.common import wording
from robustsnn.common.statistics import holm, paired, wilson, worst_case
from robustsnn.errors import InputError
from robustsnn.records.runs import Run, Runs
from robustsnn.records.schema import (
    CLEAN,
    CLEAN_IMAGES,
    CONDITION,
    OPERATIONS,
    WORST_CASE,
    Condition,
)
from robustsnn.records.summary import classified_right


class SuccessRates(NamedTuple):
    """The three numbers that papers call attack success rate, see `success_rates`."""

    clean_correct: float
    net: float
    all_images: float


@dataclass(frozen=True)
class Comparison:
    """Runs that share images, suite and seed.

    Args:
        runs: The runs; the model of the first one is the baseline.
        slug: The name of the comparison in file names, unique in a report.
    """

    runs: tuple[Run, ...]
    slug: str

    @property
    def models(self) -> tuple[str, ...]:
        """The labels of the models, the baseline first."""
        return tuple(run.label for run in self.runs)

    @property
    def baseline(self) -> str:
        """The label of the model that the others are compared with."""
        return self.runs[0].label

    @property
    def samples(self) -> int:
        """The number of images, the same for every model."""
        return self.runs[0].samples

    @property
    def title(self) -> str:
        """The data set and the suite, as they are printed."""
        run = self.runs[0]
        return f"{wording.data(run.data)}, suite {run.suite}"

    @cached_property
    def verdicts(self) -> dict[str, dict[Condition, NDArray[np.bool_]]]:
        """Which images each model gets right in each condition, [images] in order of their ids."""
        return {run.label: verdicts(run) for run in self.runs}

    @cached_property
    def conditions(self) -> tuple[Condition, ...]:
        """The rows: clean images, the attacks in the order of the suite, then the worst cases.

        The sizes of one attack are in ascending order. A worst case that only repeats a single
        attack is left out.
        """
        found = {c for right in self.verdicts.values() for c in right}
        named = [row for run in self.runs for row in run.results[["attack", "norm"]].values]
        order = {key: place for place, key in enumerate(dict.fromkeys(map(tuple, named)))}
        rank = {CLEAN: 0, WORST_CASE: 2}

        def place(condition: Condition) -> tuple[int, int, float, str]:
            listed = order.get((condition.attack, condition.norm), len(order))
            return (rank.get(condition.attack, 1), listed, condition.radius, condition.epsilon)

        return tuple(sorted((c for c in found if not self._repeats(c, found)), key=place))

    def _repeats(self, worst: Condition, found: set[Condition]) -> bool:
        if worst.attack != WORST_CASE:
            return False
        alone = [c for c in found if c[1:] == worst[1:] and c != worst]
        return len(alone) == 1 and all(
            np.array_equal(right[worst], right[alone[0]])
            for right in self.verdicts.values()
            if worst in right
        )

    @property
    def attacks(self) -> tuple[Condition, ...]:
        """The conditions without clean images and worst cases."""
        return tuple(c for c in self.conditions if c.attack not in (CLEAN, WORST_CASE))

    @property
    def is_curve(self) -> bool:
        """Whether some attack was run at three sizes or more."""
        sizes = pd.Series([c.epsilon for c in self.attacks], dtype=str)
        by = pd.Series([(c.attack, c.norm) for c in self.attacks], dtype=object)
        return bool(len(sizes)) and int(sizes.groupby(by).nunique().max()) >= 3

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per model and condition; fractions in [0, 1], energies in microjoule per image.

        `difference` is the accuracy less that of the baseline. `gained` counts the images that
        only this model gets right, `lost` those that only the baseline gets right. `p` is the
        p-value of the exact McNemar test on these two counts, and `p_holm` its Holm adjustment
        over the attacks and worst cases of the model. If some network is sparse, `weights` counts
        the synaptic weights that are not zero, and `compression` says how many times as many the
        dense network has.
        """
        sparse = any(run.sparse for run in self.runs)
        rows = []
        for run in self.runs:
            tests = self._tests(run.label)
            for condition in self.conditions:
                right = self.verdicts[run.label].get(condition)
                if right is None:
                    continue
                correct, n = int(right.sum()), len(right)
                low, high = wilson(correct, n)
                rates = success_rates(self.verdicts[run.label][CLEAN_IMAGES], right)
                rows.append(
                    {
                        "comparison": self.slug,
                        "data": run.data,
                        "suite": run.suite,
                        "samples": n,
                        "model": run.label,
                        "baseline": self.baseline,
                        "attack": condition.attack,
                        "norm": condition.norm,
                        "epsilon": condition.epsilon,
                        "accuracy": correct / n,
                        "ci_low": low,
                        "ci_high": high,
                        **tests.get(condition, _NO_TEST),
                        "attack_success_rate": rates.clean_correct,
                        "net_success_rate": rates.net,
                        "error_rate": rates.all_images,
                        "kind": run.kind,
                        "time_steps": run.time_steps,
                        "spikes_per_neuron_and_step": run.spikes_per_neuron_and_step,
                        "energy_uj": energy(run),
                        "energy_same_layer_uj": energy(run, same_layer=True),
                        **(_weights(run) if sparse else {}),
                        "compute_uj": run.energy.get("compute_fp32_uj", _NAN),
                        "memory_uj": run.energy.get("memory_fp32_uj", _NAN),
                        "synaptic_operations": operations(run, condition),
                    }
                )
        return pd.DataFrame(rows)

    @cached_property
    def cells(self) -> dict[tuple[str, Condition], pd.Series[float]]:
        """The rows of `table` by model and condition."""
        keys = [
            (str(r["model"]), Condition(str(r["attack"]), str(r["norm"]), str(r["epsilon"])))
            for _, r in self.table.iterrows()
        ]
        return {key: self.table.iloc[i] for i, key in enumerate(keys)}

    def _tests(self, model: str) -> dict[Condition, dict[str, float]]:
        if model == self.baseline:
            return {}
        ours, theirs = self.verdicts[model], self.verdicts[self.baseline]
        tests = {
            c: paired(ours[c], theirs[c]) for c in self.conditions if c in ours and c in theirs
        }
        # Clean images are not an attack, and neither is an attack of size 0.
        family = [c for c in tests if c.radius != 0]
        adjusted = dict(zip(family, holm([tests[c].p for c in family]), strict=True))
        return {
            c: {
                "difference": float(ours[c].mean() - theirs[c].mean()),
                "gained": test.gained,
                "lost": test.lost,
                "p": test.p,
                "p_holm": adjusted.get(c, test.p),
            }
            for c, test in tests.items()
        }


_NAN = float("nan")
_NO_TEST = {"difference": _NAN, "gained": _NAN, "lost": _NAN, "p": _NAN, "p_holm": _NAN}


def _weights(run: Run) -> dict[str, float]:
    weights = _NAN if run.weights is None else float(run.weights)
    return {"weights": weights, "compression": run.compression}


_KNOWN: WeakKeyDictionary[Runs, list[Comparison]] = WeakKeyDictionary()


def comparisons(runs: Runs) -> list[Comparison]:
    """The runs in groups that can be compared image by image, in the order of their first run."""
    # Every renderer asks for the same comparisons, and the paired tests take time.
    if runs not in _KNOWN:
        _KNOWN[runs] = _grouped(runs)
    return list(_KNOWN[runs])


def _grouped(runs: Runs) -> list[Comparison]:
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs.runs:
        groups.setdefault(run.setting, []).append(run)
    slugs: dict[str, int] = {}
    found = []
    for group in groups.values():
        slug = "".join(c if c.isalnum() or c in "-_" else "-" for c in group[0].suite) or "suite"
        slugs[slug] = slugs.get(slug, 0) + 1
        unique = slug if slugs[slug] == 1 else f"{slug}-{slugs[slug]}"
        found.append(Comparison(tuple(group), unique))
    return found


def comparison_frame(runs: Runs) -> pd.DataFrame:
    """The tables of all comparisons in one frame, with the columns of `Comparison.table`."""
    return pd.concat([c.table for c in comparisons(runs)], ignore_index=True)


def verdicts(run: Run) -> dict[Condition, NDArray[np.bool_]]:
    """Which images a run's model gets right in each condition, [images] in order of their ids.

    An image without a record under an attack was not attacked because it is wrong already; its
    verdict is the one on the clean image. In the worst case, and under an attack of a cascade, an
    image is right only if every margin is negative.

    Raises:
        InputError: If the records hold an image twice in one condition, or lack an image that is
            right when clean.
    """
    records = run.records
    clean_rows = records[records["attack"] == CLEAN]
    one = (clean_rows if len(clean_rows) else records).drop_duplicates("image_id")
    one = one.set_index("image_id").sort_index()
    predicted = one["prediction"] if len(clean_rows) else one["clean_prediction"]
    clean = (predicted == one["label"]).to_numpy(dtype=bool)
    # Without clean rows the margin on the clean image is unknown, but its sign is known.
    clean_margin = one["margin"].to_numpy() if len(clean_rows) else np.where(clean, -1.0, 1.0)

    found = {CLEAN_IMAGES: clean}
    margins: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
    attacked = records[records["attack"] != CLEAN]
    for key, rows in attacked.groupby(CONDITION, sort=False):
        condition = Condition(*map(str, key))
        if rows["image_id"].duplicated().any():
            raise InputError(
                f"{run.folder} has two records of an image for {condition.attack!r} at"
                f" {condition.size}: give the entries of the suite different labels."
            )
        rows = rows.set_index("image_id").reindex(one.index)
        there = rows["prediction"].notna().to_numpy()
        if (clean & ~there).any():
            raise InputError(
                f"{run.folder} is incomplete: {condition.attack!r} has no record of some images;"
                " run it again."
            )
        right = classified_right(rows, run.manifest.cascade)
        found[condition] = np.where(there, right, clean)
        margin = np.where(there, rows["margin"].to_numpy(dtype=float), clean_margin)
        margins.setdefault((condition.norm, condition.epsilon), []).append(margin)
    for (norm, epsilon), several in margins.items():
        found[Condition(WORST_CASE, norm, epsilon)] = worst_case(np.stack([clean_margin, *several]))
    return found


def success_rates(clean: NDArray[np.bool_], right: NDArray[np.bool_]) -> SuccessRates:
    """The attack success rate by each of the three definitions in use.

    `clean_correct` is the fraction of the images right when clean that the attack breaks (RGA,
    HART). `net` is the relative loss of accuracy, in which images that the attack mends cancel
    images that it breaks (PDSG). `all_images` is the fraction of all images that are wrong, errors
    on clean images included (ASSG). The first two are NaN if no clean image is right.

    Args:
        clean: Whether each clean image is right, [images].
        right: Whether each image is right under the attack, [images].
    """
    if not clean.any():
        return SuccessRates(_NAN, _NAN, float((~right).mean()))
    broken = float((clean & ~right).sum() / clean.sum())
    net = float((clean.sum() - right.sum()) / clean.sum())
    return SuccessRates(broken, net, float((~right).mean()))


def energy(run: Run, same_layer: bool = False) -> float:
    """The estimated energy per image in microjoule; NaN if the run does not hold it.

    Args:
        run: The run.
        same_layer: Whether the operations of an SNN are counted by the spikes that leave a layer,
            as several papers do, and not by those that enter it.
    """
    if run.kind == "ann":
        return run.energy.get("ann_uj", _NAN)
    return run.energy.get("snn_same_layer_uj" if same_layer else "snn_input_uj", _NAN)


def operations(run: Run, condition: Condition = CLEAN_IMAGES) -> float:
    """The mean synaptic operations of an image in a condition; NaN if they were not counted.

    In the worst case it is the mean of the largest number of each image over the clean image and
    every proposal of that size.

    Args:
        run: The run.
        condition: The condition. Every run counts clean images; only those of suites that ask for
            it count proposals.
    """
    results = run.results
    if OPERATIONS in results:
        same = (results[CONDITION].astype(str) == list(condition)).all(axis=1)
        if same.any():
            return float(results[same][OPERATIONS].iloc[0])
    if condition == CLEAN_IMAGES:
        return run.manifest.counts.get("synaptic_operations", _NAN)
    return _NAN


def strongest(comparison: Comparison, model: str) -> Condition | None:
    """The attack that leaves a model the least accuracy; None without attacks.

    If several leave the same accuracy, it is the last of them.
    """
    right = comparison.verdicts[model]
    attacks = [c for c in comparison.attacks if c in right]
    return min(reversed(attacks), key=lambda c: right[c].mean()) if attacks else None
