"""The page as evidence: what was measured, what fell, and nothing that a reader cannot trust."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from robustsnn.diagnosis.finding import Finding
from robustsnn.records.folder import RunFolder
from robustsnn.records.runs import load_runs
from robustsnn.reporting.comparison import comparisons
from robustsnn.reporting.outcomes import outcomes_of
from robustsnn.reporting.render import render
from robustsnn.reporting.sentences import flag_sentences
from robustsnn.reporting.terminal import comparison_tables
from tests.made_runs import CLASSES, HIRE, QUICK, draw
from tests.reports.test_page_in_browser import BROWSER

PGD, FGSM = ("pgd-10", "Linf", "8/255"), ("fgsm", "Linf", "8/255")
SHA = "5eed" * 16


def text_of(page):
    """The text of a page as a reader sees it, with all that is folded."""
    plain = re.sub(r"<(style|svg).*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", plain))).replace("\xa0", " ")


def test_a_page_on_paper_names_network_data_attack_seed_and_time(make_run, tmp_path):
    entries = [{"label": "PGD-10", "attack": "pgd:steps=10,loss=margin", "estimator": "bptt"}]
    folder = make_run(
        "a", draw(QUICK, 40, 0), seed=7, checkpoint_sha256=SHA, suite_sha256="ab" * 32,
        entries=entries, suite_version=3,
    )  # fmt: skip
    plain = text_of(render(load_runs([folder]), tmp_path / "out"))
    head = plain[: plain.index("Against the strongest")]
    for said in ("RobustSNN 0.1.0", "2026-01-02", "n = 40", "seed 7", "suite quick, version 3"):
        assert said in head, said
    assert "robustsnn evaluate fashion-mnist/vgg5-snn --suite quick --samples 40" in head
    before_numbers = plain[: plain.index("Accuracy under each attack")]
    for said in (
        SHA, "sha256:2b9c4c7f0a1d7f0f4cbd5e8e42f1d7a6", "ab" * 32, "2026-01-02T03:04:05Z",
        "pgd:steps=10,loss=margin", "torch 2.9.0",
    ):  # fmt: skip
        assert said in before_numbers, said


def test_what_is_folded_on_screen_is_there_on_paper(make_run, tmp_path):
    page = render(load_runs([make_run("a", draw(QUICK, 40, 0))]), tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    # Only the summary is inside; what it folds follows, and only a screen hides it.
    assert re.findall(r"<details(.*?)>", text) == [' class="fold"'] * text.count("<details")
    inside = re.findall(r"<details.*?</details>\s*(<div class=\"folded\")?", text, re.DOTALL)
    assert len(inside) >= 4 and all(inside)
    rules = re.sub(r"@media screen \{[^{}]*\{[^{}]*\} \}", "", text)
    assert ".folded:not(:target) { display: none; }" in text
    assert not re.search(r"\.folded[^{}]*\{[^{}]*display: none", rules)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None or shutil.which("pdftotext") is None, reason="no PDF here")
def test_the_pdf_holds_every_table(make_run, tmp_path):
    row = {"id": "D7", "slug": "far", "flagged": False, "severity": "caution", "evidence": 0.25}
    diagnostics = [{**row, "sentence": "It is deep inside.", "wording": 2, "details": {}}]
    folder = make_run("a", draw(QUICK, 40, 0), checkpoint_sha256=SHA, diagnostics=diagnostics)
    page = render(load_runs([folder]), tmp_path / "out")
    pdf = tmp_path / "page.pdf"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--print-to-pdf={pdf}"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    shown = subprocess.run(["pdftotext", "-layout", pdf, "-"], capture_output=True, check=True)
    plain = re.sub(r"\s+", " ", shown.stdout.decode())
    for said in (SHA, "It is deep inside.", "takes each class for", "batch size", "7 fell"):
        assert said in plain or said == "7 fell", said


def flagged(**more):
    return {"flag": "far", "severity": "caution", "sentence": "Look!", "rows": [], **more}


def test_a_finding_that_is_not_flagged_is_not_an_accusation(make_run, tmp_path):
    found = Finding(
        "D6", "noise-beats-gradient", False, "invalid", "A sign of masked gradients.", 0.0,
        passed="A gradient helps as it should.",
    )  # fmt: skip
    new, old = found.as_measure(), {**found.as_measure(), "slug": "older", "sentence": "So bad."}
    del old["wording"]
    check = {"check": "zero-gradient", "passed": True, "evidence": 0, "id": "D1", "sentence": "Ah."}
    folder = make_run("a", draw(QUICK, 40, 0), diagnostics=[new, old], preflight=[check])
    plain = text_of(render(load_runs([folder]), tmp_path / "out"))
    assert "A gradient helps as it should." in plain
    assert not any(said in plain for said in ("masked gradients", "So bad.", "Ah."))
    assert plain.count("within the limits of this diagnostic") == 2
    loud = {**old, "flagged": True}
    folder = make_run("b", draw(QUICK, 40, 0), diagnostics=[loud], flags=[flagged()])
    plain = text_of(render(load_runs([folder]), tmp_path / "loud"))
    assert "So bad." in plain and "Look!" in plain


def test_every_reason_is_listed_and_flags_are_marked_by_level(make_run, tmp_path):
    because = [
        {"id": "D6", "flag": "far", "level": "C", "sentence": "It is far.", "next": "Stop."},
        {
            "id": "suite",
            "flag": "upper-bound",
            "level": "B",
            "sentence": "It lacks.",
            "next": "Go.",
        },
    ]
    verdict = {
        "level": "C", "title": "not reliable", "next": "Stop.", "because": because,
        "sentence": "C, not reliable: It is far. There is 1 more reason.",
    }  # fmt: skip
    flag = flagged(sentence="It is far.", severity="invalid")
    folder = make_run("a", draw(QUICK, 40, 0), verdict=verdict, flags=[flag])
    runs = load_runs([folder])
    plain = text_of(render(runs, tmp_path / "out"))
    assert "more reason" not in plain and "C, not reliable: It is far. Stop." in plain
    assert "The other reason: B It lacks." in plain
    assert [said[2] for said in flag_sentences(runs.runs)] == ["C"]
    stream = io.StringIO()
    Console(file=stream, width=200).print(comparison_tables(runs))
    assert "Also B: It lacks." in stream.getvalue()
    for level in "ABC":
        assert plain.count(f"{level} No flag" if level == "A" else f" {level} ") >= 1


def test_classes_and_confusion_are_those_of_the_records(make_run, tmp_path):
    right = draw(QUICK, 60, 3)
    folder = make_run("a", right, ties=[4])
    page = render(load_runs([folder]), tmp_path / "out")
    label = np.arange(60) % len(CLASSES)
    stood = np.logical_and.reduce(list(right.values()))
    stood[4] = False
    classes = pd.read_csv(tmp_path / "out/tables/classes.csv")
    for index, name in enumerate(CLASSES):
        row = classes[classes["class"] == name].iloc[0]
        assert row["images"] == 6
        assert row["worst_case"] == pytest.approx(stood[label == index].mean())
        assert row["clean"] == pytest.approx(right["clean", "", ""][label == index].mean())
    confusion = pd.read_csv(tmp_path / "out/tables/confusion.csv")
    assert confusion["images"].sum() == 60
    diagonal = confusion[confusion["class"] == confusion["predicted"]]["images"].sum()
    assert diagonal == stood.sum()
    # The made runs take every broken image for the next class; a tie is no class at all.
    for index, name in enumerate(CLASSES):
        wrong = confusion[(confusion["class"] == name) & (confusion["predicted"] != name)]
        others = dict(zip(wrong["predicted"], wrong["images"], strict=True))
        tied = int(index == 4 and right[PGD][4])
        broken = int((~stood & (label == index)).sum()) - tied
        assert others.get(CLASSES[(index + 1) % 10], 0) == broken
        assert others.get("no class", 0) == tied
    assert "takes each class for in the worst case" in text_of(page)


def test_images_that_fell_and_stood_are_one_click_away(make_run, tmp_path):
    right = {
        ("clean", "", ""): np.ones(12, bool),
        PGD: np.arange(12) % 3 > 0,
        FGSM: np.ones(12, bool),
    }
    runs = load_runs([make_run("a", right)])
    page = render(runs, tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    row = re.search(r"<th scope=\"row\">Worst case.*?</tr>", text, re.DOTALL)[0]
    links = dict(re.findall(r'<a href="#((?:fell|stood)-[^"]+)">(\d+ \w+)</a>', row))
    assert list(links.values()) == ["4 fell", "8 stood"]
    (outcome,) = outcomes_of(comparisons(runs)[0])
    assert outcome.fell["image_id"].tolist() == [3, 24, 45, 66]
    for anchor, count in zip(links, (3, 5), strict=True):
        part = re.search(rf'id="{anchor}".*?</ul>', text, re.DOTALL)[0]
        # The run keeps its first eight images: of them 0, 3 and 6 fell.
        assert len(re.findall(r"<li>", part)) == count
    part = re.search(rf'id="{next(iter(links))}".*?</ul>', text, re.DOTALL)[0]
    first = re.search(r'src="data:image/png;base64,([^"]+)"', part)[1]
    with Image.open(io.BytesIO(base64.b64decode(first))) as image:
        pixels = np.asarray(image) / 255
    np.testing.assert_allclose(pixels, runs.runs[0].examples["clean"][0][0], atol=0.5 / 255 + 1e-6)


def test_a_run_without_images_or_attacks_has_no_such_part(make_run, tmp_path):
    right = {("clean", "", ""): np.ones(20, dtype=bool)}
    text = text_of(render(load_runs([make_run("a", right)]), tmp_path / "out"))
    assert "Images that fell" not in text and "by class" not in text
    folder = make_run("b", draw(QUICK, 20, 0))
    (folder / "examples.safetensors").unlink()
    assert "kept the pixels of 0 images" in text_of(render(load_runs([folder]), tmp_path / "two"))


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1+1", "@SUM(A1)"])
def test_no_cell_of_a_csv_is_a_formula(make_run, tmp_path, name):
    folder = make_run("a", draw(QUICK, 20, 0), model=name)
    render(load_runs([folder]), tmp_path / "out")
    for path in (tmp_path / "out" / "tables").glob("*.csv"):
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        for cell in frame["model"]:
            assert cell == f"'{name}", path
    # A run folder reads its own file back as it was.
    done = RunFolder(folder)
    records = done.records().assign(draws_right=1.0)
    done.finish(done.manifest(), records, done.results(), done.activity(), {})
    assert f"'{name}" in (folder / "results.csv").read_text()
    assert set(done.results()["model"]) == {name}


def test_control_characters_reach_neither_terminal_nor_drawing(make_run, tmp_path):
    bad = "a\x1b]0;owned\x07\x1b[31m\u202ecba"
    classes = [f"{name}\x1b[2J" for name in CLASSES]
    folders = [
        make_run("a", draw(QUICK, 20, 0), model=f"{bad}/one", class_names=classes),
        make_run("b", draw(QUICK, 20, 1), model="two\x00", flags=[flagged(sentence=bad)]),
    ]
    runs = load_runs(folders)
    render(runs, tmp_path / "out")
    stream = io.StringIO()
    Console(file=stream, width=100, color_system=None).print(comparison_tables(runs))
    found = [stream.getvalue(), *(said[3] for said in flag_sentences(runs.runs))]
    written = [p for p in (tmp_path / "out").rglob("*.*") if p.suffix != ".png"]
    found += [path.read_text(encoding="utf-8") for path in written]
    for text in found:
        assert not set(text) & {"\x1b", "\x07", "\x00", "\u202e"}
    for path in written:
        if path.suffix == ".svg":
            ElementTree.parse(path)
    assert "owned" in stream.getvalue()


def test_captions_fit_a_paper(make_run, tmp_path):
    folders = [make_run(n, draw(HIRE, 40, s), model=n, suite="hire") for s, n in enumerate("ab")]
    folders.append(make_run("c", draw(QUICK, 40, 0), model="a", cascade=True))
    render(load_runs(folders), tmp_path / "out")
    latex = (tmp_path / "out/tables/comparison.tex").read_text(encoding="utf-8")
    captions = re.findall(r"\\caption\{(.*)\}", latex)
    assert len(captions) >= 8
    assert all(len(caption) < 300 and caption.endswith(".") for caption in captions)
    assert any("version 1, seed 0" in c and "95~" not in c[:20] for c in captions)
    assert any("so rows add up" in c for c in captions)
    # What was in the caption is still there, as a comment.
    assert "% In the worst case an image counts only" in latex


def test_published_numbers_are_shown_for_the_same_data_only(make_run, tmp_path):
    for data, shown in (("fashion-mnist", False), ("cifar10", True)):
        folder = make_run(data, draw(QUICK, 20, 0), data=data, method="hire")
        text = text_of(render(load_runs([folder]), tmp_path / data / "out"))
        assert ("Next to published numbers" in text) == shown
        assert ("Kundu et al." in text) == shown


def test_the_bars_of_a_cascade_say_that_they_add_up(make_run, tmp_path):
    for cascade in (True, False):
        folder = make_run(f"run-{cascade}", draw(QUICK, 40, 0), cascade=cascade)
        render(load_runs([folder]), tmp_path / str(cascade))
        drawn = (tmp_path / str(cascade) / "figures" / "attack-bars-quick.svg").read_text()
        shown = re.sub(r"<metadata.*?</metadata>", "", drawn, flags=re.DOTALL)
        assert ("after this attack and all above it" in shown) == cascade


def test_the_manifest_on_disk_stays_as_it_is(make_run):
    folder = make_run("a", draw(QUICK, 20, 0), model="a\x1bb")
    before = (folder / "manifest.json").read_bytes()
    assert load_runs([folder]).runs[0].model == "a␛b"
    assert (folder / "manifest.json").read_bytes() == before
    assert json.loads(before)["model"] == "a\x1bb"


def test_the_guide_explains_every_column(three_models, tmp_path):
    guide = (Path(__file__).parents[2] / "docs" / "reading-a-report.md").read_text("utf-8")
    plain = re.sub(r"[*`]", "", guide)
    runs = load_runs(three_models)
    folder = make_page_with_everything(three_models, tmp_path)
    text = (folder / "index.html").read_text(encoding="utf-8")
    heads = {
        html.unescape(re.sub(r"<small>.*?</small>|<[^>]*>", "", head)).strip()
        for head in re.findall(r'<th scope="col".*?</th>', text, re.DOTALL)
    }
    named = {*runs.models, *CLASSES}
    assert {"Settings", "Gained", "Of clean-correct", "Images"} <= heads
    assert [head for head in heads - named if head not in plain] == []
    for fact in re.findall(r"<dt>(.*?)</dt>", text[: text.index("Accuracy under each attack")]):
        assert fact in plain, fact
    for path in (folder / "tables").glob("*.csv"):
        for column in pd.read_csv(path).columns:
            assert f"`{column}`" in guide, (path.name, column)


def make_page_with_everything(folders, tmp_path):
    """A page on which runs have diagnostics, a ledger and the entries of their suite."""
    stage = {
        "attack": "fgsm", "norm": "Linf", "epsilon": "8/255", "estimator": "bptt", "attacked": 9,
        "broken": 1, "left": 0.5, "forward_passes": 1, "backward_passes": 1, "zero_gradients": 0,
        "seconds": 1, "seconds_per_image": 1, "seconds_per_survivor": 1,
    }  # fmt: skip
    found = Finding("D6", "far", False, "caution", "It is far.", 0.5, passed="It is near.")
    copies = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in folders]
    for folder in copies:
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest |= {"ledger": [stage], "diagnostics": [found.as_measure()]}
        manifest |= {"entries": [{"label": "FGSM", "attack": "fgsm", "estimator": "bptt"}]}
        path.write_text(json.dumps(manifest))
    return render(load_runs(copies), tmp_path / "out").parent
