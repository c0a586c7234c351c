"""What the study of sparsity says, on rows that are made up here."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch

from robustsnn.models.zoo import zoo_names
from robustsnn.snn.sparsity import LayerDensity
from studies.sparsity import study
from studies.sparsity.figures import against_compression, of_layers
from studies.sparsity.latency import faster
from studies.sparsity.page import claims, page


def row(model: str, method: str, **found: Any) -> dict[str, Any]:
    """A row whose columns of suites are given as `suite__column`."""
    seed = found.pop("seed", 1)
    return {
        "model": f"fashion-mnist/{model}",
        "data": "fashion-mnist",
        "kind": found.pop("kind", "snn"),
        "method": method,
        "seed": seed,
        "dense_weights": 1000,
        "kept": round(1000 / found.get("compression", 1.0)),
        "compression": found.pop("compression", 1.0),
        "bytes": 4000,
        "samples": 20,
        **{key.replace("__", ":"): value for key, value in found.items()},
    }


def table(**changes: Any) -> pd.DataFrame:
    """A dense network, and a guided and a magnitude-pruned one at 33x, over two seeds."""
    rows = []
    for seed, end in ((1, ""), (2, "-b")):
        common = {"seed": seed, "standard__level": "A", "standard__flags": ""}
        rows += [
            row(
                f"vgg5-snn{end}",
                "dense",
                standard__clean=0.92,
                standard__standing="1 2 3",
                **common,
            ),
            row(
                f"vgg5-snn-agc-33x{end}",
                "AGC",
                compression=33.3,
                standard__clean=0.90,
                standard__standing="2 3 4",
                **common,
            ),
            row(
                f"vgg5-snn-magnitude-33x{end}",
                "magnitude",
                compression=33.3,
                standard__clean=changes.get(f"pruned{seed}", 0.85),
                standard__standing="3",
                **common,
            ),
        ]
    return pd.DataFrame(rows)


def test_accuracy_is_compared_with_the_dense_network_of_the_same_seed():
    said = " ".join(claims(table()))
    assert "vgg5-snn-agc-33x** loses 2.0 points" in said
    assert "vgg5-snn-agc-33x-b** loses 2.0 points" in said


def test_it_beats_magnitude_pruning_only_if_it_does_on_every_seed():
    assert "At 33x AGC beats one-shot magnitude pruning" in " ".join(claims(table()))
    said = " ".join(claims(table(pruned2=0.91)))
    assert "At 33x AGC does not beat one-shot magnitude pruning" in said
    assert "+2.0 points of clean accuracy on average (+5.0, -1.0)" in said


def test_survivors_are_compared_image_by_image():
    """One image gained and one lost is not a difference; many gained and none lost is one."""
    assert "0 of 4 sparse networks keep more images: none" in " ".join(claims(table()))
    some = table()
    some.loc[some["model"].str.endswith("agc-33x"), "standard:standing"] = " ".join(
        map(str, range(1, 20))
    )
    said = " ".join(claims(some))
    assert "1 of 4 sparse networks keep more images: fashion-mnist/vgg5-snn-agc-33x (16 g" in said
    assert "p = 3.1e-05" in said  # 2 / 2^16


def test_signs_of_hidden_gradients_are_named():
    some = table()
    some["standard:robust"], some["hire-iccv21:pgd-7"] = 0.1, 0.4
    some["hire-iccv21:bb-pgd-7"] = 0.6
    assert "No network breaks more easily by black-box images" in " ".join(claims(some))
    some.loc[1, "hire-iccv21:bb-pgd-7"] = 0.3
    some.loc[2, "standard:flags"] = "surrogate-gap ties"
    said = "\n".join(claims(some))
    assert "agc-33x: black-box images leave 30.0 %, fewer than white-box ones with 40.0 %" in said
    assert "magnitude-33x: the run is flagged for a gap between surrogates" in said


def test_the_page_says_what_is_missing_and_needs_no_run():
    text = page(pd.DataFrame([study.about("fashion-mnist/vgg5-snn") | {"samples": 5}]), "command")
    assert "| vgg5-snn | dense | 1.0x | 865 | – |" in text
    assert "Not trained or not run yet: fashion-mnist/vgg5-ann" in text
    assert "Spike-Thrift | CIFAR-10 | hybrid, AGC | VGG16 | 2.5x / 33.4x | 91.29 / 90.15" in text


def test_figures_are_drawn_only_of_what_there_is():
    assert against_compression(table().drop(columns="standard:clean")) is None
    figure = against_compression(table())
    assert figure is not None
    assert [a.get_title(loc="left") for a in figure.axes if a.get_visible()] == [
        "Fashion-MNIST: clean accuracy, %"
    ]
    dense = {"d/one": (LayerDensity("a", 10, 10),)}
    assert of_layers(dense) is None
    assert of_layers({**dense, "d/two": (LayerDensity("a", 10, 1),)}) is not None


@pytest.mark.parametrize("name", study.trained())
def test_members_of_the_zoo_are_what_the_study_says(name: str):
    about = study.about(name)
    nominal = name.rpartition("-")[2] if name.endswith("x") else ""
    for part in name.split("-"):
        nominal = part if part.endswith("x") and part[:-1].replace(".", "").isdigit() else nominal
    expected = {"33x": 100 / 3}.get(nominal, float(nominal[:-1]) if nominal else 1.0)
    # The channels that are left hold some weights that an input without spikes never moved.
    tolerance = 0.1 if about["method"] == study.CHANNEL else 0.01
    assert about["compression"] == pytest.approx(expected, rel=tolerance)


def test_every_sparse_network_of_the_zoo_is_in_the_study():
    sparse = [n for n in zoo_names() if "x" in n.rpartition("-")[2] or "agc" in n or "dnr" in n]
    # The sparse ANNs of a second seed are there to be converted.
    steps = [n for n in sparse if "-ann-" in n and n.endswith("-b")]
    assert set(sparse) - set(steps) <= set(study.NETWORKS)


def test_a_smaller_network_is_faster_and_the_page_says_by_how_much():
    dense = torch.nn.Linear(2000, 2000)
    small = torch.nn.Sequential(torch.nn.Linear(2000, 20))
    ratio, low, high = faster(small, dense, torch.rand(64, 2000))
    assert 1 < low <= ratio <= high
    some = pd.DataFrame([row("vgg5-snn-agc-4x-channel", "AGC, channels", compression=4.0)]).assign(
        **{"latency:ratio": 2.5, "latency:low": 2.4, "latency:high": 2.6}
    )
    assert "which has 25% of the weights of its dense parent, is 2.50 times as fast" in " ".join(
        claims(some)
    )
