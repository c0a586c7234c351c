"""Worst-case energy: counted for suites that ask for it, and nothing else changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from robustsnn.errors import InputError
from robustsnn.evaluation.plan import prepare
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.run import evaluate
from robustsnn.evaluation.suites import Suite, load_suite
from robustsnn.models.checkpoint import load_model
from robustsnn.records.schema import OPERATIONS
from robustsnn.snn.operations import count_operations, operations_per_image
from robustsnn.workflows.verify.run import verify
from tests.traps.networks import TRAPS, trap_images

SAMPLES = 20


@pytest.fixture(scope="module")
def counted(checkpoints, tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("energy") / "run"
    evaluate(checkpoints / "snn", suite="energy", samples=SAMPLES, output=folder, save_images=True)
    return folder


def frames(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    results = pd.read_csv(folder / "results.csv", keep_default_na=False)
    return pd.read_parquet(folder / "records.parquet"), results.set_index("attack")


def test_worst_case_energy_is_the_maximum_by_hand(counted, checkpoints):
    records, results = frames(counted)
    made = load_model(checkpoints / "snn").eval()
    saved = load_file(counted / "examples.safetensors")
    by_hand = {
        name.removeprefix("adversarial/").partition("@")[0]: operations_per_image(
            made, torch.from_numpy(images), batch_size=32
        ).numpy()
        for name, images in saved.items()
        if name == "clean" or name.startswith("adversarial/")
    }
    assert len(by_hand) == 6 and {len(v) for v in by_hand.values()} == {SAMPLES}
    for attack, values in by_hand.items():
        rows = records[records["attack"] == attack].sort_values("image_id")
        # A spike may flip with the shape of a batch.
        np.testing.assert_allclose(rows[OPERATIONS], values, rtol=2e-3)
        assert results.loc[attack, OPERATIONS] == pytest.approx(rows[OPERATIONS].mean())
    recorded = records.pivot(index="image_id", columns="attack", values=OPERATIONS)
    assert results.loc["worst-case", OPERATIONS] == pytest.approx(recorded.max(axis=1).mean())
    highest = np.max([*by_hand.values()], axis=0)
    assert results.loc["worst-case", OPERATIONS] == pytest.approx(highest.mean(), rel=2e-3)
    assert results.loc["worst-case", OPERATIONS] > results.loc["clean", OPERATIONS]


def test_the_attack_keeps_the_label_or_not_as_its_entry_says(counted):
    records, results = frames(counted)
    kept = records[records["attack"] == "energy-same-label"]
    # All images are attacked, those that are wrong when clean too.
    assert (kept["prediction"] == kept["clean_prediction"]).all()
    assert (kept["backward_passes"] > 0).all()
    clean, same, free = (
        results.loc[name, OPERATIONS] for name in ("clean", "energy-same-label", "energy-any-label")
    )
    assert clean < same <= free * 1.01


def test_the_manifest_counts_each_layer(counted, checkpoints):
    found = robust_manifest(counted)
    made = load_model(checkpoints / "snn").eval()
    images = torch.from_numpy(load_file(counted / "examples.safetensors")["clean"])
    expected = count_operations(made, images, batch_size=32)
    assert [row["name"] for row in found.operations] == [layer.name for layer in expected.layers]
    assert found.operations[0]["inputs"] == "analog"
    assert found.counts["synaptic_operations"] == pytest.approx(
        expected.synaptic_operations, rel=2e-3
    )
    assert found.energy["compute_fp32_uj"] < found.energy["memory_fp32_uj"]
    assert {"ann_uj", "snn_input_uj", "snn_same_layer_uj"} <= set(found.energy)


def robust_manifest(folder: Path):
    from robustsnn.records.folder import RunFolder

    return RunFolder(folder).manifest()


def test_verify_counts_again(counted, tmp_path):
    done = verify(counted)
    assert done.passed and done.miscounted == 0, done.sentence
    records, _ = frames(counted)
    results = pd.read_csv(counted / "results.csv", dtype=str, keep_default_na=False)
    more = {
        "records": records.assign(**{OPERATIONS: 1.2 * records[OPERATIONS]}),
        "results": results.assign(
            **{OPERATIONS: (1.2 * results[OPERATIONS].astype(float)).map("{:.17g}".format)}
        ),
    }
    for changed, miscounted, rows in (
        (("records",), 6 * SAMPLES, 7),
        (("results",), 0, 7),
        # Both agree with each other, and not with the network.
        (("records", "results"), 6 * SAMPLES, 0),
    ):
        folder = Path(shutil.copytree(counted, tmp_path / "-".join(changed)))
        if "records" in changed:
            more["records"].to_parquet(folder / "records.parquet")
        if "results" in changed:
            more["results"].to_csv(folder / "results.csv", index=False)
        wrong = verify(folder)
        assert (wrong.miscounted, wrong.rows, wrong.passed) == (miscounted, rows, False)
        said = "take other synaptic operations than recorded" in wrong.sentence
        assert said == (miscounted > 0)


def test_suites_that_do_not_ask_have_no_such_column_and_the_same_records(checkpoints, tmp_path):
    plain = evaluate(checkpoints / "snn", samples=8, output=tmp_path / "plain")
    asked = evaluate(checkpoints / "snn", samples=8, output=tmp_path / "asked", energy=True)
    assert OPERATIONS not in plain.records and OPERATIONS not in plain.results
    assert plain.manifest.identity != asked.manifest.identity
    for one, other in ((plain.records, asked.records), (plain.results, asked.results)):
        pd.testing.assert_frame_equal(
            one.drop(columns="seconds"), other.drop(columns=["seconds", OPERATIONS])
        )
    assert verify(tmp_path / "plain").passed and verify(tmp_path / "asked").passed


def test_a_cascade_counts_what_it_judges(checkpoints, tmp_path):
    entries = [{"label": "one", "attack": "fgsm"}, {"label": "two", "attack": "pgd:steps=2"}]
    suite = Suite(name="falls", epsilon=("8/255",), cascade=True, energy=True, entries=entries)
    found = evaluate(checkpoints / "snn", suite=suite, samples=12, output=tmp_path / "run")
    assert found.records[OPERATIONS].notna().all()
    by_image = found.records.pivot(index="image_id", columns="attack", values=OPERATIONS)
    worst = found.results.set_index("attack").loc["worst-case", OPERATIONS]
    assert worst == pytest.approx(by_image.max(axis=1).mean())
    assert verify(tmp_path / "run").passed


def test_networks_without_spikes_are_counted_and_attacked_on_their_class_only(checkpoints):
    found = evaluate(checkpoints / "ann", suite="energy", samples=8)
    assert found.manifest.left_out == ("Energy same label", "Energy any label")
    assert found.records[OPERATIONS].notna().all()


def test_an_attack_on_spikes_that_are_not_there_is_refused_before_the_run(checkpoints, tmp_path):
    with pytest.raises(InputError, match=r"^energy: .* has no spikes, so there are none to raise"):
        evaluate(checkpoints / "ann", attack=["energy"], samples=4, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_that_draws_is_counted_over_its_draws():
    images, labels = trap_images(4)
    entries = [{"label": "noise", "attack": "gaussian-noise"}]
    suite = Suite(name="drawn", epsilon=("8/255",), draws=3, energy=True, entries=entries)
    found = evaluate(TRAPS["poisson"]().network, (images, labels), suite)
    # A mean over three draws is seldom a whole number.
    assert (found.records[OPERATIONS] % 1 != 0).any()


def test_other_networks_have_no_count():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    found = evaluate(network, (images, labels), attack=["fgsm"], energy=True)
    assert found.records[OPERATIONS].isna().all()
    assert found.results[OPERATIONS].isna().all()


def test_the_digest_of_a_suite_that_does_not_ask_stays():
    quick = load_suite("quick")
    assert quick.model_copy(update={"energy": True}).digest() != quick.digest()
    old = quick.model_dump(exclude={"energy"})
    assert Suite.model_validate(old).digest() == quick.digest()


def test_the_option_is_the_field_of_the_suite():
    asked = Request.of("fashion-mnist/vgg5-snn", samples=4, energy=True)
    assert asked.chosen.energy and asked.chosen.name == "quick"
    plans = [prepare(request) for request in (asked, asked.but(energy=False))]
    assert plans[0].identity != plans[1].identity
