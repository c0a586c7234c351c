import json

import numpy as np
import pandas as pd
import pytest

from robustsnn.errors import InputError
from robustsnn.records.runs import load_runs
from robustsnn.reporting.render import render

RIGHT = {("clean", "", ""): np.ones(20, dtype=bool), ("fgsm", "Linf", "0"): np.ones(20, dtype=bool)}


def test_a_run_comes_back_as_it_was_written(make_run):
    folder = make_run("a", RIGHT, model="fashion-mnist/vgg5-snn")
    runs = load_runs([str(folder)])
    (run,) = runs.runs
    assert (run.model, run.label, run.data, run.kind) == (
        "fashion-mnist/vgg5-snn",
        "vgg5-snn",
        "fashion-mnist",
        "snn",
    )
    assert run.samples == 20
    # An epsilon of 0 is read back as text.
    assert set(run.results["epsilon"]) == {"", "0"}
    assert set(run.records["epsilon"]) == {"", "0"}
    assert runs.records["model"].unique().tolist() == ["vgg5-snn"]
    assert run.examples["clean"].shape == (8, 1, 28, 28)


def test_labels_are_short_and_tell_models_apart(make_run):
    same = [
        make_run("a", RIGHT, model="zoo/x/m"),
        make_run("b", RIGHT, model="zoo/y/m"),
        make_run("c", RIGHT, model="zoo/y/m", checkpoint_sha256="f" * 64),
        make_run("d", RIGHT, model="zoo/y/m", checkpoint_sha256="f" * 64),
    ]
    models = load_runs(same).models
    assert models[0] == "x/m"
    assert models[2:] == ("y/m @fffffff", "y/m @fffffff (2)")
    assert len(set(models)) == 4


def test_an_ann_without_activity_or_examples(make_run):
    folder = make_run("a", RIGHT, kind="ann")
    (folder / "activity.parquet").unlink()
    (folder / "examples.safetensors").unlink()
    (run,) = load_runs([folder]).runs
    assert np.isnan(run.spikes_per_neuron_and_step)
    assert run.examples == {}


def break_nothing(folder):
    (folder / "manifest.json").unlink()


def break_records(folder):
    (folder / "records.parquet").unlink()


def break_results(folder):
    (folder / "results.csv").unlink()


def truncate_records(folder):
    path = folder / "records.parquet"
    path.write_bytes(path.read_bytes()[:500])


def truncate_manifest(folder):
    (folder / "manifest.json").write_text('{"model": ')


def list_manifest(folder):
    (folder / "manifest.json").write_text("[]")


def empty_results(folder):
    (folder / "results.csv").write_text("")


def no_rows(folder):
    results = pd.read_csv(folder / "results.csv").iloc[:0]
    results.to_csv(folder / "results.csv", index=False)


def text_for_numbers(folder):
    text = (folder / "results.csv").read_text().replace("1.0", "much")
    (folder / "results.csv").write_text(text)


def drop_column(folder):
    pd.read_parquet(folder / "records.parquet").drop(columns="margin").to_parquet(
        folder / "records.parquet"
    )


def truncate_examples(folder):
    (folder / "examples.safetensors").write_bytes(b"12345")


def still_running(folder):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "running"}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (break_nothing, "not a run folder"),
        (break_records, "no records.parquet"),
        (break_results, "no results.csv"),
        (truncate_records, "missing or damaged"),
        (truncate_manifest, "cannot be read"),
        (list_manifest, "no run of this version"),
        (empty_results, "missing or damaged"),
        (no_rows, "no rows"),
        (text_for_numbers, "missing or damaged"),
        (drop_column, "'margin'"),
        (truncate_examples, "cannot be read"),
        (still_running, "did not end"),
    ],
)
def test_a_damaged_run_is_one_line_that_names_it(make_run, damage, says):
    folder = make_run("broken", RIGHT)
    damage(folder)
    with pytest.raises(InputError, match=says) as caught:
        load_runs([folder])
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_folder(tmp_path, make_run):
    with pytest.raises(InputError, match="does not exist"):
        load_runs([tmp_path / "nowhere"])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        load_runs([tmp_path / "file"])
    with pytest.raises(InputError, match="no run folder given"):
        load_runs([])
    folder = make_run("inside", RIGHT)
    with pytest.raises(InputError, match=r"try .*inside"):
        load_runs([folder.parent])


def test_the_baseline_comes_first(make_run):
    folders = [make_run(name, RIGHT, model=f"zoo/{name}") for name in "abc"]
    runs = load_runs(folders)
    assert runs.models == ("a", "b", "c")
    assert runs.with_baseline("c").models == ("c", "a", "b")
    assert runs.with_baseline("zoo/b").models == ("b", "a", "c")
    with pytest.raises(InputError, match="'z'"):
        runs.with_baseline("z")


def test_a_report_is_whole_and_leaves_nothing_else(make_run, tmp_path):
    runs = load_runs([make_run("a", RIGHT)])
    output = tmp_path / "deep" / "report"
    page = render(runs, output)
    assert page == output / "index.html"
    assert sorted(p.name for p in output.iterdir()) == ["figures", "index.html", "tables"]
    (output / "tables" / "mine.txt").write_text("kept")
    before = page.read_bytes()
    assert render(runs, output).read_bytes() == before
    assert (output / "tables" / "mine.txt").read_text() == "kept"


def test_a_failing_renderer_leaves_the_old_report(make_run, tmp_path, monkeypatch):
    import robustsnn.reporting.render

    runs = load_runs([make_run("a", RIGHT)])
    page = render(runs, tmp_path / "report")
    files = {p: p.read_bytes() for p in page.parent.rglob("*") if p.is_file()}
    renderers = robustsnn.reporting.render._renderers()

    class Failing:
        @staticmethod
        def render(runs, output):
            raise RuntimeError("no")

    monkeypatch.setattr("robustsnn.reporting.render._renderers", lambda: [*renderers, Failing])
    with pytest.raises(RuntimeError):
        render(load_runs([make_run("b", RIGHT)]), page.parent)
    assert {p: p.read_bytes() for p in page.parent.rglob("*") if p.is_file()} == files


def test_a_foreign_page_is_not_overwritten(make_run, tmp_path):
    runs = load_runs([make_run("a", RIGHT)])
    (tmp_path / "site").mkdir()
    page = tmp_path / "site" / "index.html"
    page.write_text("<h1>mine</h1>")
    with pytest.raises(InputError, match="not written by RobustSNN"):
        render(runs, page.parent)
    assert page.read_text() == "<h1>mine</h1>"
    assert list(page.parent.iterdir()) == [page]


def test_an_output_that_is_a_file(make_run, tmp_path):
    runs = load_runs([make_run("a", RIGHT)])
    (tmp_path / "out").touch()
    for output in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(InputError, match="cannot write a report"):
            render(runs, output)
