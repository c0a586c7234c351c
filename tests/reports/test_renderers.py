"""The contract of every renderer, and the content of the tables cell by cell."""

import hashlib
import io
import re
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from robustsnn.records.runs import load_runs
from robustsnn.reporting.render import render, renderer_names, renderers
from robustsnn.reporting.terminal import comparison_table
from robustsnn.reporting.trust import GUIDE_URL
from tests.made_runs import HARD_NAME, QUICK, draw


@pytest.fixture(params=renderer_names())
def renderer(request):
    modules = {module.__name__.rsplit(".", 1)[-1]: module for module in renderers()}
    return modules[request.param.replace("-", "_")]


@pytest.fixture(params=["hard", "minimal"])
def runs(request, make_run):
    if request.param == "minimal":
        right = {("clean", "", ""): np.ones(20, dtype=bool)}
        return load_runs([make_run("a", right, kind="ann")])
    folders = request.getfixturevalue("hard_runs")
    return load_runs([folders[0], folders[2], folders[4], folders[6]])


def test_a_renderer_writes_what_it_says_and_the_same_again(renderer, runs, tmp_path):
    digests = []
    for place in ("one", "two"):
        output = tmp_path / place
        written = renderer.render(runs, output)
        assert sorted(written) == sorted(p for p in output.rglob("*") if p.is_file())
        assert all(path.stat().st_size for path in written)
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in written])
    assert digests[0] == digests[1]


def test_a_renderer_leaves_the_runs_as_they_were(renderer, three_models, tmp_path):
    runs = load_runs(three_models)
    renderer.render(runs, tmp_path / "out")
    fresh = load_runs(three_models)
    for ours, theirs in zip(runs.runs, fresh.runs, strict=True):
        pd.testing.assert_frame_equal(ours.records, theirs.records)
        pd.testing.assert_frame_equal(ours.results, theirs.results)
        pd.testing.assert_frame_equal(ours.activity, theirs.activity)
        for name, array in theirs.examples.items():
            np.testing.assert_array_equal(ours.examples[name], array)


def test_figures_come_as_png_and_svg_that_can_be_read(three_report):
    figures = three_report / "figures"
    names = {path.stem for path in figures.iterdir()}
    assert names == {"attack-bars-quick", "accuracy-vs-epsilon-curve", "gallery-quick", "spikes"}
    for name in names:
        with Image.open(figures / f"{name}.png") as image:
            assert min(image.size) > 500
        ElementTree.parse(figures / f"{name}.svg")


