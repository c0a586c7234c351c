"""Flags and level, taken again from a folder alone; the folders in `older` are of an older version.

That version judged a run from its plan and its network and did not keep what the stages were.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

import robustsnn
from robustsnn.diagnosis.diagnose import diagnose
from robustsnn.errors import InputError
from robustsnn.records.folder import RunFolder
from robustsnn.records.manifest import Manifest, read_manifest
from robustsnn.records.runs import load_runs
from robustsnn.records.summary import own_rows
from robustsnn.workflows.rediagnose import diagnosed_again, diagnosis_of, differences

OLDER = Path(__file__).parents[1] / "records" / "older"


@pytest.fixture(params=["quick", "light"])
def older(request, tmp_path: Path) -> Path:
    folder: Path = shutil.copytree(OLDER / request.param, tmp_path / request.param)
    return folder


def edited(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_manifest_of_an_older_run_is_read(older):
    manifest = read_manifest(older)
    assert manifest.done and manifest.level in "ABC" and manifest.suite == older.name
    assert manifest.stages is None and manifest.spiking is None and manifest.estimator is None
    # What was written is there, under the same names.
    held = json.loads((older / "manifest.json").read_text())
    for key, value in held.items():
        assert json.loads(json.dumps(getattr(manifest, key))) == value, key


def test_an_older_run_says_what_its_folder_alone_says(older):
    run = RunFolder(older)
    found = diagnosis_of(run.manifest(), run.records())
    assert differences(run.manifest(), found) == ()
    fields = json.loads(json.dumps(found.fields()))
    stated = json.loads((older / "manifest.json").read_text())
    for key in ("flags", "verdict", "ledger"):
        assert fields[key] == stated[key], key
    # Since then, what is not flagged has a sentence of its own; all numbers are the same.
    for now, then in zip(fields["diagnostics"], stated["diagnostics"], strict=True):
        assert now.pop("wording", 1) == (1 if then["flagged"] else 2)
        assert {**now, "sentence": ""} == {**then, "sentence": ""}
    pd.testing.assert_frame_equal(
        found.results[["attack", "flags", "accuracy"]],
        run.results()[["attack", "flags", "accuracy"]],
    )


def test_a_run_without_stages_is_not_diagnosed_by_itself(older):
    run = RunFolder(older)
    with pytest.raises(InputError, match="run the evaluation again"):
        diagnose(run.manifest(), run.records())


def test_an_attack_that_is_a_file_is_not_loaded_from_an_older_manifest(older, tmp_path):
    mark = tmp_path / "mark"
    (tmp_path / "mine.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    entries = json.loads((older / "manifest.json").read_text())["entries"]
    edited(older, entries=[{**e, "attack": str(tmp_path / "mine.py")} for e in entries])
    run = RunFolder(older)
    with pytest.raises(InputError, match="run the evaluation again"):
        diagnosis_of(run.manifest(), run.records())
    assert not mark.exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"flags": []}, "not stated"),
        (
            {"verdict": {"level": "A", "sentence": "A.", "next": "Quote it.", "because": []}},
            "level is stated as A",
        ),
    ],
)
def test_verify_tells_what_does_not_follow(warm, checkpoints, tmp_path, changes, says):
    done = warm(
        *("evaluate", checkpoints / "snn", "--samples", "10", "--attack", "gaussian-noise"),
        *("--attack", "fgsm", "--attack", "pgd:steps=3", "--epsilon", "0,8/255,32/255,0.5"),
        *("--output", "run"),
    )
    assert done.returncode == 0, done.stderr
    fine = warm("verify", "run")
    assert fine.returncode == 0, fine.stdout + fine.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["verdict"]["level"] != "A"
    if changes.get("flags") == [] and not manifest["flags"]:
        changes = {"flags": [{"flag": "ties", "severity": "caution", "rows": []}]}
        says = "do not follow"
    edited(tmp_path / "run", **changes)
    said = warm("verify", "run")
    assert said.returncode == 1 and says in said.stdout, said.stdout


def test_a_report_applies_todays_criteria_and_says_so(older, tmp_path):
    # As if the run were from a time at which nothing was flagged.
    edited(
        older,
        flags=[],
        verdict={"level": "A", "title": "no flag", "sentence": "A.", "next": "Quote it."},
    )
    plain = robustsnn.report([older], tmp_path / "plain").read_text(encoding="utf-8")
    assert "Diagnosed again" not in plain
    page = robustsnn.report([older], tmp_path / "again", diagnose_again=True)
    text = page.read_text(encoding="utf-8")
    assert "Diagnosed again by the criteria of RobustSNN" in text
    assert "not A as the run says" in text
    assert read_manifest(older).level == "A", "the folder must stay as it is"
    (run,) = diagnosed_again(load_runs([older])).runs
    assert run.level == read_manifest(OLDER / older.name).level != "A"


def test_rows_that_an_attack_made_itself_are_those_that_cost_something():
    records = RunFolder(OLDER / "light").records()
    own = own_rows(records, cascade=True)
    # A row that was copied cost nothing, one that was made cost passes.
    spent = (records["forward_passes"] + records["backward_passes"] > 0).to_numpy()
    assert (own == spent).all() and not own.all()
    assert own_rows(records, cascade=False).all()


@pytest.mark.parametrize("ending", ["", "/", "/."])
def test_verify_and_report_run_nothing_that_an_older_manifest_names(older, tmp_path, ending):
    mark = tmp_path / "mark"
    (tmp_path / "mine.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    entries = json.loads((older / "manifest.json").read_text())["entries"]
    for spec in (f"{tmp_path}/mine.py{ending}", f"transfer:{tmp_path}/mine.py{ending}"):
        edited(older, entries=[{**entry, "attack": spec} for entry in entries])
        with pytest.raises(InputError):
            robustsnn.report([older], tmp_path / "page", diagnose_again=True)
        assert not mark.exists()


LIES = {
    "ledger": lambda m: m.update(ledger=[{**row, "broken": 0} for row in m["ledger"]]),
    "no ledger": lambda m: m.update(ledger=[]),
    "diagnostics": lambda m: m.update(diagnostics=[]),
    "sentence": lambda m: m["flags"][0].update(sentence="All is well."),
    "twice": lambda m: m.update(flags=[*m["flags"], m["flags"][0]]),
    "no level": lambda m: m.update(verdict={}),
    "advice": lambda m: m["verdict"].update(next="Quote it."),
}


@pytest.fixture(scope="module")
def flagged(checkpoints, tmp_path_factory) -> Path:
    """A finished run of today that has flags."""
    folder: Path = tmp_path_factory.mktemp("flagged") / "run"
    robustsnn.evaluate(
        checkpoints / "snn",
        samples=20,
        attack=["pgd:steps=1", "gaussian-noise"],
        epsilon="1/255,2/255,3/255",
        output=folder,
    )
    assert read_manifest(folder).flags and robustsnn.verify(folder).passed
    return folder


@pytest.mark.parametrize("lie", LIES)
def test_each_part_of_a_diagnosis_is_verified(flagged, tmp_path, lie):
    folder = shutil.copytree(flagged, tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    LIES[lie](manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = robustsnn.verify(folder)
    assert not found.passed and found.diagnosis, found.sentence


def test_the_flags_of_the_results_are_verified(flagged, tmp_path):
    folder = shutil.copytree(flagged, tmp_path / "run")
    results = pd.read_csv(folder / "results.csv", dtype=str, keep_default_na=False)
    assert (results["flags"] != "").any()
    results.assign(flags="").to_csv(folder / "results.csv", index=False)
    found = robustsnn.verify(folder)
    assert not found.passed and "results.csv" in found.sentence


@pytest.mark.parametrize("rows", ["stages", "preflight"])
def test_a_manifest_with_rows_that_say_nothing_is_told_in_one_line(flagged, tmp_path, rows):
    folder = shutil.copytree(flagged, tmp_path / "run")
    edited(folder, **{rows: [{}]})
    with pytest.raises(InputError, match="damaged") as caught:
        robustsnn.verify(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"samples": "many"}, "samples"),
        ({"format": "robustsnn-run-9"}, "no run of this version"),
        ({"flags": "none"}, "flags"),
    ],
)
def test_a_damaged_manifest_is_told_in_one_line(older, change, says):
    edited(older, **change)
    with pytest.raises(InputError, match=says) as caught:
        read_manifest(older)
    assert "\n" not in str(caught.value)


def test_a_manifest_checks_what_is_changed():
    manifest = Manifest(model="m", data="d", suite="s")
    assert manifest.but(samples=3).samples == 3 and manifest.samples == 0
    with pytest.raises(ValueError, match="samples"):
        manifest.but(samples="many")
