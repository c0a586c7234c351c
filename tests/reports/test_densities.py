"""What reports say of sparse networks, and that they say nothing of it where none is."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree

import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from robustsnn.common import wording
from robustsnn.records.runs import load_runs
from robustsnn.reporting.comparison import comparisons
from robustsnn.reporting.render import render, renderers
from robustsnn.reporting.tables import accuracy_table
from robustsnn.reporting.terminal import comparison_table
from tests.made_runs import QUICK, draw

SIZES = {"features.0": 144, "features.3": 4608, "features.6": 9216, "classifier.0": 200704}


def layers(kept):
    return [
        {"layer": name, "weights": weights, "kept": int(share * weights)}
        for (name, weights), share in zip(SIZES.items(), kept, strict=True)
    ]


DENSE, TENTH, FEW = (1.0,) * 4, (0.8, 0.4, 0.2, 0.09), (0.9, 0.2, 0.03, 0.0)


@pytest.fixture
def make(make_run):
    """Runs whose models have these shares of the weights of each layer."""

    def made(*shares, **header):
        return load_runs(
            [
                make_run(
                    f"run-{place}",
                    draw(QUICK, 40, place),
                    model=f"zoo/model-{place}",
                    **({} if share is None else {"densities": layers(share)}),
                    **header,
                )
                for place, share in enumerate(shares)
            ]
        )

    return made


def figure(runs, output):
    (module,) = [m for m in renderers() if m.__name__.endswith(".densities")]
    return module.render(runs, output)


def test_a_row_with_weights_and_compression_where_a_network_is_sparse(make):
    runs = make(DENSE, TENTH, None, FEW)
    (comparison,) = comparisons(runs)
    row = accuracy_table(comparison).rows[-1]
    total = sum(SIZES.values())
    tenth, few = (
        sum(int(s * w) for s, w in zip(k, SIZES.values(), strict=True)) for k in (TENTH, FEW)
    )
    assert [cell.text for cell in row] == [
        "Weights, not zero",
        f"{total:,}",
        f"{tenth:,} ({total / tenth:.2f}×)"
        if total / tenth < 10
        else f"{tenth:,} ({total / tenth:.1f}×)",
        "–",
        f"{few:,} ({total / few:,.0f}×)",
    ]
    assert "how many times as many the same network has when it is dense" in " ".join(
        accuracy_table(comparison).notes
    )
    found = comparison.table.drop_duplicates("model").set_index("model")
    assert found["weights"].tolist()[:2] == [total, tenth]
    assert found["compression"].tolist()[:2] == [1.0, pytest.approx(total / tenth)]
    assert found.loc["model-2", ["weights", "compression"]].isna().all()


def test_channels_that_are_gone_count_as_compression(make):
    runs = make(DENSE, dense_weights=4 * sum(SIZES.values()))
    (run,) = runs.runs
    assert (run.density, run.compression, run.sparse) == (1.0, 4.0, True)
    (comparison,) = comparisons(runs)
    assert accuracy_table(comparison).rows[-1][1].detail == "(4.00×)"


@pytest.mark.parametrize(
    "shares", [(None,), (DENSE, DENSE), (None, DENSE), ((1.0, 1.0, 1.0, 0.999),)]
)
def test_nothing_of_it_where_no_network_is_sparse(make, tmp_path, shares):
    runs = make(*shares)
    page = render(runs, tmp_path / "out")
    tables = page.parent / "tables"
    assert not (tables / "densities.csv").exists()
    assert not (page.parent / "figures" / "densities.png").exists()
    assert "compression" not in pd.read_csv(tables / "comparison.csv").columns
    assert "not zero" not in page.read_text(encoding="utf-8")


def test_a_report_of_a_sparse_network(make, tmp_path):
    runs = make(DENSE, TENTH)
    page = render(runs, tmp_path / "out")
    text = page.read_text(encoding="utf-8").replace("\u00a0", " ")
    assert "Weights that are left in each layer" in text
    assert "tables/densities.csv" in text and "Weights" in text
    # The rows are drawn and in a file, so they are not written out as provenance.
    assert "&#34;kept&#34;" not in text and '"kept"' not in text
    frame = pd.read_csv(page.parent / "tables" / "densities.csv")
    assert list(frame.columns) == ["model", "layer", "weights", "kept", "density"]
    assert frame["layer"].tolist() == [*SIZES, *SIZES]
    assert frame["density"].tolist()[-1] == pytest.approx(0.09, abs=1e-4)
    for name, escaped in (("comparison.md", "×"), ("comparison.tex", r"$\times$")):
        assert escaped in (page.parent / "tables" / name).read_text(encoding="utf-8")


def test_three_sparse_models_fit_a_terminal_of_80_columns(make):
    stream = io.StringIO()
    Console(width=80, file=stream).print(comparison_table(make(DENSE, TENTH, FEW)))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"Weights +214,672 ", text)


def test_only_sparse_models_are_drawn_and_the_rest_is_said(make, tmp_path):
    png, svg = figure(make(DENSE, TENTH, None, FEW), tmp_path)
    with Image.open(png) as image:
        assert min(image.size) > 500
        said = image.info["Description"]
    assert "logarithmic" in said and "model-3 has no weight left in classifier.0." in said
    text = "".join(ElementTree.parse(svg).getroot().itertext())
    assert "model-1" in text and "model-3" in text
    assert "model-0" not in text and "model-2" not in text


def test_a_narrow_range_is_drawn_on_a_plain_axis(make, tmp_path):
    png, _ = figure(make((0.5, 0.4, 0.3, 0.25), (1.0, 0.6, 0.6, 0.3)), tmp_path)
    with Image.open(png) as image:
        assert "logarithmic" not in image.info["Description"]


def test_networks_of_fewer_channels_are_named_and_not_drawn(make_run, tmp_path):
    folders = [
        make_run(name, draw(QUICK, 40, 0), model=f"zoo/{name}", densities=layers(share), **more)
        for name, share, more in (
            ("thin", DENSE, {"dense_weights": 10**6}),
            ("thick", DENSE, {"dense_weights": 10**6}),
            ("pruned", TENTH, {}),
        )
    ]
    png, _ = figure(load_runs(folders), tmp_path)
    with Image.open(png) as image:
        said = image.info["Description"]
    assert "thin and thick have fewer channels but every weight of their layers" in said
    assert figure(load_runs(folders[:2]), tmp_path) == []


def test_factors_are_printed_to_three_digits():
    assert [wording.times(x) for x in (1.0, 9.994, 33.27, 100.0)] == [
        "1.00×",
        "9.99×",
        "33.3×",
        "100×",
    ]
    assert wording.times(float("nan")) == "–"
