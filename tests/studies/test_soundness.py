"""The table of the soundness study: kept rows, claims and overestimates of tables made by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from robustsnn.evaluation.suites import load_suite
from studies.soundness import study as soundness
from studies.soundness.page import claims, gaps, overestimate, write

MODEL, OTHER = "fashion-mnist/vgg5-ann", "fashion-mnist/vgg5-snn"


def table(*rows: dict[str, object]) -> pd.DataFrame:
    common = {
        "model": MODEL, "samples": 200, "suite": "standard", "attack": "standard",
        "estimator": "", "norm": "Linf", "epsilon": "8/255", "clean": 0.9, "accuracy": 0.5,
        "ci_low": 0.4, "ci_high": 0.6, "ours": 0.5, "beyond_ours": 0, "only_ours": 0,
        "forward_passes": 10.0, "backward_passes": 5.0, "seconds": 50.0, "level": "",
        "because": "", "images": "", "version": load_suite("standard").version,
    }  # fmt: skip
    return pd.DataFrame([common | row for row in rows], columns=soundness.COLUMNS)


def standard(**row: object) -> dict[str, object]:
    return {"level": "B", **row}


def peer(**row: object) -> dict[str, object]:
    return {"suite": "peers", "attack": "torchattacks AutoAttack", "accuracy": 0.6, **row}


def test_rows_of_runs_that_are_gone_are_kept_in_the_order_of_the_networks():
    earlier = table(standard(model=OTHER), peer(model=OTHER))
    now = table(standard(), peer(attack="foolbox PGD"))
    both = soundness.with_earlier(now, earlier)
    assert both["model"].tolist() == [MODEL, MODEL, OTHER, OTHER]
    assert both["suite"].tolist() == ["standard", "peers"] * 2


def test_a_run_replaces_all_rows_of_its_suite():
    earlier = table(standard(), peer(), peer(attack="an attack that is no more"))
    both = soundness.with_earlier(table(standard(), peer(seconds=1.0)), earlier)
    assert both["attack"].tolist() == ["standard", "torchattacks AutoAttack"]
    assert both["seconds"].tolist() == [50.0, 1.0]


def test_rows_of_another_version_are_dropped():
    earlier = table(standard(model=OTHER, version=1), peer(model=OTHER, version=1))
    assert set(soundness.with_earlier(table(standard()), earlier)["model"]) == {MODEL}


def test_comparisons_with_another_result_of_standard_are_dropped():
    earlier = table(standard(), peer())
    now = table(standard(accuracy=0.45, ours=0.45))
    assert soundness.with_earlier(now, earlier)["suite"].tolist() == ["standard"]
    # Rows for another number of images were not compared with it.
    assert len(soundness.with_earlier(now, table(standard(samples=1000), peer(samples=1000)))) == 3


def test_a_lower_peer_and_its_images_are_claimed_against_standard():
    fine = claims(table(standard(), peer()))
    assert len(fine) == 1
    assert "in 0 the other leaves a lower" in fine[0]
    lower = claims(table(standard(), peer(accuracy=0.49, beyond_ours=2, images="3 7")))
    assert "in 1 the other leaves a lower accuracy, in 1 it breaks more" in lower[0]
    assert "leaves 49.0 against 50.0, and breaks 2 images" in lower[1]
    one = claims(table(standard(), peer(beyond_ours=1, images="3")))
    assert "in 0 the other leaves a lower accuracy, in 0 it breaks more" in one[0]


def test_an_overestimate_is_the_gap_with_the_interval_of_the_images_between():
    rows = table(standard(), peer(accuracy=0.6, only_ours=20))
    assert overestimate(rows, "AutoAttack") == "10.0 [6.6, 14.9]"
    assert overestimate(rows, "FGSM") == ""


def test_the_overestimate_of_fgsm_is_not_that_of_a_peers_mifgsm():
    rows = table(
        standard(),
        peer(attack="torchattacks MIFGSM", accuracy=0.55),
        peer(suite="overestimate", attack="FGSM", accuracy=0.7, only_ours=40),
    )
    assert overestimate(rows, "FGSM").startswith("20.0 ")


def test_the_gaps_of_spiking_networks_are_told_by_size():
    def printed(model: str, estimator: str, accuracy: float) -> dict[str, object]:
        kind = {"model": model, "suite": "overestimate", "attack": "PGD-20", "ours": 0.5}
        return kind | {"estimator": estimator, "accuracy": accuracy}

    rows = table(
        printed("a", "bptt", 0.65), printed("b", "bptt", 0.55), printed("c", "backprop", 0.9)
    )
    assert gaps(rows) == ["- PGD-20: 10 points or more on a (15.0); less on b (5.0)."]


def test_the_files_are_written_again_from_what_they_hold(tmp_path: Path):
    table(standard(), peer()).to_csv(tmp_path / "soundness.csv", index=False)
    written = write([], tmp_path, "a command")
    assert written["attack"].tolist() == ["standard", "torchattacks AutoAttack"]
    text = (tmp_path / "soundness.md").read_text()
    assert "| B | 60.0 torchattacks AutoAttack |" in text
    # 50 seconds for the 100 survivors of 200 images.
    assert "| 50 | 0.5 |" in text


def test_an_outcome_is_kept_and_taken_for_its_own_evaluation_only(tmp_path: Path):
    records = pd.DataFrame(
        {
            "image_id": [4, 7], "label": [1, 2], "suite": "s", "attack": ["clean", "clean"],
            "estimator": "", "norm": "", "epsilon": "", "prediction": [1, 0],
            "margin": [-1.0, 0.5], "forward_passes": 1, "backward_passes": 0, "seconds": 0.1,
        }
    )  # fmt: skip
    outcome = soundness.Outcome("an identity", records, "B", ("black-box-finds-more",))
    outcome.write(tmp_path / "records" / "one.parquet")
    found = soundness.Outcome.read(tmp_path / "records" / "one.parquet")
    assert (found.identity, found.level, found.because) == ("an identity", "B", outcome.because)
    pd.testing.assert_frame_equal(found.records, records)

    said: list[str] = []
    first = soundness.study(
        MODEL, 4, tmp_path / "runs", ("overestimate",), kept=tmp_path / "kept", say=said.append
    )
    again = soundness.study(
        MODEL, 4, tmp_path / "gone", ("overestimate",), kept=tmp_path / "kept", say=said.append
    )
    assert len(said) == 1 and not (tmp_path / "gone").exists()
    pd.testing.assert_frame_equal(
        first.runs["overestimate"].records, again.runs["overestimate"].records
    )
    # Different images make a different evaluation.
    soundness.study(
        MODEL, 5, tmp_path / "runs", ("overestimate",), kept=tmp_path / "kept", say=said.append
    )
    assert len(said) == 2
