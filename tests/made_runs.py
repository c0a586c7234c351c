"""Run folders with known verdicts, from which a test can compute every number of a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from robustsnn.records.runs import load_runs
from robustsnn.records.schema import ACTIVITY, FORMAT, RESULTS
from robustsnn.reporting.render import render

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
LAYERS = {"features.0": 16384, "features.3": 8192, "features.6": 4096, "classifier.0": 512}

#: A name with markup of every language that a report is written in.
HARD_NAME = "<script>alert(1)</script> & $x_1$ 50% {a}^b~c|d [red]e[/red] `f` \\g"

Key = tuple[str, str, str]
Right = Mapping[Key, Any]

QUICK: dict[Key, float] = {
    ("gaussian", "Linf", "8/255"): 0.97,
    ("fgsm", "Linf", "8/255"): 0.4,
    ("pgd-10", "Linf", "8/255"): 0.06,
}
HIRE: dict[Key, float] = {
    ("fgsm", "Linf", "0.031"): 0.4,
    ("pgd-7", "Linf", "0.031"): 0.06,
    ("bb-fgsm", "Linf", "0.031"): 0.5,
    ("bb-pgd-7", "Linf", "0.031"): 0.2,
    ("gaussian-linf", "Linf", "0.031"): 0.97,
    ("gaussian-l2", "L2", "0.868"): 0.9,
}
CURVE: dict[Key, float] = {
    ("pgd-20", "Linf", "0"): 1.0,
    **{
        ("pgd-20", "Linf", f"{k}/255"): kept
        for k, kept in {1: 0.85, 2: 0.6, 4: 0.25, 8: 0.06, 16: 0.01, 32: 0.0}.items()
    },
}


def draw(rates: Mapping[Key, float], n: int, seed: int, clean: float = 0.9) -> dict[Key, Any]:
    """Random verdicts: which of n images are right when clean and, of those, under each attack."""
    rng = np.random.default_rng(seed)
    right: dict[Key, Any] = {("clean", "", ""): rng.random(n) < clean}
    for key, rate in rates.items():
        right[key] = right["clean", "", ""] & (rng.random(n) < rate)
    return right


def write_run(
    folder: Path,
    right: Right,
    *,
    model: str = "fashion-mnist/vgg5-snn",
    data: str = "fashion-mnist",
    kind: str = "snn",
    architecture: str = "vgg5",
    suite: str = "quick",
    time_steps: int = 6,
    ties: Sequence[int] = (),
    channels: int = 1,
    seed: int = 0,
    **header: Any,
) -> Path:
    """Write a run folder whose records have exactly these verdicts.

    `right` maps (attack, norm, epsilon) to [images] booleans; `ties` are images whose margin is 0
    under every attack although the prediction is right. `header` overrides keys of the manifest.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed + 1)
    n = len(right["clean", "", ""])
    label = np.arange(n) % len(CLASSES)
    ids = np.arange(n) * 7 + 3
    columns = {
        "model": model,
        "suite": suite,
        "estimator": "backprop" if kind == "ann" else "bptt",
        "substitute": "",
        "seed": seed,
    }
    _records(right, ids, label, ties, columns).to_parquet(folder / "records.parquet")
    _results(right, ties, {**columns, "data": data}).to_csv(folder / "results.csv", index=False)
    activity = _activity(rng, time_steps)
    # An ANN has the columns of the file, but no rows.
    activity[: None if kind == "snn" else 0].to_parquet(folder / "activity.parquet")
    save_file(_examples(rng, right, ids, label, channels), folder / "examples.safetensors")
    manifest = {
        **_manifest(model, suite, n, kind),
        "seed": seed,
        "data": data,
        "architecture": architecture,
        "time_steps": time_steps if kind == "snn" else 1,
        **header,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def _records(
    right: Right, ids: Any, label: Any, ties: Sequence[int], columns: Mapping[str, Any]
) -> pd.DataFrame:
    """The rows of `records.parquet`; `columns` are the same in every row."""
    classes = len(CLASSES)
    clean = np.asarray(right["clean", "", ""], dtype=bool)
    rows = []
    for (attack, norm, epsilon), verdict in right.items():
        verdict = np.asarray(verdict, dtype=bool)
        margin = np.where(verdict, -1.5, 2.5)
        if attack != "clean":
            margin[list(ties)] = 0.0
        rows.append(
            pd.DataFrame(
                {
                    "image_id": ids,
                    "label": label,
                    **columns,
                    "attack": attack,
                    "norm": norm,
                    "epsilon": epsilon,
                    "clean_prediction": np.where(clean, label, (label + 1) % classes),
                    "prediction": np.where(verdict, label, (label + 1) % classes),
                    "margin": margin,
                    "success": ~verdict,
                    "linf": 0.03,
                    "l2": 0.8,
                    "forward_passes": 11,
                    "backward_passes": 10,
                    "zero_grad": 0,
                    "nonfinite_grad": 0,
                    "projected": False,
                    "seconds": 0.1,
                }
            )
        )
    # The rows of a real run are in the order of computation, so readers must not rely on any order.
    records = pd.concat(rows, ignore_index=True).sample(frac=1, random_state=columns["seed"])
    return records.reset_index(drop=True)


def _results(right: Right, ties: Sequence[int], columns: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of `results.csv`; `columns` are the same in every row."""
    clean = np.asarray(right["clean", "", ""], dtype=bool)
    results = [(*key, np.asarray(verdict, dtype=bool)) for key, verdict in right.items()]
    for norm, epsilon in dict.fromkeys((k[1], k[2]) for k in right if k[0] != "clean"):
        robust = clean.copy()
        for key, verdict in right.items():
            if key[1:] == (norm, epsilon):
                robust &= np.asarray(verdict, dtype=bool)
        robust[list(ties)] = False
        results.append(("worst-case", norm, epsilon, robust))
    rows = [
        {
            **columns,
            "samples": len(clean),
            "attack": attack,
            "norm": norm,
            "epsilon": epsilon,
            "steps": "",
            "restarts": "",
            "accuracy": verdict.mean(),
            "ci_low": 0.0,
            "ci_high": 1.0,
            "attack_success_rate": (clean & ~verdict).sum() / max(1, clean.sum()),
            "mean_linf": 0.03,
            "mean_l2": 0.8,
            "forward_passes": 11.0,
            "backward_passes": 10.0,
            "flags": "",
            "seconds": 1.0,
        }
        for attack, norm, epsilon, verdict in results
    ]
    return pd.DataFrame(rows)[[name for name in RESULTS if name in rows[0]]]


def _activity(rng: np.random.Generator, time_steps: int) -> pd.DataFrame:
    """The rows of `activity.parquet` of an SNN, with no spikes at the first step."""
    rows = [
        {
            "layer": layer,
            "neurons": neurons,
            "step": step,
            "spikes_per_neuron": (0.02 + 0.05 * rng.random() + 0.06 / (1 + place)) * (step > 0),
        }
        for place, (layer, neurons) in enumerate(LAYERS.items())
        for step in range(time_steps)
    ]
    return pd.DataFrame(rows, columns=list(ACTIVITY))


def _manifest(model: str, suite: str, n: int, kind: str) -> dict[str, Any]:
    """A header without the keys that `write_run` adds."""
    energy = {"ann_uj": 120.5}
    if kind == "snn":
        energy |= {"snn_input_uj": 21.25, "snn_same_layer_uj": 18.0}
    return {
        "format": FORMAT,
        "command": ["robustsnn", "evaluate", model, "--suite", suite, "--samples", str(n)],
        "versions": {"robustsnn": "0.1.0", "torch": "2.9.0", "python": "3.11.2"},
        "model": model,
        "data_fingerprint": "sha256:2b9c4c7f0a1d7f0f4cbd5e8e42f1d7a6",
        "checkpoint_sha256": f"{abs(hash_of(model)):064x}",
        "suite": suite,
        "suite_version": 1,
        "norm": "Linf",
        "epsilon": "8/255",
        "samples": n,
        "machine": {"processor": "x86_64", "cores": 2},
        "threads": 1,
        "batch_size": 100,
        "start": "2026-01-02T03:04:05Z",
        "seconds": 81.52,
        "status": "done",
        "class_names": list(CLASSES),
        "kind": kind,
        "energy": energy,
        "preflight": [
            {"check": "batch", "passed": True, "evidence": 0.0, "sentence": "Alone as in a batch."}
        ],
        "flags": [],
    }


def hash_of(text: str) -> int:
    """A number that stands for a text, the same in every process."""
    return int.from_bytes(text.encode().ljust(8, b"x")[-24:], "big")


def _examples(
    rng: np.random.Generator, right: Right, ids: Any, label: Any, channels: int
) -> dict[str, Any]:
    """The tensors of `examples.safetensors`, for the first eight images."""
    m = min(8, len(ids))
    yy, xx = np.mgrid[0:28, 0:28] / 27
    clean = np.stack(
        [
            np.clip(np.sin(3 * xx * (i + 1) + c) * np.cos(2 * yy * (i + 1)), 0, 1)
            for i in range(m)
            for c in range(channels)
        ]
    ).reshape(m, channels, 28, 28)
    tensors = {
        "clean": clean.astype(np.float32),
        "label": label[:m].astype(np.int64),
        "image_id": ids[:m].astype(np.int64),
        "prediction/clean": np.where(
            np.asarray(right["clean", "", ""])[:m], label[:m], (label[:m] + 1) % 10
        ).astype(np.int64),
    }
    for (attack, _, epsilon), verdict in right.items():
        if attack == "clean":
            continue
        noise = np.sign(rng.normal(size=clean.shape)) * 8 / 255
        tensors[f"adversarial/{attack}@{epsilon}"] = np.clip(clean + noise, 0, 1).astype(np.float32)
        tensors[f"prediction/{attack}@{epsilon}"] = np.where(
            np.asarray(verdict)[:m], label[:m], (label[:m] + 1) % 10
        ).astype(np.int64)
    return tensors


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run folder below tmp_path/runs: `make_run("name", right, **header)`."""

    def make(name: str, right: Right, **header: Any) -> Path:
        return write_run(tmp_path / "runs" / name, right, **header)

    return make


@pytest.fixture(scope="session")
def three_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models of the zoo under a suite of one size and under a curve; do not change them."""
    base = tmp_path_factory.mktemp("three")
    models = {"vgg5-ann": "ann", "vgg5-snn": "snn", "vgg5-snn-hire": "snn"}
    return [
        write_run(
            base / f"{name}-{suite}",
            draw(rates, n, seed),
            model=f"fashion-mnist/{name}",
            kind=kind,
            suite=suite,
        )
        for suite, rates, n in (("quick", QUICK, 240), ("curve", CURVE, 100))
        for seed, (name, kind) in enumerate(models.items())
    ]


@pytest.fixture(scope="session")
def three_report(three_models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report of the three models; do not change it."""
    return render(load_runs(three_models), tmp_path_factory.mktemp("report")).parent


@pytest.fixture(scope="session")
def hard_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Models whose names mean something to HTML, LaTeX, Markdown, rich or matplotlib."""
    base = tmp_path_factory.mktemp("hard")
    names = [HARD_NAME, "_hidden", "long-name-" * 12, "名前"]
    return [
        write_run(
            base / f"{suite}{seed}",
            draw(rates, 60, seed),
            model=f"zoo/{name}",
            suite=suite,
            channels=channels,
        )
        for suite, rates, channels in (("hire-iccv21", HIRE, 3), ("curve", CURVE, 1))
        for seed, name in enumerate(names)
    ]


@pytest.fixture(scope="session")
def hard_report(hard_runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report of the hard runs; do not change it."""
    return render(load_runs(hard_runs), tmp_path_factory.mktemp("hard-report")).parent