def test_reports_do_without_torch():
    code = (
        "import sys; from robustsnn.reporting import render;"
        " render.renderers(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Page(HTMLParser):
    """The links, scripts and text of a page, as a browser would see them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.ids, self.shown = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value)
            assert not name.startswith("on")

    def handle_data(self, data):
        self.shown.append(data)


@pytest.mark.parametrize("report", ["hard_report", "three_report"])
def test_the_page_stands_alone_and_runs_nothing(report, request):
    page = request.getfixturevalue(report) / "index.html"
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    assert not {"script", "iframe", "object", "embed"} & set(parsed.tags)
    for link in parsed.links:
        if link != GUIDE_URL:
            assert link.startswith(("#", "data:")) or (page.parent / link).is_file(), link
        if link.startswith("#"):
            assert link[1:] in parsed.ids, link
    assert len(parsed.ids) == len(set(parsed.ids))
    for inside in re.findall(r"url\(#([^)]+)\)", text):
        assert inside in parsed.ids
    # The guide is the one address outside, and nothing is fetched from there.
    assert text.count(GUIDE_URL) == 1
    assert "http" not in re.sub(r"http://www\.w3\.org/[\w/]*", "", text.replace(GUIDE_URL, ""))
    if report == "hard_report":
        assert HARD_NAME in "".join(parsed.shown)


def test_the_page_holds_headlines_flags_definitions_and_provenance(make_run, tmp_path):
    flag = {"flag": "zero-gradient", "severity": "invalid", "attack": "fgsm", "sentence": "Blind!"}
    run = make_run("a", draw(QUICK, 60, 0), flags=[flag])
    text = render(load_runs([run]), tmp_path / "out").read_text(encoding="utf-8")
    plain = re.sub(r"\s+", " ", "".join(Page(text).shown).replace("\u00a0", " "))
    for said in (
        "Against the strongest of Gaussian, FGSM and PGD-10 for each image",
        "an upper bound",
        "1 flag speaks against",
        "Blind!",
        "Of clean-correct",
        "Net loss",
        "Of all images",
        "measured on 2026-01-02",
        "n = 60",
        "suite quick, version 1",
        "robustsnn evaluate fashion-mnist/vgg5-snn",
        "2.9.0",
        "sha256:2b9c4c7f0a1d7f0f4cbd5e8e42f1d7a6",
    ):
        assert said in plain, said


def test_a_cascade_says_that_its_rows_add_up(make_run, tmp_path):
    rates = {("apgd-margin-again", "Linf", "8/255"): 0.4, ("square", "Linf", "8/255"): 0.3}
    for cascade in (True, False):
        folder = make_run(f"run-{cascade}", draw(rates, 50, 0), cascade=cascade)
        output = tmp_path / f"page-{cascade}"
        render(load_runs([folder]), output)
        text = (output / "index.html").read_text(encoding="utf-8")
        assert ("the accuracy under it and these together, not under it alone" in text) == cascade
        assert ("left after that attack and all attacks above it" in text) == cascade


def test_text_tables_hold_the_numbers_of_the_csv(three_models, three_report):
    tables = three_report / "tables"
    frame = pd.read_csv(tables / "comparison.csv", dtype={"epsilon": str}).query("suite == 'quick'")
    markdown = (tables / "comparison.md").read_text(encoding="utf-8").replace("\u00a0", " ")
    latex = (tables / "comparison.tex").read_text(encoding="utf-8")
    text = (tables / "comparison.txt").read_text(encoding="utf-8").replace("\u00a0", " ")
    for _, row in frame.iterrows():
        number, ends = f"{100 * row['accuracy']:.1f}", (row["ci_low"], row["ci_high"])
        low, high = (f"{100 * end:.1f}" for end in ends)
        assert f"{number} % \\[{low}, {high}\\]" in markdown
        assert f"{number}~\\% [{low},~{high}]" in latex
        assert f"{number} [{low}, {high}]" in text
    results = pd.read_csv(tables / "results.csv")
    assert len(results) == sum(len(pd.read_csv(f / "results.csv")) for f in three_models)


def test_names_are_escaped_in_markdown_and_latex(hard_report):
    tables = hard_report / "tables"
    markdown = (tables / "comparison.md").read_text(encoding="utf-8")
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert "<script" not in markdown
    assert widths <= {5, 6, 7, 8, 12}
    latex = (tables / "comparison.tex").read_text(encoding="utf-8")
    assert r"\$x\_1\$ 50\% \{a\}\textasciicircum{}b\textasciitilde{}c" in latex


def test_three_models_fit_a_terminal_of_80_columns(three_models):
    stream = io.StringIO()
    Console(width=80, file=stream).print(comparison_table(load_runs(three_models)))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    # A number and its interval stay on one line.
    assert re.search(r"\d+\.\d \[\d+\.\d,\u00a0\d+\.\d\] +\d+\.\d \[", text)


def test_a_report_of_the_users_own_is_shown_on_the_page(three_models, tmp_path, monkeypatch):
    own = types.ModuleType("own")
    source = (
        "from matplotlib.figure import Figure\nfrom robustsnn.reporting import figures\n"
        "def render(runs, output):\n"
        "    return figures.save(Figure(), output, 'extra', 'My own figure', 'Of my own.')\n"
    )
    exec(source, own.__dict__)
    page = next(m for m in renderers() if m.__name__.endswith("page"))
    monkeypatch.setattr("robustsnn.reporting.render.renderers", lambda: [page, own])
    text = render(load_runs(three_models), tmp_path / "out").read_text(encoding="utf-8")
    assert "My own figure" in text
    assert "Of my own." in text
